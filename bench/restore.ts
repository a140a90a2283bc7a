/**
 * `npm run bench -- restore`: a KV store that lost everything, killed and started again empty behind a running Holdfast with that
 * many unacknowledged entries. Timed from the first PING that the KV store answers: until a worker that was blocked all the time
 * has its first entry, and until the last is back. The same entries, added directly by one pipelining connection, say what the
 * machine can do. Ends with exit code 1 where a bound is broken, or not every entry was delivered in order.
 */
import { readFileSync } from 'node:fs';
import { availableParallelism, loadavg } from 'node:os';
import { parseArgs } from 'node:util';
import { Redis } from 'ioredis';
import pg from 'pg';
import { encodeFields, writeRestoringXadd } from '../src/ledger/encoding/entry-fields.ts';
import { entryIdFrom, formatEntryId } from '../src/ledger/encoding/entry-id.ts';
import { BulkWriter } from '../src/recovery/kv/bulk-writer.ts';
import { type LedgerDatabases, startLedgerDatabases } from './ledger-databases.ts';
import { type KvBinary, startHoldfast, startKv } from './processes.ts';

type Print = (line: string) => void;

/** Seconds until the last of so many entries must be back. */
const BOUNDS: ReadonlyMap<number, number> = new Map([
  [100_000, 2],
  [1_000_000, 12],
]);
const VALUE_BYTES = 200;
const STREAM = 'task-queue';
const GROUP = 'workers';
/** Of Holdfast while it restores, beyond what it had before. */
const RESIDENT_MB_MAX = 256;
const FRAMES_BYTES = 256 * 1024;
const MINUTE_MS = 60_000;

function fieldsOf(n: number): Buffer {
  return encodeFields([Buffer.from('n'), Buffer.from(String(n)), Buffer.from('body'), Buffer.alloc(VALUE_BYTES, 120)]);
}

/** Entries per second that one connection adds, in frames as a restore sends them. */
async function directRate(port: number, entries: number): Promise<number> {
  const writer = await BulkWriter.open({ host: '127.0.0.1', port }, 0);
  const key = Buffer.from('direct');
  const fields = fieldsOf(0);
  const began = performance.now();
  for (let from = 0; from < entries; from += 500) {
    const frames = Buffer.allocUnsafe(FRAMES_BYTES);
    let bytes = 0;
    const to = Math.min(from + 500, entries);
    for (let n = from; n < to; n += 1) bytes = writeRestoringXadd(frames, bytes, key, `${n + 1}-0`, fields);
    writer.write(frames.subarray(0, bytes), to - from);
    await writer.ready();
  }
  await writer.drain();
  writer.close();
  return entries / ((performance.now() - began) / 1000);
}

/** Entries as many XADDs would have left them, none of them acknowledged. */
async function fillLedger(databaseUrl: string, entries: number): Promise<string> {
  const client = new pg.Client({ connectionString: databaseUrl });
  await client.connect();
  try {
    const base = Date.now() - entries;
    const { rows } = await client.query<{ stream_id: string }>(
      'SELECT stream_id FROM holdfast.stream WHERE name = $1 AND ended_at IS NULL',
      [Buffer.from(STREAM)],
    );
    const streamId = rows[0]!.stream_id;
    const [before, after] = fieldsOf(0).toString('latin1').split('$1\r\n0\r\n') as [string, string];
    await client.query(
      `INSERT INTO holdfast.entry (part, stream_id, epoch, id, fields)
       SELECT (SELECT max(part) FROM holdfast.entry_partition), $1, 1, int8send($2::bigint + n) || int8send(0),
              convert_to($3 || '$' || length(n::text) || E'\\r\\n' || n || E'\\r\\n' || $4, 'LATIN1')
         FROM generate_series(1, $5::integer) AS n`,
      [streamId, base, before, after, entries],
    );
    await client.query(
      `INSERT INTO holdfast.stream_progress (stream_id, slot, added, last_id) VALUES ($1, 0, $2, $3)
       ON CONFLICT (stream_id, slot) DO UPDATE SET added = stream_progress.added + $2, last_id = $3`,
      [streamId, entries, entryIdFrom(base + entries, 0)],
    );
    await client.query('ANALYZE holdfast.entry');
    return formatEntryId(entryIdFrom(base + entries, 0));
  } finally {
    await client.end();
  }
}

function residentMb(pid: number): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) / 1024;
}

function connect(port: number): Redis {
  const client = new Redis({ port, protocol: 2, retryStrategy: () => null, maxRetriesPerRequest: 0 });
  client.on('error', () => undefined);
  return client;
}

async function until<T>(what: string, read: () => Promise<T | undefined>, limitMs = MINUTE_MS): Promise<T> {
  const end = Date.now() + limitMs;
  for (;;) {
    const found = await read();
    if (found !== undefined) return found;
    if (Date.now() > end) throw new Error(`never came true: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Gives whether all bounds were kept. */
async function measure(print: Print, databases: LedgerDatabases, server: KvBinary, entries: number): Promise<boolean> {
  let kv = await startKv(server);
  const databaseUrl = await databases.create();
  const holdfast = await startHoldfast({ kvUrl: `redis://127.0.0.1:${kv.port}`, databaseUrl });
  const client = connect(holdfast.port);
  const worker = connect(holdfast.port);
  const database = new pg.Client({ connectionString: databaseUrl });
  await database.connect();
  try {
    await client.xgroup('CREATE', STREAM, GROUP, '0', 'MKSTREAM');
    const lastId = await fillLedger(databaseUrl, entries);
    const waiting = worker.call('XREADGROUP', 'GROUP', GROUP, 'c', 'COUNT', '1', 'BLOCK', '0', 'STREAMS', STREAM, '>');
    const before = residentMb(holdfast.pid);
    let greatest = before;
    const sampling = setInterval(() => (greatest = Math.max(greatest, residentMb(holdfast.pid))), 20);
    const { port } = kv;
    await kv.stop();
    kv = await startKv(server, [], port);
    const began = performance.now();
    await waiting;
    const firstSeconds = (performance.now() - began) / 1000;
    const tookSeconds = await until('the restore is complete', async () => {
      const { rows } = await database.query<{ seconds: number; entries: string }>(
        `SELECT entries_restored AS entries, extract(epoch FROM completed_at - began_at)::float8 AS seconds
           FROM holdfast.recovery WHERE completed_at IS NOT NULL`,
      );
      return rows[0]?.seconds;
    });
    clearInterval(sampling);
    const direct = connect(port);
    const length = await direct.xlen(STREAM);
    const [last] = await direct.xrevrange(STREAM, '+', '-', 'COUNT', 1);
    direct.disconnect();
    const rate = await directRate(port, Math.min(entries, 200_000));
    const bound = BOUNDS.get(entries);
    const grew = greatest - before;
    print(
      `${server} ${entries} entries: first delivered after ${firstSeconds.toFixed(2)} s` +
        `${bound === undefined ? '' : ` (bound ${bound} s)`}, of it restoring ${tookSeconds.toFixed(2)} s = ` +
        `${Math.round(entries / tookSeconds)} entries/s; direct ${Math.round(rate)} entries/s; ` +
        `Holdfast's memory ${before.toFixed(0)} MB and ${grew.toFixed(0)} MB more`,
    );
    const whole = length === entries && last?.[0] === lastId;
    if (!whole) print(`only ${length} entries came back, the last is ${last?.[0]}`);
    return whole && grew <= RESIDENT_MB_MAX && (bound === undefined || firstSeconds <= bound);
  } finally {
    client.disconnect();
    worker.disconnect();
    await database.end();
    await holdfast.stop();
    await kv.stop();
  }
}

export async function runRestoreBench(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      entries: { type: 'string', default: '100000,1000000' },
      rounds: { type: 'string', default: '3' },
      server: { type: 'string', default: 'redis-server,valkey-server' },
    },
  });
  const print: Print = (line) => void process.stdout.write(`${line}\n`);
  const databases = await startLedgerDatabases();
  try {
    print(`${availableParallelism()} cores, load ${loadavg()[0]!.toFixed(1)}, Node ${process.version}`);
    for (const entries of values.entries.split(',').map(Number)) {
      for (const server of values.server.split(',') as KvBinary[]) {
        for (let round = 0; round < Number(values.rounds); round += 1) {
          if (!(await measure(print, databases, server, entries))) process.exitCode = 1;
        }
      }
    }
  } finally {
    await databases.stop();
  }
}
