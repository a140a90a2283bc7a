/**
 * The seed of tests that draw at random. Always the same one, so that whether the tests pass depends on what was changed
 * and on nothing else; `HOLDFAST_SEED` gives another, and the long forms (`npm run fuzz`, `npm run chaos`) take theirs from
 * the clock.
 */
export const seed = Number(process.env.HOLDFAST_SEED ?? 20_261_126);
