/**
 * The history of a run: what clients asked for and what they were told, one file per client process, append-only.
 *
 * Records have a fixed length, so that a file that a `kill -9` cut short is read up to its last whole record. An
 * invocation is in the file before its request is on the wire, a delivery before its acknowledgement: what a killed
 * process knew and did not write down, it had told nobody.
 *
 *   0 kind u8 | 1 stream u8 | 2 group u8 | 3 detail u8 | 4 atMs u32 | 8 writer u16 | 10 client u16 | 12 number u32
 *   16 ID's ms f64 | 24 ID's seq f64 | 32 readAtMs u32 | 36 unused
 */
import { closeSync, openSync, readSync, writeSync } from 'node:fs';

export const RECORD_BYTES = 40;
/** Records that wait for one write; the tick's end writes them all. */
const BATCH_RECORDS = 1024;

export const KIND = {
  addInvoked: 1,
  addOk: 2,
  /** The server said that nothing was added. */
  addFailed: 3,
  addUnknown: 4,
  delivered: 5,
  ackInvoked: 6,
  ackOk: 7,
  ackUnknown: 8,
  deleteInvoked: 9,
  deleteOk: 10,
  /** A pending entry whose fields are gone: the reply holds its ID and nil. */
  deliveredNil: 11,
  /** An entry that is no event of this run. Its ID is all that is known. */
  deliveredForeign: 12,
} as const;
export type Kind = (typeof KIND)[keyof typeof KIND];

/** How a delivery came about; the lower bits of a delivery's `detail`. */
export const DELIVERY = { fresh: 0, ownPending: 1, claimed: 2 } as const;
/** A delivery's `detail` bit: fields differ from what was sent. */
export const WRONG_FIELDS = 0x80;
/** `detail` of `addInvoked`: the entry went past Holdfast's eyes (a script, or a direct client). */
export const OBSERVED = 1;

export interface HistoryRecord {
  kind: Kind;
  /** Index into the workload's streams. */
  stream: number;
  /** Index into the stream's groups. */
  group: number;
  detail: number;
  /** Milliseconds since the run began, on the machine's monotonic clock. */
  atMs: number;
  writer: number;
  /** The client process's number in the run. */
  client: number;
  number: number;
  idMs: number;
  idSeq: number;
  /** Deliveries: when the read was sent. */
  readAtMs: number;
}

/** All processes of a run count from the same start: the monotonic clock is the machine's. */
export function runClock(startNs: bigint): () => number {
  return () => Number((process.hrtime.bigint() - startNs) / 1_000_000n);
}

export interface HistoryWriter {
  write(record: Partial<HistoryRecord> & { readonly kind: Kind; readonly stream: number }): void;
  /** Hands everything to the kernel. Must come before the request that the records speak of. */
  flush(): void;
  close(): void;
}

export function openHistory(path: string, client: number, now: () => number): HistoryWriter {
  const file = openSync(path, 'a');
  const batch = Buffer.alloc(RECORD_BYTES * BATCH_RECORDS);
  let used = 0;
  let scheduled = false;

  function flush(): void {
    scheduled = false;
    if (used === 0) return;
    writeSync(file, batch, 0, used);
    used = 0;
  }
  return {
    write(record) {
      batch[used] = record.kind;
      batch[used + 1] = record.stream;
      batch[used + 2] = record.group ?? 0;
      batch[used + 3] = record.detail ?? 0;
      batch.writeUInt32LE(record.atMs ?? now(), used + 4);
      batch.writeUInt16LE(record.writer ?? 0, used + 8);
      batch.writeUInt16LE(client, used + 10);
      batch.writeUInt32LE(record.number ?? 0, used + 12);
      batch.writeDoubleLE(record.idMs ?? 0, used + 16);
      batch.writeDoubleLE(record.idSeq ?? 0, used + 24);
      batch.writeUInt32LE(record.readAtMs ?? 0, used + 32);
      used += RECORD_BYTES;
      if (used === batch.length) flush();
      else if (!scheduled) {
        scheduled = true;
        setImmediate(flush);
      }
    },
    flush,
    close() {
      flush();
      closeSync(file);
    },
  };
}

export interface HistoryReader {
  /** Gives each record that was appended since the last call, and how many there were. The record is reused. */
  read(each: (record: Readonly<HistoryRecord>) => void): number;
  close(): void;
}

export function followHistory(path: string): HistoryReader {
  // 'a+' makes the file where its writer has not come to it yet.
  const file = openSync(path, 'a+');
  const chunk = Buffer.alloc(RECORD_BYTES * 4096);
  let position = 0;
  const record: HistoryRecord = {
    ...{ kind: KIND.addInvoked, stream: 0, group: 0, detail: 0, atMs: 0, writer: 0, client: 0, number: 0 },
    ...{ idMs: 0, idSeq: 0, readAtMs: 0 },
  };
  return {
    read(each) {
      let count = 0;
      for (;;) {
        const length = readSync(file, chunk, 0, chunk.length, position);
        const whole = length - (length % RECORD_BYTES);
        if (whole === 0) return count;
        for (let at = 0; at < whole; at += RECORD_BYTES) {
          record.kind = chunk[at] as Kind;
          record.stream = chunk[at + 1]!;
          record.group = chunk[at + 2]!;
          record.detail = chunk[at + 3]!;
          record.atMs = chunk.readUInt32LE(at + 4);
          record.writer = chunk.readUInt16LE(at + 8);
          record.client = chunk.readUInt16LE(at + 10);
          record.number = chunk.readUInt32LE(at + 12);
          record.idMs = chunk.readDoubleLE(at + 16);
          record.idSeq = chunk.readDoubleLE(at + 24);
          record.readAtMs = chunk.readUInt32LE(at + 32);
          each(record);
        }
        position += whole;
        count += whole / RECORD_BYTES;
      }
    },
    close() {
      closeSync(file);
    },
  };
}
