/**
 * The only source of chance in a chaos run: what is drawn is a pure function of the seed and of the order of draws.
 * `fork` gives a stream of its own to each part, so that one part's draws never shift another's.
 */
export interface SeededRandom {
  /** In [0, 1). */
  next(): number;
  /** A whole number from `min` to `max`, both included. */
  integer(min: number, max: number): number;
  chance(probability: number): boolean;
  pick<T>(choices: readonly T[]): T;
  fork(label: string): SeededRandom;
}

/** FNV-1a over the label, so that neighbouring seeds and labels start far apart. */
function hash(label: string): number {
  let state = 0x811c9dc5;
  for (let i = 0; i < label.length; i += 1) state = Math.imul(state ^ label.charCodeAt(i), 0x01000193);
  return state >>> 0;
}

/** Mulberry32 (Tommy Ettinger's 32-bit generator): small, and good enough to place faults. */
export function seededRandom(seed: string): SeededRandom {
  let state = hash(seed);
  function next(): number {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  }
  return {
    next,
    integer: (min, max) => min + Math.floor(next() * (max - min + 1)),
    chance: (probability) => next() < probability,
    pick: (choices) => choices[Math.floor(next() * choices.length)]!,
    fork: (label) => seededRandom(`${seed}/${label}`),
  };
}
