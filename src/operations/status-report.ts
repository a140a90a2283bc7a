/** What `/status` gives as JSON and `holdfast status` prints. Fields are added, never renamed. */
import type { CacheSnapshot } from '../cache/cache.ts';
import { cacheText, FAMILY_HEADING, INVALIDATION_HEADING } from './cache-figures.ts';
import type { KvReport } from './kv-inspector.ts';
import { LAG_ENTRIES_MAX, type LedgerReport } from './ledger-report.ts';

export interface StatusReport {
  readonly version: string;
  readonly processId: number;
  /** How many serve behind the port, where there are several. */
  readonly processes?: number;
  readonly startedAt: string;
  readonly listen: readonly string[];
  readonly pooling: string;
  readonly clients: {
    readonly connected: number;
    readonly connectedTotal: number;
    readonly refusedTotal: number;
    readonly requestsTotal: number;
    readonly lanes: number;
  };
  readonly kv: KvReport & {
    readonly where: string;
    readonly embedded: boolean;
    /** Of the embedded one: how often it was started again after it ended unasked. */
    readonly restarts?: number;
    readonly processId?: number;
  };
  readonly ledger: LedgerReport;
  readonly cache: CacheSnapshot;
  readonly memory: { readonly residentBytes: number; readonly heapUsedBytes: number };
}

export function formatBytes(count: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  const power = count < 1 ? 0 : Math.min(Math.floor(Math.log(count) / Math.log(1024)), units.length - 1);
  return `${(count / 1024 ** power).toFixed(power === 0 ? 0 : 1)} ${units[power]}`;
}

export function formatDuration(seconds: number): string {
  const days = Math.floor(seconds / 86_400);
  const hours = Math.floor((seconds % 86_400) / 3600);
  const minutes = Math.floor((seconds % 3600) / 60);
  if (days > 0) return `${days} d ${hours} h`;
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.floor(seconds)} s`;
}

type Row = readonly [string, string];

function kvRows(kv: StatusReport['kv']): Row[] {
  const name = kv.server === undefined ? '' : `${kv.server} ${kv.version}, `;
  const rows: Row[] = [['KV store', `${name}${kv.reachable ? 'reachable' : 'NOT REACHABLE'} at ${kv.where}`]];
  if (kv.embedded) rows.push(['', `embedded, process ${kv.processId ?? 'down'}, restarted ${kv.restarts} times`]);
  if (kv.usedMemoryBytes !== undefined) {
    const limit = kv.maxMemoryBytes ? `of ${formatBytes(kv.maxMemoryBytes)}, ${kv.maxMemoryPolicy}` : 'without a limit';
    rows.push(['KV memory', `${formatBytes(kv.usedMemoryBytes)} ${limit}, ${kv.evictedKeys} keys evicted`]);
  }
  const lookups = (kv.keyspaceHits ?? 0) + (kv.keyspaceMisses ?? 0);
  if (lookups > 0) {
    const percent = ((100 * (kv.keyspaceHits ?? 0)) / lookups).toFixed(1);
    rows.push(['KV hit ratio', `${percent} % of ${lookups} lookups`]);
  }
  return rows;
}

function sizeRows({ size, idleGroups }: LedgerReport): Row[] {
  const idle = idleGroups.map(
    ({ group, stream, idleSince }): Row => ['', `group ${group} of ${stream} has not moved since ${idleSince}`],
  );
  if (size === undefined) return idle;
  const { bytes, rows, partitions, oldestRowAt, rowsPerDay } = size;
  const since = oldestRowAt === undefined ? '' : `, oldest of ${oldestRowAt}`;
  const text = `${formatBytes(bytes)}, about ${rows} rows in ${partitions.length} partitions, ${rowsPerDay} a day${since}`;
  return [['Ledger size', text], ...idle];
}

function ledgerRows(ledger: LedgerReport): Row[] {
  const place = ledger.embedded ? `embedded at ${ledger.where}` : ledger.where;
  const state = ledger.available ? 'available' : 'NOT AVAILABLE';
  const leader = ledger.leads ? ', leads' : '';
  const failing = ledger.failing === 0 ? '' : `, ${ledger.failing} COULD NOT BE RESTORED YET`;
  return [
    ['Ledger', `${state}, ${place}, ${ledger.committedTotal} entries committed, ${ledger.waitingRows} waiting`],
    ...sizeRows(ledger),
    [
      'Recovery',
      `${ledger.state}${leader}, ${ledger.lossesTotal} losses noticed, ${ledger.restoresTotal} streams restored${failing}`,
    ],
    ...(ledger.lastError === undefined ? [] : [['', `last error: ${ledger.lastError}`] as const]),
  ];
}

function table(heading: readonly string[], lines: readonly (readonly string[])[]): string {
  if (lines.length === 0) return '';
  const all = [heading, ...lines];
  const widths = heading.map((_, column) => Math.max(...all.map((line) => line[column]!.length)));
  return `\n${all
    .map((line) =>
      line
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join('  ')
        .trimEnd(),
    )
    .join('\n')}\n`;
}

function streamTable(streams: LedgerReport['streams']): string {
  const lines = streams.flatMap((stream) => {
    const name = stream.database === 0 ? stream.name : `${stream.name} (database ${stream.database})`;
    const own = [name, stream.mode, String(stream.entriesAdded), stream.lastId];
    if (stream.groups.length === 0) return [[...own, '-', '', '', '']];
    return stream.groups.map((group, index) => [
      ...(index === 0 ? own : ['', '', '', '']),
      group.name,
      group.checkpointId,
      group.lagEntries >= LAG_ENTRIES_MAX ? `${LAG_ENTRIES_MAX} or more` : String(group.lagEntries),
      formatDuration(group.lagMs / 1000),
    ]);
  });
  return table(['STREAM', 'MODE', 'ENTRIES', 'LAST ID', 'GROUP', 'CHECKPOINT', 'BEHIND', 'BY'], lines);
}

function recoveryTable(recoveries: LedgerReport['recoveries']): string {
  const lines = recoveries.map((recovery) => [
    recovery.noticedAt,
    recovery.stream,
    recovery.cause,
    recovery.tookMs === undefined ? 'under way' : `${recovery.tookMs} ms`,
    String(recovery.entriesRestored),
    String(recovery.possibleDuplicates),
    recovery.lastError ?? '',
  ]);
  return table(['NOTICED', 'STREAM', 'CAUSE', 'TOOK', 'RESTORED', 'POSSIBLE DUPLICATES', 'ERROR'], lines);
}

/** For a person: a heading and aligned lines. */
export function formatStatus(report: StatusReport, now: Date): string {
  const upSeconds = (now.getTime() - Date.parse(report.startedAt)) / 1000;
  const { clients, memory } = report;
  const cache = cacheText(report.cache);
  const rows: Row[] = [
    [
      'Holdfast',
      `${report.version}, process ${report.processId}${report.processes === undefined ? '' : ` with ${report.processes} behind it`}, up ${formatDuration(upSeconds)}`,
    ],
    ['Listening', `${report.listen.join(', ')} (pooling: ${report.pooling})`],
    [
      'Clients',
      `${clients.connected} connected (${clients.connectedTotal} since start, ${clients.refusedTotal} refused), ${clients.lanes} upstream connections, ${clients.requestsTotal} requests`,
    ],
    ...kvRows(report.kv),
    ...ledgerRows(report.ledger),
    ...cache.rows,
    ['Memory', `${formatBytes(memory.residentBytes)} resident, ${formatBytes(memory.heapUsedBytes)} heap`],
  ];
  const width = Math.max(...rows.map(([name]) => name.length));
  const summary = `${rows.map(([name, text]) => `${name.padEnd(width)}  ${text}`).join('\n')}\n`;
  return [
    summary,
    streamTable(report.ledger.streams),
    recoveryTable(report.ledger.recoveries),
    table(FAMILY_HEADING, cache.families),
    table(INVALIDATION_HEADING, cache.invalidations),
  ].join('');
}
