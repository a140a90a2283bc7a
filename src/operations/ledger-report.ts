/** What the ledger knows of streams, their groups and past recoveries, for status. Bounded: the busiest come first. */
import type { Logger } from 'pino';
import { messageOf } from '../errors.ts';
import { formatEntryId } from '../ledger/encoding/entry-id.ts';
import type { Ledger } from '../ledger/ledger.ts';
import type { IdleGroup } from '../ledger/retention/idle-groups.ts';
import type { LedgerSize } from '../ledger/retention/ledger-size.ts';
import type { Retention } from '../ledger/retention/retention.ts';
import type { Recovery } from '../recovery/recovery.ts';

export interface GroupReport {
  readonly name: string;
  readonly checkpointId: string;
  readonly lastDeliveredId: string;
  /** Entries above the checkpoint; at `LAG_ENTRIES_MAX` counting ends. */
  readonly lagEntries: number;
  /** Between the newest entry and the checkpoint. */
  readonly lagMs: number;
}

export interface StreamReport {
  readonly name: string;
  readonly database: number;
  readonly mode: string;
  readonly entriesAdded: number;
  readonly lastId: string;
  readonly groups: readonly GroupReport[];
}

export interface RecoveryReport {
  readonly stream: string;
  readonly cause: string;
  readonly noticedAt: string;
  /** From noticing to completion; absent while it goes on. */
  readonly tookMs?: number;
  readonly entriesRestored: number;
  readonly aliases: number;
  readonly possibleDuplicates: number;
  readonly lastError?: string;
}

export interface LedgerReport {
  readonly where: string;
  readonly embedded: boolean;
  readonly available: boolean;
  readonly streamsTotal: number;
  readonly committedTotal: number;
  readonly waitingRows: number;
  readonly state: string;
  readonly leads: boolean;
  readonly lossesTotal: number;
  readonly restoresTotal: number;
  /** Streams that could not be restored or published at the last attempt. */
  readonly failing: number;
  readonly lastError?: string;
  /** Empty while the ledger is not available. */
  readonly streams: readonly StreamReport[];
  readonly recoveries: readonly RecoveryReport[];
  /** How great it is, partition by partition; absent until it was first measured. */
  readonly size?: LedgerSize;
  /** Groups that have not moved for as long as the ledger keeps entries. */
  readonly idleGroups: readonly IdleGroup[];
}

export const LAG_ENTRIES_MAX = 10_000;
const STREAMS_MAX = 50;
const GROUPS_MAX = 20;
const RECOVERIES_MAX = 10;

const STREAMS = {
  name: 'status-streams',
  text: `
  SELECT stream.stream_id, stream.database, stream.name, stream.mode,
         coalesce(progress.added, 0)::float8 AS added, coalesce(newest.last_id, stream.seen_last_id) AS last_id
    FROM holdfast.stream AS stream
    LEFT JOIN (SELECT stream_id, sum(added) AS added FROM holdfast.stream_progress GROUP BY stream_id) AS progress
        USING (stream_id)
    -- Postgres before 18 has no max(bytea).
    LEFT JOIN (SELECT DISTINCT ON (stream_id) stream_id, last_id
                 FROM holdfast.stream_progress ORDER BY stream_id, last_id DESC) AS newest USING (stream_id)
   WHERE stream.ended_at IS NULL
   ORDER BY last_id DESC, stream.stream_id
   LIMIT ${STREAMS_MAX}`,
};

const GROUPS = {
  name: 'status-groups',
  text: `
  SELECT entry_group.stream_id, entry_group.name, entry_group.checkpoint_id, entry_group.last_delivered_id, lag.entries
    FROM (SELECT *, row_number() OVER (PARTITION BY stream_id ORDER BY progressed_at DESC) AS position
            FROM holdfast.consumer_group
           WHERE ended_at IS NULL AND stream_id = ANY ($1)) AS entry_group,
         LATERAL (SELECT count(*)::integer AS entries
                    FROM (SELECT FROM holdfast.entry
                           WHERE entry.stream_id = entry_group.stream_id AND entry.id > entry_group.checkpoint_id
                           LIMIT ${LAG_ENTRIES_MAX}) AS above) AS lag
   WHERE entry_group.position <= ${GROUPS_MAX}
   ORDER BY entry_group.name`,
};

const RECOVERIES = {
  name: 'status-recoveries',
  text: `
  SELECT stream.name, recovery.cause, recovery.noticed_at, recovery.completed_at, recovery.entries_restored::float8,
         recovery.aliases::float8, recovery.possible_duplicates::float8, recovery.last_error
    FROM holdfast.recovery AS recovery
    JOIN holdfast.stream AS stream USING (stream_id)
   ORDER BY recovery.recovery_id DESC
   LIMIT ${RECOVERIES_MAX}`,
};

interface StreamRow {
  stream_id: string;
  database: number;
  name: Buffer;
  mode: string;
  added: number;
  last_id: Buffer;
}

interface GroupRow {
  stream_id: string;
  name: Buffer;
  checkpoint_id: Buffer;
  last_delivered_id: Buffer;
  entries: number;
}

interface RecoveryRow {
  name: Buffer;
  cause: string;
  noticed_at: Date;
  completed_at: Date | null;
  entries_restored: number;
  aliases: number;
  possible_duplicates: number;
  last_error: string | null;
}

function millisecondsOf(id: Buffer): number {
  return Number(id.readBigUInt64BE(0));
}

function groupReport(row: GroupRow, lastId: Buffer): GroupReport {
  return {
    name: row.name.toString(),
    checkpointId: formatEntryId(row.checkpoint_id),
    lastDeliveredId: formatEntryId(row.last_delivered_id),
    lagEntries: row.entries,
    lagMs: row.entries === 0 ? 0 : Math.max(0, millisecondsOf(lastId) - millisecondsOf(row.checkpoint_id)),
  };
}

async function readStreams(ledger: Ledger): Promise<StreamReport[]> {
  const { rows: streams } = await ledger.pool.query<StreamRow>(STREAMS);
  const ids = streams.map((stream) => stream.stream_id);
  const { rows: groups } = await ledger.pool.query<GroupRow>({ ...GROUPS, values: [ids] });
  return streams.map((stream) => ({
    name: stream.name.toString(),
    database: stream.database,
    mode: stream.mode,
    entriesAdded: stream.added,
    lastId: formatEntryId(stream.last_id),
    groups: groups
      .filter((group) => group.stream_id === stream.stream_id)
      .map((group) => groupReport(group, stream.last_id)),
  }));
}

async function readRecoveries(ledger: Ledger): Promise<RecoveryReport[]> {
  const { rows } = await ledger.pool.query<RecoveryRow>(RECOVERIES);
  return rows.map((row) => ({
    stream: row.name.toString(),
    cause: row.cause,
    noticedAt: row.noticed_at.toISOString(),
    ...(row.completed_at === null ? {} : { tookMs: row.completed_at.getTime() - row.noticed_at.getTime() }),
    entriesRestored: row.entries_restored,
    aliases: row.aliases,
    possibleDuplicates: row.possible_duplicates,
    ...(row.last_error === null ? {} : { lastError: row.last_error }),
  }));
}

/** Never rejects: a ledger that cannot be read is reported as not available, with Postgres's error, which is logged too. */
export async function reportLedger(
  ledger: Ledger,
  recovery: Recovery,
  retention: Pick<Retention, 'status'>,
  place: { readonly where: string; readonly embedded: boolean },
  log: Logger,
): Promise<LedgerReport> {
  const { commit } = ledger.metrics();
  const { state, leads, lossesTotal, restoresTotal, failing, lastError } = recovery.status();
  const { size, idleGroups } = retention.status();
  const report = {
    ...place,
    streamsTotal: ledger.streams.size,
    committedTotal: commit.committedTotal,
    waitingRows: commit.waitingRows,
    state,
    leads,
    lossesTotal,
    restoresTotal,
    failing,
    ...(size === undefined ? {} : { size }),
    idleGroups,
    ...(lastError === undefined ? {} : { lastError }),
  };
  const unavailable = { ...report, available: false, streams: [], recoveries: [] };
  if (!ledger.postgres.available) return unavailable;
  try {
    const [streams, recoveries] = await Promise.all([readStreams(ledger), readRecoveries(ledger)]);
    return { ...report, available: true, streams, recoveries };
  } catch (thrown) {
    log.error({ err: thrown }, 'status could not read the ledger');
    return { ...unavailable, lastError: messageOf(thrown) };
  }
}
