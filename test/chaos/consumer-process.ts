/**
 * A consumer process: for each plan of its slot one consumer of a group, with a connection that reads (and blocks)
 * and one that acknowledges and takes over what others left behind. Entries are worked on for a random time; now and
 * then a consumer forgets everything it holds and starts again under another name, as if it had crashed.
 */
import type { Redis } from 'ioredis';
import { messageOf } from '../../src/errors.ts';
import {
  answered,
  connectClient,
  delay,
  dropClient,
  openErrorLog,
  protocolOf,
  readSettings,
} from './client-process.ts';
import { type EventIdentity, eventFields, eventOf, fieldsEqual } from './event-fields.ts';
import { DELIVERY, KIND, openHistory, runClock, WRONG_FIELDS } from './history.ts';
import { seededRandom } from './seeded-random.ts';
import { CLAIM_EVERY_MS, CLAIM_IDLE_MS, CONSUMERS, type ConsumerPlan, STREAMS, streamIndex } from './workload.ts';

type EntryReply = readonly [id: Buffer, fields: readonly Buffer[] | null];
type StreamReply = readonly [stream: Buffer, entries: readonly EntryReply[]];
/** A list of pairs in RESP2; ioredis gives a RESP3 map as keys and values in turns. */
type ReadReply = readonly StreamReply[] | readonly (Buffer | readonly EntryReply[])[] | null;
type ClaimReply = readonly [cursor: Buffer, entries: readonly EntryReply[], deleted: readonly Buffer[]];

const settings = readSettings();
const now = runClock(BigInt(settings.startNs));
const history = openHistory(settings.historyPath, settings.client, now);
const errors = openErrorLog(settings.errorsPath, now);
const random = seededRandom(`${settings.seed}/consumer/${settings.client}`);
const plans = CONSUMERS[settings.slot]!;
const ACK_SCRIPT = "return redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 2))";
/** Entries one consumer works on at a time. */
const IN_HAND_MAX = 400;
const FORGETS_EVERY_MS = 40_000;
const CLAIM_COUNT = 100;

let stopping = false;

interface InHand {
  readonly stream: number;
  readonly group: number;
  readonly id: string;
  readonly idMs: number;
  readonly idSeq: number;
  /** `undefined`: not an event of this run. */
  readonly event: EventIdentity | undefined;
}

function streamsOf(reply: ReadReply): readonly StreamReply[] {
  if (reply === null || !Buffer.isBuffer(reply[0])) return (reply ?? []) as readonly StreamReply[];
  return reply.flatMap((key, i) => (i % 2 === 0 ? [[key, reply[i + 1]] as unknown as StreamReply] : []));
}

function groupIndex(stream: number, group: string): number {
  return STREAMS[stream]!.groups.indexOf(group);
}

/** Writes the delivery down and gives what is to be worked on. */
function receive(stream: number, group: number, entry: EntryReply, how: number, readAtMs: number): InHand {
  const id = entry[0].toString('latin1');
  const [ms, seq] = id.split('-');
  const where = { stream, group, idMs: Number(ms), idSeq: Number(seq), readAtMs, detail: how };
  const fields = entry[1];
  const event = fields === null ? undefined : eventOf(fields);
  if (fields === null) history.write({ kind: KIND.deliveredNil, ...where });
  else if (event === undefined) history.write({ kind: KIND.deliveredForeign, ...where });
  else {
    const right = fieldsEqual(fields, eventFields(settings.seed, event));
    history.write({ kind: KIND.delivered, ...where, ...event, detail: how | (right ? 0 : WRONG_FIELDS) });
  }
  return { ...where, id, event };
}

async function acknowledge(client: Redis, plan: ConsumerPlan, entries: readonly InHand[]): Promise<void> {
  const first = entries[0]!;
  const stream = STREAMS[first.stream]!;
  const ids = entries.map((entry) => entry.id);
  const write = (kind: typeof KIND.ackInvoked | typeof KIND.ackOk | typeof KIND.ackUnknown, detail = 0): void => {
    for (const { stream, group, idMs, idSeq, event } of entries) {
      if (event !== undefined) history.write({ kind, stream, group, idMs, idSeq, detail, ...event });
    }
  };
  write(KIND.ackInvoked);
  history.flush();
  try {
    const request =
      plan.acknowledge === 'script'
        ? client.call('EVAL', ACK_SCRIPT, '1', stream.name, plan.group, ...ids)
        : client.call('XACK', stream.name, plan.group, ...ids);
    const count = await answered(client, request);
    write(KIND.ackOk, count === entries.length ? 1 : 0);
    if (!stream.deletesHandled) return;
    for (const { stream, group, idMs, idSeq, event } of entries) {
      if (event !== undefined) history.write({ kind: KIND.deleteInvoked, stream, group, idMs, idSeq, ...event });
    }
    history.flush();
    await answered(client, client.call('XDEL', stream.name, ...ids));
    for (const { stream, group, idMs, idSeq, event } of entries) {
      if (event !== undefined) history.write({ kind: KIND.deleteOk, stream, group, idMs, idSeq, ...event });
    }
  } catch (error) {
    errors.add('XACK', error);
    write(KIND.ackUnknown);
  }
}

/** One life of a consumer: until it forgets, or the process ends. */
async function consume(plan: ConsumerPlan, name: string, untilMs: number): Promise<void> {
  const streams = plan.streams.map(streamIndex);
  const database = STREAMS[streams[0]!]!.database;
  const reader = connectClient(settings.port, database, protocolOf(settings));
  const writer = connectClient(settings.port, database, protocolOf(settings));
  let inHand = 0;
  let forgotten = false;
  const alive = (): boolean => !stopping && !forgotten;

  async function work(entries: readonly InHand[]): Promise<void> {
    if (entries.length === 0) return;
    inHand += entries.length;
    await delay(random.next() ** 2 * plan.workMs);
    if (!forgotten) await acknowledge(writer, plan, entries);
    inHand -= entries.length;
  }
  function workOnAll(entries: readonly InHand[]): void {
    if (plan.acknowledge === 'each') for (const entry of entries) void work([entry]);
    else void work(entries);
  }
  async function failed(operation: string, stream: number, error: unknown): Promise<void> {
    errors.add(operation, error);
    if (settings.recreatesGroups && messageOf(error).startsWith('NOGROUP')) {
      for (const missing of operation === 'XREADGROUP' ? streams : [stream]) {
        await writer.call('XGROUP', 'CREATE', STREAMS[missing]!.name, plan.group, '0', 'MKSTREAM').catch(() => {});
      }
    }
    await delay(50);
  }

  async function readNew(): Promise<void> {
    // A worker that starts asks for its own pending entries first, then for new ones.
    let from = '0';
    while (alive()) {
      if (inHand >= IN_HAND_MAX) {
        await delay(20);
        continue;
      }
      const readAtMs = now();
      try {
        const request = reader.callBuffer(
          ...['XREADGROUP', 'GROUP', plan.group, name, 'COUNT', String(plan.count), 'BLOCK', String(plan.blockMs)],
          ...['STREAMS', ...plan.streams, ...plan.streams.map(() => from)],
        );
        const reply = (await answered(reader, request, plan.blockMs)) as ReadReply;
        const how = from === '>' ? DELIVERY.fresh : DELIVERY.ownPending;
        from = '>';
        for (const [key, entries] of streamsOf(reply)) {
          const stream = streamIndex(key.toString());
          const group = groupIndex(stream, plan.group);
          workOnAll(entries.map((entry) => receive(stream, group, entry, how, readAtMs)));
        }
      } catch (error) {
        await failed('XREADGROUP', streams[0]!, error);
      }
    }
  }
  async function takeOver(): Promise<void> {
    const cursors = new Map<number, string>();
    while (alive()) {
      await delay(CLAIM_EVERY_MS * (0.5 + random.next()));
      for (const stream of streams) {
        if (!alive() || inHand >= IN_HAND_MAX) break;
        const readAtMs = now();
        try {
          const request = writer.callBuffer(
            ...['XAUTOCLAIM', STREAMS[stream]!.name, plan.group, name, String(CLAIM_IDLE_MS)],
            ...[cursors.get(stream) ?? '0-0', 'COUNT', String(CLAIM_COUNT)],
          );
          const reply = (await answered(writer, request)) as ClaimReply;
          // Entries that are being worked on stand before those of the dead: without the cursor they would hide them.
          cursors.set(stream, reply[0].toString('latin1'));
          const group = groupIndex(stream, plan.group);
          workOnAll(reply[1].map((entry) => receive(stream, group, entry, DELIVERY.claimed, readAtMs)));
        } catch (error) {
          await failed('XAUTOCLAIM', stream, error);
        }
      }
    }
  }
  const forget = setTimeout(
    () => {
      forgotten = true;
      dropClient(reader);
      dropClient(writer);
    },
    Math.max(0, untilMs - now()),
  );
  await Promise.all([readNew(), takeOver()]);
  clearTimeout(forget);
  while (!forgotten && inHand > 0) await delay(20);
  dropClient(reader);
  dropClient(writer);
}

process.once('SIGTERM', () => {
  stopping = true;
});
await Promise.all(
  plans.map(async (plan, index) => {
    for (let life = 0; !stopping; life += 1) {
      // The slot's first name stays over kill -9, so that a restarted worker finds its own pending entries.
      const name = life === 0 ? `${settings.slot}-${index}` : `${settings.client}-${index}-${life}`;
      await consume(plan, name, now() + FORGETS_EVERY_MS * (0.5 + random.next()));
    }
  }),
);
history.close();
