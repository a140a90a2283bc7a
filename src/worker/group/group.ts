/**
 * One stream as one consumer of its group sees it: every command that the worker sends about pending entries.
 *
 * Where an entry is, by the consumer that its pending entry names:
 *
 *   (new) ──XREADGROUP──▶ this worker ──acknowledge──▶ (gone)
 *                          ▲   │ move: failed, handed back
 *                 claimDue │   ▼
 *                       GROUP:retry ◀──takeOver── a worker whose claim was not renewed
 *
 * Invariants:
 *  - What is done to an entry in the name of this worker (acknowledge, renew, move) is done by a script that looks first
 *    whether the entry is still this worker's: who lost a claim can do nothing any more.
 *  - Claims from the dead carry the idle time that justified them, so that of two claimers one wins. What is due is looked
 *    for and claimed by one script: there is no race to lose.
 *  - JUSTID everywhere: the delivery count is the history of attempts (`retry-policy.ts`) and only `move` and `takeOver`
 *    write it.
 *
 * The retry consumer's entries wait for their time. The time is written into the idle time they are given, so that all
 * due ones, whatever their policy, have been idle for at least DUE_IDLE_MS, and the server itself picks them out. What is
 * beyond that is how long they have been due, whoever held them meanwhile.
 */
import type { Redis } from 'ioredis';
import { RETRY_DELAY_MS_MAX } from '../app.ts';
import { deliveryCount, type History, historyOf } from '../retry-policy.ts';
import { ACKNOWLEDGE, BURY, CLAIM_DUE, MOVE, REMOVE_CONSUMERS, RENEW } from './group-scripts.ts';

const DUE_IDLE_MS = 2 * RETRY_DELAY_MS_MAX;

/** An entry that has been given to this worker. */
export interface Delivery extends History {
  readonly id: string;
  /** Field, value, field, value, … */
  readonly fields: readonly string[];
  /** How long ago its time had come, ms; 0 for one that is new. */
  readonly overdueMs: number;
}

export interface GroupInfo {
  readonly name: string;
  readonly consumers: number;
  readonly pending: number;
  readonly lastDeliveredId: string;
  /** Entries not delivered yet; `undefined` where the server cannot tell. */
  readonly lag: number | undefined;
}

export interface ConsumerInfo {
  readonly name: string;
  readonly pending: number;
  /** Since it last asked for anything. */
  readonly idleMs: number;
}

export interface Group {
  readonly stream: string;
  readonly name: string;
  readonly consumer: string;
  /** Creates stream and group where they are missing. */
  ensure(): Promise<void>;
  /** Blocks up to `blockMs` on the reader's connection. */
  read(count: number, blockMs: number): Promise<Delivery[]>;
  /** Gives the IDs that were no longer this worker's. */
  acknowledge(ids: readonly string[]): Promise<string[]>;
  /** Gives those that are no longer this worker's, with their owner; `''`: nobody's, they are not pending. */
  renew(ids: readonly string[]): Promise<Map<string, string>>;
  /** To the retry consumer, due in `delayMs`; negative: since then. Gives the IDs that were no longer this worker's. */
  postpone(items: readonly (History & { id: string; delayMs: number })[]): Promise<string[]>;
  /** Writes a new history and keeps the claim. Gives the IDs that were no longer this worker's. */
  rewrite(items: readonly (History & { id: string })[]): Promise<string[]>;
  /** Takes entries whose time has come from the retry consumer: half of them the longest due, half by turns. */
  claimDue(count: number): Promise<Delivery[]>;
  /** Every consumer that holds something, but for the retry consumer. */
  holders(): Promise<ConsumerInfo[]>;
  /**
   * Moves what was claimed longer than `deadAfterMs` ago by one of them, and is not `held` by this one, to the retry
   * consumer, due since that claim. Gives their histories.
   */
  takeOver(
    holders: readonly ConsumerInfo[],
    deadAfterMs: number,
    held: (id: string) => boolean,
  ): Promise<(History & { id: string })[]>;
  /** Takes everything pending for itself, in stream order from `after` on: for the one active worker of an ordered stream. */
  adopt(
    after: string,
    count: number,
    held: (id: string) => boolean,
  ): Promise<{ entries: Delivery[]; last: string | undefined }>;
  /** Whether the time of any entry has come. */
  hasDue(): Promise<boolean>;
  /** What the server believes this worker to hold. */
  own(count: number): Promise<(History & { id: string })[]>;
  /** Adds the report to the dead letters and acknowledges, in one step; false when the claim was lost. */
  bury(deadLetters: string, id: string, report: readonly (string | Buffer)[]): Promise<boolean>;
  removeGoneConsumers(idleMs: number): Promise<number>;
  removeOwnConsumer(): Promise<void>;
  infos(): Promise<GroupInfo[]>;
  consumers(): Promise<ConsumerInfo[]>;
}

const TAKEOVER_BATCH = 500;
/** Bounds the time for which one look at what is due keeps the KV store busy to about a millisecond. */
const DUE_LOOK_MAX = 1000;
/** Whole fleets of workers may have died: one question after the other would take too long. */
const OWNERS_AT_ONCE = 100;

export interface GroupOptions {
  readonly stream: string;
  readonly name: string;
  readonly consumer: string;
  readonly startId: string;
  readonly commands: Redis;
  /** For `read` alone. */
  readonly reader: Redis;
}

/** The group, or its stream, is not there (any more). */
export function isNoGroup(error: unknown): boolean {
  return error instanceof Error && error.message.startsWith('NOGROUP');
}

export function retryConsumerOf(group: string): string {
  return `${group}:retry`;
}

export function createGroup(options: GroupOptions): Group {
  const { stream, name, consumer, commands, reader } = options;
  const retryConsumer = retryConsumerOf(name);
  const keys = [stream];

  async function pendingOf(owner: string, idleMs: number, count: number): Promise<PendingEntry[]> {
    return pendingEntries(await commands.call('XPENDING', stream, name, 'IDLE', idleMs, '-', '+', count, owner));
  }
  async function consumers(): Promise<ConsumerInfo[]> {
    const infos = (await commands.call('XINFO', 'CONSUMERS', stream, name)) as unknown[][];
    return infos.map(flatMap).map((info) => ({
      name: String(info.get('name')),
      pending: Number(info.get('pending')),
      idleMs: Number(info.get('idle')),
    }));
  }
  /** The entries behind claimed IDs. One that has been deleted is left out: the next claim drops it from the pending. */
  async function load(ids: readonly string[], histories: ReadonlyMap<string, History>): Promise<Delivery[]> {
    const replies = await Promise.all(ids.map((id) => commands.call('XRANGE', stream, id, id)));
    return (replies as [string, string[]][][]).flatMap((reply) =>
      reply.map(([id, fields]) => ({
        ...{ id, fields, overdueMs: 0 },
        ...(histories.get(id) ?? { attempt: 1, takeovers: 0 }),
      })),
    );
  }
  /** Where the next look at what is due goes on, and the next round. */
  let lookFrom = '-';
  let roundFrom = '-';
  let looks = 0;
  async function look(count: number): Promise<Delivery[]> {
    looks += 1;
    // Half of them, of one every other time.
    const ofRound = Math.floor((count + (looks % 2)) / 2);
    const args = [name, retryConsumer, consumer, DUE_IDLE_MS, count, ofRound, DUE_LOOK_MAX, lookFrom, roundFrom];
    const reply = (await CLAIM_DUE.run(commands, keys, args)) as [string, string, ...ClaimedEntry[]];
    const [nextLook, nextRound, ...claimed] = reply;
    lookFrom = nextLook;
    roundFrom = nextRound;
    return claimed.map(([id, idleMs, deliveries, fields]) => ({
      ...{ id, fields, overdueMs: idleMs - DUE_IDLE_MS },
      ...historyOf(deliveries),
    }));
  }

  return {
    stream,
    name,
    consumer,
    async ensure() {
      try {
        await commands.call('XGROUP', 'CREATE', stream, name, options.startId, 'MKSTREAM');
      } catch (error) {
        if (!(error instanceof Error && error.message.startsWith('BUSYGROUP'))) throw error;
      }
    },
    async read(count, blockMs) {
      const reply = (await reader.call(
        'XREADGROUP',
        ...['GROUP', name, consumer, 'COUNT', count, 'BLOCK', blockMs, 'STREAMS', stream, '>'],
      )) as [string, [string, string[]][]][] | null;
      return reply?.[0]?.[1].map(([id, fields]) => ({ id, fields, overdueMs: 0, attempt: 1, takeovers: 0 })) ?? [];
    },
    async acknowledge(ids) {
      return (await ACKNOWLEDGE.run(commands, keys, [name, consumer, ...ids])) as string[];
    },
    async renew(ids) {
      return pairs((await RENEW.run(commands, keys, [name, consumer, ...ids])) as string[]);
    },
    async postpone(items) {
      const moves = items.flatMap((item) => [item.id, DUE_IDLE_MS - item.delayMs, deliveryCount(item)]);
      return (await MOVE.run(commands, keys, [name, consumer, retryConsumer, ...moves])) as string[];
    },
    async rewrite(items) {
      const moves = items.flatMap((item) => [item.id, 0, deliveryCount(item)]);
      return (await MOVE.run(commands, keys, [name, consumer, consumer, ...moves])) as string[];
    },
    async claimDue(count) {
      const begun = lookFrom;
      const claimed = await look(count);
      // What is left of the round was too little: the next one begins at once.
      if (begun !== '-' && lookFrom === '-' && claimed.length < count)
        claimed.push(...(await look(count - claimed.length)));
      return claimed;
    },
    async holders() {
      return (await consumers()).filter((owner) => owner.pending > 0 && owner.name !== retryConsumer);
    },
    async takeOver(holders, deadAfterMs, held) {
      const taken: (History & { id: string })[] = [];
      const claim = async ({ id, idleMs, deliveries }: PendingEntry): Promise<void> => {
        const before = historyOf(deliveries);
        const history = { attempt: before.attempt, takeovers: before.takeovers + 1 };
        const claimed = (await commands.call(
          'XCLAIM',
          ...[stream, name, retryConsumer, deadAfterMs, id],
          ...['IDLE', DUE_IDLE_MS + idleMs, 'RETRYCOUNT', deliveryCount(history), 'JUSTID'],
        )) as string[];
        if (claimed.length > 0) taken.push({ id, ...history });
      };
      for (let i = 0; i < holders.length && taken.length < TAKEOVER_BATCH; i += OWNERS_AT_ONCE) {
        const batch = holders.slice(i, i + OWNERS_AT_ONCE);
        const stale = await Promise.all(batch.map((owner) => pendingOf(owner.name, deadAfterMs, TAKEOVER_BATCH)));
        await Promise.all(stale.flat().map((entry) => (held(entry.id) ? undefined : claim(entry))));
      }
      return taken;
    },
    async adopt(after, count, held) {
      const reply = await commands.call('XPENDING', stream, name, `(${after}`, '+', count);
      const pending = pendingEntries(reply);
      const histories = new Map<string, History>();
      const claims = pending
        .filter((entry) => !held(entry.id))
        .map(async (entry) => {
          const before = historyOf(entry.deliveries);
          const takeovers = before.takeovers + (entry.consumer === consumer ? 0 : 1);
          histories.set(entry.id, { attempt: before.attempt, takeovers });
          const count = deliveryCount({ attempt: before.attempt, takeovers });
          return (await commands.call(
            'XCLAIM',
            ...[stream, name, consumer, 0, entry.id, 'RETRYCOUNT', count, 'JUSTID'],
          )) as string[];
        });
      const claimed = (await Promise.all(claims)).flat();
      return { entries: await load(claimed, histories), last: pending.at(-1)?.id };
    },
    async hasDue() {
      return (await pendingOf(retryConsumer, DUE_IDLE_MS, 1)).length > 0;
    },
    async own(count) {
      return (await pendingOf(consumer, 0, count)).map(({ id, deliveries }) => ({ id, ...historyOf(deliveries) }));
    },
    async bury(deadLetters, id, report) {
      return (await BURY.run(commands, [stream, deadLetters], [name, consumer, id, ...report])) === 1;
    },
    async removeGoneConsumers(idleMs) {
      const args = [name, idleMs, '', consumer, retryConsumer];
      return (await REMOVE_CONSUMERS.run(commands, keys, args)) as number;
    },
    async removeOwnConsumer() {
      await REMOVE_CONSUMERS.run(commands, keys, [name, 0, consumer]);
    },
    consumers,
    async infos() {
      const groups = (await commands.call('XINFO', 'GROUPS', stream)) as unknown[][];
      return groups.map(flatMap).map((info) => {
        const lag = info.get('lag');
        return {
          name: String(info.get('name')),
          consumers: Number(info.get('consumers')),
          pending: Number(info.get('pending')),
          lastDeliveredId: String(info.get('last-delivered-id')),
          lag: typeof lag === 'number' ? lag : undefined,
        };
      });
    },
  };
}

type ClaimedEntry = [id: string, idleMs: number, deliveries: number, fields: string[]];

interface PendingEntry {
  readonly id: string;
  readonly consumer: string;
  readonly idleMs: number;
  readonly deliveries: number;
}

function pendingEntries(reply: unknown): PendingEntry[] {
  return (reply as [string, string, number, number][]).map(([id, consumer, idleMs, deliveries]) => ({
    id,
    consumer,
    idleMs,
    deliveries,
  }));
}

function flatMap(flat: unknown[]): Map<unknown, unknown> {
  const map = new Map<unknown, unknown>();
  for (let i = 0; i < flat.length; i += 2) map.set(flat[i], flat[i + 1]);
  return map;
}

function pairs(flat: string[]): Map<string, string> {
  return flatMap(flat) as Map<string, string>;
}
