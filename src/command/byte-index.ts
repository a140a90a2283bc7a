/**
 * A read-only map from short ASCII names to values, asked with a range of a buffer: what the hot path finds commands
 * with. Letter case does not matter, nothing is allocated by a lookup.
 *
 * Open addressing with linear probing over a power of two of slots, at most a quarter of them used. The names lie one
 * behind the other in `text`; a slot holds 1 + the name's number, 0 is a free slot.
 */
const FOLD = new Uint8Array(256);
for (let byte = 0; byte < 256; byte += 1) FOLD[byte] = byte >= 65 && byte <= 90 ? byte + 32 : byte;

const HASH_SEED = 0x811c9dc5;
const HASH_PRIME = 0x01000193;

export interface ByteIndex<T> {
  /** The value of the name in `buffer[start, end)`, or `undefined`. */
  lookup(buffer: Uint8Array, start: number, end: number): T | undefined;
}

export function byteIndex<T>(names: ReadonlyMap<string, T>): ByteIndex<T> {
  let capacity = 8;
  while (capacity < names.size * 4) capacity *= 2;
  const mask = capacity - 1;
  const slots = new Uint16Array(capacity);
  const values = [...names.values()];
  const text = Buffer.from([...names.keys()].join('').toLowerCase(), 'latin1');
  const starts = new Uint32Array(names.size + 1);
  let lengthMax = 0;
  let number = 0;
  for (const name of names.keys()) {
    starts[number + 1] = starts[number]! + name.length;
    lengthMax = Math.max(lengthMax, name.length);
    let slot = hash(text, starts[number]!, starts[number + 1]!) & mask;
    while (slots[slot] !== 0) slot = (slot + 1) & mask;
    slots[slot] = number + 1;
    number += 1;
  }

  function lookup(buffer: Uint8Array, start: number, end: number): T | undefined {
    const length = end - start;
    if (length > lengthMax) return undefined;
    for (let slot = hash(buffer, start, end) & mask; ; slot = (slot + 1) & mask) {
      const found = slots[slot]!;
      if (found === 0) return undefined;
      const at = starts[found - 1]!;
      if (starts[found]! - at !== length) continue;
      let i = 0;
      while (i < length && FOLD[buffer[start + i]!] === text[at + i]) i += 1;
      if (i === length) return values[found - 1];
    }
  }
  return { lookup };
}

function hash(buffer: Uint8Array, start: number, end: number): number {
  let value = HASH_SEED;
  for (let i = start; i < end; i += 1) value = Math.imul(value ^ FOLD[buffer[i]!]!, HASH_PRIME);
  return (value ^ (value >>> 15)) >>> 0;
}
