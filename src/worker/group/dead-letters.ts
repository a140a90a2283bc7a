/**
 * Permanent failures: the event `InternalTaskPermanentlyFailed`, one for each entry, in a stream of their own beside the
 * acknowledged original; and what an operator does with them.
 *
 * A dead letter's fields: `event`, `stream`, `group`, `id`, `task`, `attempts`, `takeovers`, `error`, `failedAt` (ISO),
 * `body` (the event as JSON), the entry's `ctx_…` fields, and the entry itself: `original`, its fields and values as a
 * JSON array, or `originalBase64` where they are not UTF-8; neither where the KV store takes no entry so large.
 */
import type { Redis } from 'ioredis';
import { HoldfastError, messageOf } from '../../errors.ts';
import type { App, Fields, PermanentFailure } from '../app.ts';
import { isPassing } from '../connection.ts';
import { traceFields } from '../trace.ts';
import type { Group } from './group.ts';
import type { WorkerStore } from './store.ts';

export const FAILURE_EVENT = 'InternalTaskPermanentlyFailed';
const ERROR_TEXT_MAX = 4096;
const PAGE = 500;
/** Between the database's clock, which dates a report's beginning, and the KV store's, which dates the dead letter. */
const CLOCK_SLACK_MS = 5 * 60_000;

export interface DeadLetter {
  readonly id: string;
  readonly fields: Fields;
}

/** A report is tried whole first. A KV store, or Holdfast, that takes no entry so large gets one without all of it. */
const FORMS = ['whole', 'without event', 'without original'] as const;
type Form = (typeof FORMS)[number];

async function reportOf(app: App, redis: Redis, failure: PermanentFailure, form: Form): Promise<string[]> {
  const error = failure.errorMessage.slice(0, ERROR_TEXT_MAX);
  const originalEvent = form === 'whole' ? failure.fields : undefined;
  const body = {
    kind: 'Event',
    reason: FAILURE_EVENT,
    type: 'Warning',
    involvedObject: { kind: 'System', name: 'queue' },
    message: `Task ${failure.task} failed for good after ${failure.attempts} attempts: ${error}`,
    details: { errorMessage: error, retryCount: failure.attempts, originalEvent },
  };
  const fields: Record<string, string> = {
    event: FAILURE_EVENT,
    stream: failure.stream,
    group: failure.group,
    id: failure.id,
    task: failure.task,
    attempts: String(failure.attempts),
    takeovers: String(failure.takeovers),
    error,
    failedAt: new Date().toISOString(),
    body: JSON.stringify(body),
    ...traceFields(failure.fields),
    ...fieldsOfApp(app, failure),
    ...(form === 'without original' ? {} : await originalFields(redis, failure)),
  };
  return Object.entries(fields).flat();
}

function fieldsOfApp(app: App, failure: PermanentFailure): Readonly<Record<string, string>> {
  try {
    return app.failureFields?.(failure) ?? {};
  } catch (error) {
    // A report without them is better than none.
    return { failureFieldsError: messageOf(error) };
  }
}

/** The entry's own bytes, for a dead letter is often all that is left of it. */
async function originalFields(redis: Redis, failure: PermanentFailure): Promise<Record<string, string>> {
  const reply = (await redis.callBuffer('XRANGE', failure.stream, failure.id, failure.id)) as [Buffer, Buffer[]][];
  const bytes = reply[0]?.[1];
  if (bytes === undefined) return { original: JSON.stringify(Object.entries(failure.fields).flat()) };
  const texts = bytes.map((value) => value.toString());
  if (texts.every((text, i) => Buffer.from(text).equals(bytes[i]!))) return { original: JSON.stringify(texts) };
  return { originalBase64: JSON.stringify(bytes.map((value) => value.toString('base64'))) };
}

export interface FailureReporter {
  /**
   * Reports and acknowledges, each entry once however often it is tried. Rejects where the outcome is unknown or the
   * store does not answer: the caller, who still holds the entries, tries again.
   */
  report(failures: readonly PermanentFailure[]): Promise<void>;
}

export function createFailureReporter(options: {
  readonly app: App;
  readonly group: Group;
  readonly commands: Redis;
  readonly store: WorkerStore | undefined;
}): FailureReporter {
  const { app, group, commands, store } = options;
  const deadLetters = app.deadLetterStream(group.stream);

  /** Without a store the script is what makes the report unique: it acts only for the one who holds the entry. */
  async function bury(failures: readonly PermanentFailure[], form: Form): Promise<void> {
    for (const failure of failures) {
      await group.bury(deadLetters, failure.id, await reportOf(app, commands, failure, form));
    }
  }

  /**
   * With a store, XADD and XACK go as MULTI, which a ledger in between sees as what they are. The store's lock keeps
   * others out meanwhile, so the acknowledgement needs no other fence.
   */
  async function buryUnderLock(known: WorkerStore, failures: readonly PermanentFailure[], form: Form): Promise<void> {
    const owners = await group.renew(failures.map((failure) => failure.id));
    const mine = failures.filter((failure) => (owners.get(failure.id) ?? '') === '');
    if (mine.length === 0) return;
    await known.report(group.stream, mine, async (open) => {
      const reports = new Map<string, string[]>();
      for (const item of open) {
        if (item.doubtful && (await isBuried(item.id, item.begunAtMs))) continue;
        const failure = mine.find(({ id }) => id === item.id)!;
        reports.set(item.id, await reportOf(app, commands, failure, form));
      }
      const transaction = commands.multi();
      for (const report of reports.values()) transaction.call('XADD', deadLetters, '*', ...report);
      transaction.call('XACK', group.stream, group.name, ...mine.map((failure) => failure.id));
      const results = await transaction.exec();
      if (results === null) throw new HoldfastError('EXECABORT', 'the transaction of a report was not executed');
      for (const [error] of results) if (error !== null) throw error;
    });
  }

  async function isBuried(id: string, begunAtMs: number): Promise<boolean> {
    let from = String(Math.max(0, begunAtMs - CLOCK_SLACK_MS));
    for (;;) {
      const page = await readPage(commands, deadLetters, from);
      const found = page.some(
        ({ fields }) => fields.id === id && fields.group === group.name && fields.stream === group.stream,
      );
      if (found) return true;
      if (page.length < PAGE) return false;
      from = `(${page.at(-1)!.id}`;
    }
  }

  function attempt(failures: readonly PermanentFailure[], form: Form): Promise<void> {
    return store === undefined ? bury(failures, form) : buryUnderLock(store, failures, form);
  }
  async function reportAlone(failure: PermanentFailure): Promise<void> {
    let refusal: unknown;
    for (const form of FORMS) {
      try {
        await attempt([failure], form);
        return;
      } catch (error) {
        if (!isRefusal(error)) throw error;
        refusal = error;
      }
    }
    throw refusal;
  }

  return {
    async report(failures) {
      try {
        await attempt(failures, 'whole');
      } catch (error) {
        if (!isRefusal(error)) throw error;
        // One of them is not taken. Each by itself, so that it holds up none of the others.
        const results = await Promise.allSettled(failures.map(reportAlone));
        for (const result of results) if (result.status === 'rejected') throw result.reason;
      }
    },
  };
}

/** The server said no, and will say so again. */
function isRefusal(error: unknown): boolean {
  if (!(error instanceof Error) || error.name !== 'ReplyError') return false;
  const causes = 'previousErrors' in error ? (error.previousErrors as Error[]) : [];
  return ![error, ...causes].some(({ message }) => isPassing(message));
}

async function readPage(redis: Redis, stream: string, from: string): Promise<DeadLetter[]> {
  const reply = (await redis.call('XRANGE', stream, from, '+', 'COUNT', PAGE)) as [string, string[]][];
  return reply.map(([id, flat]) => ({ id, fields: fieldsOf(flat) }));
}

/** An entry's fields as an object; of a name that occurs twice the last value counts. */
export function fieldsOf(flat: readonly string[]): Record<string, string> {
  const fields: Record<string, string> = Object.create(null);
  for (let i = 0; i + 1 < flat.length; i += 2) fields[flat[i]!] = flat[i + 1]!;
  return fields;
}

/** The streams that hold dead letters, by their name's end. */
export async function findDeadLetterStreams(redis: Redis): Promise<string[]> {
  const found: string[] = [];
  let cursor = '0';
  do {
    const reply = await redis.call('SCAN', cursor, 'MATCH', '*:dead', 'COUNT', 1000, 'TYPE', 'stream');
    const [next, keys] = reply as [string, string[]];
    found.push(...keys);
    cursor = next;
  } while (cursor !== '0');
  return [...new Set(found)].sort();
}

/** The newest `count` dead letters, newest first. */
export async function listDeadLetters(redis: Redis, deadLetters: string, count: number): Promise<DeadLetter[]> {
  const reply = (await redis.call('XREVRANGE', deadLetters, '+', '-', 'COUNT', count)) as [string, string[]][];
  return reply.map(([id, flat]) => ({ id, fields: fieldsOf(flat) }));
}

/** By the dead letter's own ID or by that of the original entry; `undefined` where there is none. */
export async function findDeadLetter(redis: Redis, deadLetters: string, id: string): Promise<DeadLetter | undefined> {
  let from = '-';
  for (;;) {
    const page = await readPage(redis, deadLetters, from);
    const found = page.find((letter) => letter.id === id || letter.fields.id === id);
    if (found !== undefined || page.length < PAGE) return found;
    from = `(${page.at(-1)!.id}`;
  }
}

/**
 * Adds the original entry to its stream once more, byte for byte under a new ID, and removes the dead letter, in one
 * MULTI that fails when somebody else changed the dead letters meanwhile. `redis` must be a connection of its own. Gives
 * the new ID; `undefined` when another one was faster.
 */
export async function retryDeadLetter(redis: Redis, deadLetters: string, id: string): Promise<string | undefined> {
  await redis.watch(deadLetters);
  const letter = await findDeadLetter(redis, deadLetters, id);
  if (letter === undefined) {
    await redis.unwatch();
    return undefined;
  }
  const { fields } = letter;
  const base64 = fields.originalBase64;
  if (base64 === undefined && fields.original === undefined) {
    await redis.unwatch();
    throw new HoldfastError(
      'CONFIG',
      `dead: ${id} came without its entry, which was too large; the ledger may have it`,
    );
  }
  const texts = JSON.parse(base64 ?? fields.original!) as string[];
  const values = base64 === undefined ? texts : texts.map((text) => Buffer.from(text, 'base64'));
  const transaction = redis.multi();
  transaction.call('XADD', fields.stream!, '*', ...values);
  transaction.call('XDEL', deadLetters, letter.id);
  const results = await transaction.exec();
  if (results === null) return retryDeadLetter(redis, deadLetters, id);
  for (const [error] of results) if (error !== null) throw error;
  return String(results[0]![1]);
}

/** Removes one dead letter, or all that failed before `beforeMs` (Unix time). Gives how many. */
export async function purgeDeadLetters(
  redis: Redis,
  deadLetters: string,
  which: { readonly id: string } | { readonly beforeMs: number },
): Promise<number> {
  if ('id' in which) {
    const letter = await findDeadLetter(redis, deadLetters, which.id);
    return letter === undefined ? 0 : Number(await redis.call('XDEL', deadLetters, letter.id));
  }
  return Number(await redis.call('XTRIM', deadLetters, 'MINID', '=', String(which.beforeMs)));
}
