/**
 * Tests of the Redis suite that may fail through Holdfast although they pass directly, each with its reason. Reviewed
 * by hand, meant to stay empty: whoever adds a line shows that the known differences in docs/p3-transparency.md cover it.
 */
export interface KnownDifference {
  readonly unit: string;
  /** The test's name as the suite prints it. */
  readonly test: string;
  readonly reason: string;
}

export const KNOWN_DIFFERENCES: readonly KnownDifference[] = [];
