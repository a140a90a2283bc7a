import { mkdtemp, rm, stat, truncate } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { followHistory, type HistoryRecord, KIND, openHistory, RECORD_BYTES } from './history.ts';

let directory: string;
let path: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'holdfast-history-'));
  path = join(directory, 'history');
});
afterEach(() => rm(directory, { recursive: true, force: true }));

function readAll(): HistoryRecord[] {
  const records: HistoryRecord[] = [];
  const reader = followHistory(path);
  reader.read((record) => records.push({ ...record }));
  reader.close();
  return records;
}

test('records come back as they were written', () => {
  const writer = openHistory(path, 7, () => 4_000_000_000);
  const record = {
    ...{ kind: KIND.delivered, stream: 5, group: 2, detail: 0x81, writer: 65_535, number: 4_294_967_295 },
    ...{ idMs: 2 ** 53 - 1, idSeq: 2 ** 40 + 1, readAtMs: 4_294_967_295 },
  } as const;
  writer.write(record);
  writer.close();
  expect(readAll()).toEqual([{ ...record, atMs: 4_000_000_000, client: 7 }]);
});

test('a follower sees each record once, also across more than one write', () => {
  const reader = followHistory(path);
  const writer = openHistory(path, 1, () => 0);
  const numbers: number[] = [];
  for (let round = 0; round < 3; round += 1) {
    for (let i = 0; i < 1500; i += 1) writer.write({ kind: KIND.addInvoked, stream: 0, number: round * 1500 + i });
    writer.flush();
    expect(reader.read(({ number }) => numbers.push(number))).toBe(1500);
  }
  expect(numbers).toEqual(Array.from({ length: 4500 }, (_, i) => i));
  writer.close();
  reader.close();
});

test('a record that a kill cut short is left out', async () => {
  const writer = openHistory(path, 1, () => 0);
  for (let number = 0; number < 3; number += 1) writer.write({ kind: KIND.addOk, stream: 0, number });
  writer.close();
  expect((await stat(path)).size).toBe(3 * RECORD_BYTES);
  await truncate(path, 3 * RECORD_BYTES - 1);
  expect(readAll().map(({ number }) => number)).toEqual([0, 1]);
});
