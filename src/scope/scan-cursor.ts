/**
 * Cursors of SCAN as a scoped client sees them. The server's own are places in its table of all keys: how large they get
 * tells how many keys everybody has. So each is carried by a keyed permutation, the same in all sidecars that have the
 * secret: nothing has to be remembered, and a client may go on anywhere.
 *
 * A Feistel network over 52 bits, so that clients that read cursors as doubles keep them whole. 0, which begins and ends a
 * scan, stays 0.
 */
import { createHmac } from 'node:crypto';

export interface ScanCursors {
  /** The server's cursor for a client's; what is no cursor is the server's to refuse. */
  physical(cursor: string): string;
  logical(cursor: string): string;
}

const HALF = 2 ** 26;
const CURSORS = HALF * HALF;
const ROUNDS = 6;

export function scanCursors(secret: Buffer, scopeId: string): ScanCursors {
  const key = createHmac('sha256', secret).update(scopeId).digest();

  function round(number: number, half: number): number {
    return createHmac('sha256', key).update(`${number} ${half}`).digest().readUInt32BE(0) % HALF;
  }

  function permute(value: number): number {
    let [left, right] = [Math.floor(value / HALF), value % HALF];
    for (let number = 0; number < ROUNDS; number += 1) [left, right] = [right, left ^ round(number, right)];
    return left * HALF + right;
  }

  function undo(value: number): number {
    let [left, right] = [Math.floor(value / HALF), value % HALF];
    for (let number = ROUNDS - 1; number >= 0; number -= 1) [left, right] = [right ^ round(number, left), left];
    return left * HALF + right;
  }

  /** What is 0, no number, or too large for the permutation is left as it is. */
  function carry(cursor: string, step: (value: number) => number): string {
    if (!/^[1-9]\d{0,15}$/.test(cursor) || Number(cursor) >= CURSORS) return cursor;
    let value = Number(cursor);
    do value = step(value);
    while (value === 0);
    return String(value);
  }

  return { physical: (cursor) => carry(cursor, undo), logical: (cursor) => carry(cursor, permute) };
}
