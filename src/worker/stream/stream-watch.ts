/**
 * Looks after a stream from outside of the flow: figures for metrics and health, trimming, consumers that are long gone.
 *
 * Trimming removes what every group has acknowledged: below a group's checkpoint, which is read as the ledger reads it.
 * XINFO GROUPS first; with nothing pending the checkpoint is the last delivered ID of that same reply, otherwise just
 * below the smallest pending ID, read afterwards. (The other order could miss a delivery in between.) Where one failing
 * entry holds the checkpoint for long, what this worker itself acknowledged above it is deleted by ID.
 */
import type { Redis } from 'ioredis';
import type { Logger } from 'pino';
import type { App } from '../app.ts';
import { compareIds, idMilliseconds, nextId, previousId } from '../group/entry-id.ts';
import { type Group, type GroupInfo, retryConsumerOf } from '../group/group.ts';
import type { WorkerMetrics } from '../metrics.ts';

const LOOK_MS = 1000;
const TIDY_MS = 60_000;
const GONE_MS = 10 * 60_000;
/** Idle for less, a consumer is alive: each reads at least every few seconds. */
const PRESENT_MS = 10_000;
const ABOVE_CHECKPOINT_MAX = 10_000;
const DELETE_BATCH = 1000;

export interface StreamFigures {
  /** Entries that the group has not been given yet; `undefined` where the server cannot tell. */
  readonly lag: number | undefined;
  /** `performance.now()` of the first look since when there were some at every look, if there are any. */
  readonly laggingSince: number;
  readonly pending: number;
  /** Other workers read this stream. */
  readonly othersPresent: boolean;
  /** `performance.now()` of the look that gave these figures. */
  readonly at: number;
}

export interface StreamWatch {
  readonly figures: StreamFigures;
  /** These entries have been acknowledged by this worker. */
  acknowledged(ids: readonly string[]): void;
  /** Does what is due; called often. */
  look(): Promise<void>;
}

export function createStreamWatch(options: {
  readonly app: App;
  readonly group: Group;
  readonly commands: Redis;
  readonly metrics: WorkerMetrics;
  readonly log: Logger;
}): StreamWatch {
  const { app, group, commands, metrics, log } = options;
  const { stream } = group;
  const labels = { stream };
  const deadLetters = app.deadLetterStream(stream);
  const retryConsumer = retryConsumerOf(group.name);
  const begunAt = performance.now();
  let figures: StreamFigures = { lag: 0, laggingSince: begunAt, pending: 0, othersPresent: false, at: begunAt };
  let tidiedAt = begunAt;
  let trimmedTo = '0-0';
  /** Acknowledged here and, as far as known, still in the stream. */
  let above: string[] = [];

  async function smallestPending(name: string): Promise<string | undefined> {
    const [, smallest] = (await commands.call('XPENDING', stream, name)) as [number, string | null];
    return smallest ?? undefined;
  }
  async function checkpointOf(info: GroupInfo): Promise<string> {
    const smallest = info.pending === 0 ? undefined : await smallestPending(info.name);
    return smallest === undefined ? (info.pending === 0 ? info.lastDeliveredId : '0-0') : previousId(smallest);
  }
  async function trim(infos: readonly GroupInfo[]): Promise<void> {
    const checkpoints = await Promise.all(infos.map(checkpointOf));
    const floor = checkpoints.reduce((least, id) => (compareIds(id, least) < 0 ? id : least));
    if (compareIds(floor, trimmedTo) !== 0 && floor !== '0-0') {
      const removed = Number(await commands.call('XTRIM', stream, 'MINID', '=', nextId(floor)));
      metrics.trimmed.inc(labels, removed);
      trimmedTo = floor;
      above = above.filter((id) => compareIds(id, floor) > 0);
    }
    // Other groups may still need what is above; only where there is none is an acknowledged entry nobody's any more.
    if (infos.length !== 1 || above.length < ABOVE_CHECKPOINT_MAX / 2) return;
    const ids = above;
    above = [];
    for (let i = 0; i < ids.length; i += DELETE_BATCH) {
      metrics.trimmed.inc(labels, Number(await commands.call('XDEL', stream, ...ids.slice(i, i + DELETE_BATCH))));
    }
  }
  async function oldestAgeMs(info: GroupInfo): Promise<number> {
    let oldest = info.pending > 0 ? await smallestPending(group.name) : undefined;
    if (oldest === undefined && info.lag !== 0) {
      const next = (await commands.call('XRANGE', stream, `(${info.lastDeliveredId}`, '+', 'COUNT', 1)) as [string][];
      oldest = next[0]?.[0];
    }
    return oldest === undefined ? 0 : Math.max(0, Date.now() - idMilliseconds(oldest));
  }
  async function measure(infos: readonly GroupInfo[]): Promise<void> {
    const info = infos.find((candidate) => candidate.name === group.name);
    if (info === undefined) {
      await group.ensure();
      return;
    }
    const consumers = (await group.consumers()).filter(({ name }) => name !== retryConsumer);
    const othersPresent = consumers.some(({ name, idleMs }) => name !== group.consumer && idleMs < PRESENT_MS);
    metrics.pending.set(labels, info.pending);
    metrics.consumers.set(labels, consumers.length);
    if (info.lag !== undefined) metrics.queueDepth.set(labels, info.lag);
    metrics.oldestAgeSeconds.set(labels, (await oldestAgeMs(info)) / 1000);
    metrics.deadLetters.set(labels, Number(await commands.call('XLEN', deadLetters)));
    const at = performance.now();
    const laggingSince = (figures.lag ?? 0) > 0 ? figures.laggingSince : at;
    figures = { lag: info.lag, laggingSince, pending: info.pending, othersPresent, at };
  }

  return {
    get figures() {
      return figures;
    },
    acknowledged(ids) {
      if (!app.trim) return;
      for (const id of ids) above.push(id);
      if (above.length > 2 * ABOVE_CHECKPOINT_MAX) above = above.slice(-ABOVE_CHECKPOINT_MAX);
    },
    async look() {
      const now = performance.now();
      if (now - figures.at < LOOK_MS) return;
      const infos = await group.infos();
      if (app.trim && infos.length > 0) await trim(infos);
      await measure(infos);
      if (now - tidiedAt < TIDY_MS) return;
      tidiedAt = now;
      const removed = await group.removeGoneConsumers(GONE_MS);
      if (removed > 0) log.info({ consumers: removed }, 'removed consumers that are long gone');
    },
  };
}
