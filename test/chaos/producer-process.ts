/**
 * A producer: one connection for each plan of its slot. Every event is asked for once, and never again: what becomes
 * of it is the checker's to judge.
 */
import type { Redis } from 'ioredis';
import {
  answered,
  connectClient,
  delay,
  failedForSure,
  openErrorLog,
  protocolOf,
  readSettings,
} from './client-process.ts';
import { eventFields } from './event-fields.ts';
import { KIND, OBSERVED, openHistory, runClock } from './history.ts';
import { PRODUCERS, type ProducerPlan, STREAMS, streamIndex } from './workload.ts';

const settings = readSettings();
const now = runClock(BigInt(settings.startNs));
const history = openHistory(settings.historyPath, settings.client, now);
const errors = openErrorLog(settings.errorsPath, now);
const plans = PRODUCERS[settings.slot]!;
const weights = PRODUCERS.flat().reduce((sum, plan) => sum + plan.weight, 0);
const ADD_SCRIPT = "return redis.call('XADD', KEYS[1], '*', unpack(ARGV))";

let stopping = false;
let numbers = 0;

interface Attempt {
  readonly number: number;
  readonly fields: Buffer[];
}

function invoke(stream: number, observed: boolean): Attempt {
  numbers += 1;
  const event = { writer: settings.client, number: numbers };
  history.write({ kind: KIND.addInvoked, stream, ...event, detail: observed ? OBSERVED : 0 });
  return { number: numbers, fields: eventFields(settings.seed, event) };
}

function complete(stream: number, attempt: Attempt, error: unknown, reply: unknown): void {
  const event = { writer: settings.client, number: attempt.number };
  if (error === null && (Buffer.isBuffer(reply) || typeof reply === 'string')) {
    const [ms, seq] = reply.toString().split('-');
    history.write({ kind: KIND.addOk, stream, ...event, idMs: Number(ms), idSeq: Number(seq) });
    return;
  }
  errors.add('XADD', error ?? new Error(`odd reply ${String(reply)}`));
  history.write({ kind: failedForSure(error) ? KIND.addFailed : KIND.addUnknown, stream, ...event });
}

/** Explicit IDs grow over the producer's restarts as well: a later process has a higher number. */
function entryId(plan: ProducerPlan, attempt: Attempt): string {
  if (plan.style === 'explicit') return `${settings.client * 10_000_000 + attempt.number}-${attempt.number % 3}`;
  return plan.style === 'partial' ? `${Date.now()}-*` : '*';
}

async function addBatch(client: Redis, plan: ProducerPlan, stream: number): Promise<void> {
  const key = STREAMS[stream]!.name;
  const observed = plan.style === 'script' || plan.style === 'direct';
  const attempts = Array.from({ length: plan.batch }, () => invoke(stream, observed));
  history.flush();
  if (plan.style === 'pipeline' || plan.style === 'transaction') {
    const batch = plan.style === 'pipeline' ? client.pipeline() : client.multi();
    for (const attempt of attempts) batch.call('XADD', key, entryId(plan, attempt), ...attempt.fields);
    let outcome: [unknown, unknown][] | null = null;
    let failure: unknown = new Error('EXEC gave nil');
    try {
      outcome = await answered(client, batch.exec());
    } catch (error) {
      failure = error;
    }
    attempts.forEach((attempt, i) => {
      const [error, reply] = outcome?.[i] ?? [failure, null];
      complete(stream, attempt, error, reply);
    });
    return;
  }
  const attempt = attempts[0]!;
  try {
    const request =
      plan.style === 'script'
        ? client.call('EVAL', ADD_SCRIPT, '1', key, ...attempt.fields)
        : client.call('XADD', key, entryId(plan, attempt), ...attempt.fields);
    complete(stream, attempt, null, await answered(client, request));
  } catch (error) {
    complete(stream, attempt, error, null);
  }
}

async function produce(plan: ProducerPlan): Promise<void> {
  const stream = streamIndex(plan.stream);
  const port = plan.style === 'direct' ? settings.directPort : settings.port;
  const client = connectClient(port, STREAMS[stream]!.database, protocolOf(settings));
  const intervalMs = (1000 * plan.batch * weights) / (settings.ratePerSecond * plan.weight);
  let next = now();
  while (!stopping) {
    await addBatch(client, plan, stream);
    // An outage is not caught up with: the load stays what it was.
    next = Math.max(next + intervalMs, now() - intervalMs);
    if (next > now()) await delay(next - now());
  }
  client.disconnect();
}

process.once('SIGTERM', () => {
  stopping = true;
});
await Promise.all(plans.map(produce));
history.close();
