/** Redis's glob patterns (`* ? [a-z] \x`) over the bytes of keys, without copying the key. */
export interface KeyPattern {
  readonly text: string;
  /** What every key that matches begins with. */
  readonly literalPrefix: Buffer;
  /** Ends in `*`: a key whose beginning matches matches whatever follows. */
  readonly open: boolean;
  matches(buffer: Uint8Array, start: number, end: number): boolean;
}

const STAR = 42;
const QUESTION = 63;
const OPEN = 91;
const CLOSE = 93;
const CARET = 94;
const BACKSLASH = 92;
const DASH = 45;

export function keyPattern(text: string): KeyPattern {
  const pattern = Buffer.from(text);
  const literal: number[] = [];
  for (let at = 0; at < pattern.length; at += 1) {
    const byte = pattern[at]!;
    if (byte === STAR || byte === QUESTION || byte === OPEN) break;
    if (byte === BACKSLASH && at + 1 < pattern.length) at += 1;
    literal.push(pattern[at]!);
  }
  return {
    text,
    literalPrefix: Buffer.from(literal),
    open: pattern.at(-1) === STAR && pattern.at(-2) !== BACKSLASH,
    matches: (buffer, start, end) => matchFrom(pattern, buffer, start, end),
  };
}

/** Linear but for the last `*`: a mismatch behind one goes back to it, never to an earlier one. */
function matchFrom(pattern: Buffer, key: Uint8Array, start: number, end: number): boolean {
  let at = start;
  let step = 0;
  let starStep = -1;
  let starAt = -1;
  for (;;) {
    if (step < pattern.length && pattern[step] === STAR) {
      starStep = step;
      starAt = at;
      step += 1;
      continue;
    }
    if (at === end) {
      while (step < pattern.length && pattern[step] === STAR) step += 1;
      if (step === pattern.length) return true;
      return false;
    }
    const next = step < pattern.length ? matchOne(pattern, step, key[at]!) : -1;
    if (next >= 0) {
      step = next;
      at += 1;
      continue;
    }
    if (starStep < 0) return false;
    starAt += 1;
    at = starAt;
    step = starStep + 1;
  }
}

/** The position behind the pattern's element at `step` where it matches `byte`, else -1. */
function matchOne(pattern: Buffer, step: number, byte: number): number {
  const first = pattern[step]!;
  if (first === QUESTION) return step + 1;
  if (first === BACKSLASH && step + 1 < pattern.length) return pattern[step + 1] === byte ? step + 2 : -1;
  if (first !== OPEN) return first === byte ? step + 1 : -1;
  let at = step + 1;
  const negated = pattern[at] === CARET;
  if (negated) at += 1;
  let found = false;
  while (at < pattern.length && pattern[at] !== CLOSE) {
    if (pattern[at] === BACKSLASH && at + 1 < pattern.length) at += 1;
    const low = pattern[at]!;
    if (pattern[at + 1] === DASH && at + 2 < pattern.length && pattern[at + 2] !== CLOSE) {
      const high = pattern[at + 2]!;
      if (byte >= Math.min(low, high) && byte <= Math.max(low, high)) found = true;
      at += 3;
    } else {
      if (low === byte) found = true;
      at += 1;
    }
  }
  return found !== negated ? at + 1 : -1;
}
