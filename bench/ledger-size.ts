/**
 * `npm run bench -- ledger-size`: whether the ledger's plan of partitions and indexes holds at very many rows. Each read is timed
 * cold (the first time) and warm; commits are timed alone and while retention drops the oldest partition. Ends with exit code 1
 * where a statement read rows of partitions one after the other: what is fast on few rows is not fast on many.
 */
import { parseArgs } from 'node:util';
import type pg from 'pg';
import pino from 'pino';
import { startPostgres } from '../src/embedded/postgres.ts';
import { ENTRY_ID_ZERO, entryIdFrom } from '../src/ledger/encoding/entry-id.ts';
import { type Ledger, openLedger } from '../src/ledger/ledger.ts';
import { readIdleGroups } from '../src/ledger/retention/idle-groups.ts';
import { readLedgerSize } from '../src/ledger/retention/ledger-size.ts';
import { streamsIn } from '../src/ledger/retention/partition-streams.ts';
import { Retention } from '../src/ledger/retention/retention.ts';
import { readHorizons } from '../src/ledger/retention/retention-horizon.ts';
import { readKnownStreams } from '../src/recovery/detect/known-streams.ts';
import { buildLargeLedger, STREAMS } from './large-ledger.ts';
import { temporaryDirectory } from './processes.ts';

const SETTINGS = {
  fsync: 'off',
  full_page_writes: 'off',
  wal_level: 'minimal',
  max_wal_senders: '0',
  max_wal_size: '4GB',
  maintenance_work_mem: '512MB',
  // so that counters of scans are of our statements alone
  autovacuum: 'off',
};
const DAY_MS = 86_400_000;
const COMMIT_EVERY_MS = 10;
const COMMITS_ALONE_MS = 3000;

/** The first read of each table by `readLedgerSize` ends at its first row. */
const ROWS_READ_MAX = 1000;

type Print = (line: string) => void;

/** Reads of restore, reconciler and status, as they are there: $1 is a stream, $2 its group's checkpoint. */
const READS: readonly (readonly [string, string])[] = [
  [
    'restore, a page above the checkpoint',
    'SELECT id, fields, maxlen FROM holdfast.entry WHERE stream_id = $1 AND id > $2 ORDER BY id LIMIT 5000',
  ],
  ['reconciler, rows above the last look', 'SELECT count(*) FROM holdfast.entry WHERE stream_id = $1 AND id > $2'],
  [
    'reconciler, newest row at or below',
    'SELECT id FROM holdfast.entry WHERE stream_id = $1 AND id <= $2 ORDER BY id DESC LIMIT 1',
  ],
  ['writer, greatest ID', 'SELECT id, $2::bytea FROM holdfast.entry WHERE stream_id = $1 ORDER BY id DESC LIMIT 1'],
];

async function timed(print: Print, what: string, read: () => Promise<unknown>): Promise<void> {
  const ms: string[] = [];
  for (let time = 0; time < 2; time += 1) {
    const began = performance.now();
    await read();
    ms.push((performance.now() - began).toFixed(1));
  }
  print(`${what.padEnd(40)} ${ms[0]!.padStart(8)} ms cold ${ms[1]!.padStart(8)} ms warm`);
}

/** But for partition 1, whose counters go with it. */
async function rowsReadOneByOne(pool: pg.Pool): Promise<number> {
  await pool.query('SELECT pg_stat_force_next_flush()');
  const { rows } = await pool.query<{ rows: number }>(
    `SELECT coalesce(sum(seq_tup_read), 0)::float8 AS rows FROM pg_stat_user_tables
      WHERE schemaname = 'holdfast' AND relname ~ '^entry_[0-9]+$' AND relname <> 'entry_1'`,
  );
  return rows[0]!.rows;
}

/** Commits one entry after the other until `until` resolves. */
async function commitMeanwhile(print: Print, ledger: Ledger, what: string, until: Promise<unknown>): Promise<void> {
  const stream = ledger.streams.find(0, Buffer.from('stream-1'))!;
  const ms: number[] = [];
  let done = false;
  const finished = until.finally(() => {
    done = true;
  });
  while (!done) {
    const began = performance.now();
    const row = { stream, id: entryIdFrom(Date.now() + DAY_MS * 365, ms.length), epoch: stream.epoch };
    const args = [Buffer.from('field'), Buffer.from('value')];
    const outcome = await ledger.writer.commit({ ...row, args, firstField: 0, maxlen: undefined });
    if (outcome !== 'committed') throw new Error(`a commit ended as ${outcome}`);
    ms.push(performance.now() - began);
    await new Promise((resolve) => setTimeout(resolve, COMMIT_EVERY_MS));
  }
  await finished;
  ms.sort((a, b) => a - b);
  const at = (share: number) => ms[Math.min(ms.length - 1, Math.floor(ms.length * share))]!.toFixed(1);
  print(`${what.padEnd(40)} p50 ${at(0.5)} ms, p99 ${at(0.99)} ms, longest ${at(1)} ms of ${ms.length}`);
}

async function measure(print: Print, databaseUrl: string): Promise<boolean> {
  const log = pino({ level: 'silent' });
  const ledger = await openLedger({ databaseUrl, name: 'bench', log });
  const { pool } = ledger;
  try {
    const before = await rowsReadOneByOne(pool);
    const size = await readLedgerSize(pool);
    print(`${size.rows} rows, ${(size.bytes / 2 ** 30).toFixed(2)} GB, ${size.partitions.length} partitions`);
    const streamIds = Array.from({ length: STREAMS }, (_, index) => index + 1);
    const { rows: groups } = await pool.query<{ checkpoint_id: Buffer }>(
      'SELECT checkpoint_id FROM holdfast.consumer_group WHERE stream_id = 1',
    );
    for (const [what, text] of READS) await timed(print, what, () => pool.query(text, [1, groups[0]!.checkpoint_id]));
    await timed(print, `restore, a page from the beginning`, () => pool.query(READS[0]![1], [1, ENTRY_ID_ZERO]));
    await timed(print, `look, ${STREAMS} streams`, () => readKnownStreams(pool, undefined));
    await timed(print, `retention, ${STREAMS} horizons`, () => readHorizons(pool, streamIds));
    await timed(print, 'retention, size of the ledger', () => readLedgerSize(pool));
    await timed(print, `retention, ${STREAMS} groups all idle`, () => readIdleGroups(pool, -1));
    const client = await ledger.postgres.connect();
    try {
      await timed(print, 'retention, streams of a partition', () => streamsIn(client, 1));
    } finally {
      await client.end();
    }

    const alone = new Promise((resolve) => setTimeout(resolve, COMMITS_ALONE_MS));
    await commitMeanwhile(print, ledger, 'commits alone', alone);
    await pool.query(`UPDATE holdfast.entry_partition SET closed_at = closed_at - interval '8 days' WHERE part = 1`);
    const retention = new Retention({
      ledger,
      retentionMs: 7 * DAY_MS,
      leader: () => ({ leads: true, leaderEpoch: 0 }),
      limits: { partitionBytesMax: Number.MAX_SAFE_INTEGER },
      log,
    });
    const began = performance.now();
    const passing = retention.pass();
    await commitMeanwhile(print, ledger, 'commits while a partition is dropped', passing);
    const { dropped, kept } = await passing;
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    print(`partitions dropped: ${dropped.join(', ')}, with ${kept} survivors kept, in ${seconds} s`);
    const oneByOne = (await rowsReadOneByOne(pool)) - before;
    print(`rows of partitions read one after the other: ${oneByOne}`);
    return dropped.length === 1 && kept > 0 && oneByOne <= ROWS_READ_MAX;
  } finally {
    await ledger.close();
  }
}

export async function runLedgerSizeBench(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      rows: { type: 'string', default: '2000000' },
      'partition-rows': { type: 'string', default: '250000' },
    },
  });
  const print: Print = (line) => void process.stdout.write(`${line}\n`);
  const server = await startPostgres({ dataDir: temporaryDirectory('ledger-size'), settings: SETTINGS });
  try {
    const size = { rows: Number(values.rows), partitionRows: Number(values['partition-rows']) };
    await buildLargeLedger(server.url, size, (line) => void process.stderr.write(`${line}\n`));
    if (!(await measure(print, server.url))) process.exitCode = 1;
  } finally {
    await server.stop();
  }
}
