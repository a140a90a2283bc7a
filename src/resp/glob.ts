/**
 * The servers' glob matching (`stringmatchlen` of Redis 7.0, util.c), for the patterns that Holdfast matches itself.
 * As there, the time is bounded by giving up on the longer matches of a star once the rest has run out of text.
 */
const STAR = 42;
const QUESTION = 63;
const OPEN = 91;
const CLOSE = 93;
const BACKSLASH = 92;
const CARET = 94;
const DASH = 45;

/** As the servers: deeper patterns match nothing. */
const NESTING_MAX = 1000;

interface Progress {
  /** The text ran out behind a star: no longer match of an earlier star can help. */
  exhausted: boolean;
}

/** Whether all of `text` matches `pattern`. Bytes, case-sensitive. */
export function globMatches(pattern: Buffer, text: Buffer): boolean {
  return matchesFrom(pattern, 0, text, 0, { exhausted: false }, 0);
}

function matchesFrom(
  pattern: Buffer,
  patternStart: number,
  text: Buffer,
  textStart: number,
  progress: Progress,
  nesting: number,
): boolean {
  if (nesting > NESTING_MAX) return false;
  let p = patternStart;
  let t = textStart;
  while (p < pattern.length && t < text.length) {
    const byte = pattern[p]!;
    if (byte === STAR) {
      while (p + 1 < pattern.length && pattern[p + 1] === STAR) p += 1;
      if (p === pattern.length - 1) return true;
      for (; t < text.length; t += 1) {
        if (matchesFrom(pattern, p + 1, text, t, progress, nesting + 1)) return true;
        if (progress.exhausted) return false;
      }
      progress.exhausted = true;
      return false;
    }
    if (byte === OPEN) {
      const { matched, last } = matchesClass(pattern, p, text[t]!);
      if (!matched) return false;
      p = last;
    } else if (byte !== QUESTION) {
      if (byte === BACKSLASH && p < pattern.length - 1) p += 1;
      if (pattern[p] !== text[t]) return false;
    }
    t += 1;
    p += 1;
    if (t === text.length) {
      while (p < pattern.length && pattern[p] === STAR) p += 1;
      break;
    }
  }
  return p >= pattern.length && t === text.length;
}

/** The character class at `pattern[open]`; `last` is the position of its closing bracket. */
function matchesClass(pattern: Buffer, open: number, byte: number): { matched: boolean; last: number } {
  let p = open + 1;
  const negated = pattern[p] === CARET;
  if (negated) p += 1;
  let matched = false;
  for (; ; p += 1) {
    if (p < pattern.length - 1 && pattern[p] === BACKSLASH) {
      p += 1;
      if (pattern[p] === byte) matched = true;
    } else if (p >= pattern.length) {
      p = pattern.length - 1;
      break;
    } else if (pattern[p] === CLOSE) {
      break;
    } else if (p < pattern.length - 2 && pattern[p + 1] === DASH) {
      const low = Math.min(pattern[p]!, pattern[p + 2]!);
      const high = Math.max(pattern[p]!, pattern[p + 2]!);
      p += 2;
      if (byte >= low && byte <= high) matched = true;
    } else if (pattern[p] === byte) {
      matched = true;
    }
  }
  return { matched: matched !== negated, last: p };
}
