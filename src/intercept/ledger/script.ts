/**
 * Scripts and functions. What they do to ledgered streams as wholes is a client's will, as with any command, but nobody knows
 * before which streams those are. The text tells which it can be (script-effects.ts): none, those among its keys, or any.
 *
 *   none              ──▶ forwarded as it is
 *   only its own keys ──▶ these are read before and after, groups, IDs and time to live included
 *   any               ──▶ EXISTS of all in the database right before and right behind it, on its connection
 *
 * What is gone behind it and was there before was ended by it, and is over in the ledger before the client hears. No statement goes to
 * Postgres for a script that ends nothing.
 */
import { HoldfastError } from '../../errors.ts';
import { EXCHANGE, type Exchange, type Interceptor, PLAIN, type SessionView } from '../../interceptor.ts';
import type { SentUnder } from '../../ledger/intention-store.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import type { StreamStates } from '../../recovery/settle/script-runs.ts';
import * as encode from '../../resp/encode.ts';
import { sha1 } from '../../scope/lua/script-registry.ts';
import { ScopedSession } from '../../scope/scoped-session.ts';
import { scopeOf } from '../scope/interceptors.ts';
import { beforeExec } from './before-exec.ts';
import { holdUntilWhole, type LedgerContext } from './context.ts';
import { effectsOf, type ScriptEffects, UNKNOWN_EFFECTS } from './script-effects.ts';

const COMMANDS = ['eval', 'evalsha', 'fcall'] as const;
type ScriptCommand = (typeof COMMANDS)[number];

const EXISTS = Buffer.from('EXISTS');
const FIRST_KEY = 3;
const SCRIPTS_MAX = 10_000;
const SHA_BYTES = 40;
const COLON = 0x3a;
/** Of a session: whether it may ask EXISTS of what its scripts may touch. */
const MAY_PROBE = Symbol('may probe');

function countOf(reply: Buffer | undefined): number | undefined {
  return reply?.[0] === COLON ? Number(reply.toString('latin1', 1, reply.length - 2)) : undefined;
}

export function ledgerScripts(context: LedgerContext): Interceptor[] {
  const { ledger, recovery } = context;
  const { scripts } = recovery;
  /** By SHA1. */
  const effects = new Map<string, ScriptEffects>();
  let latest: { readonly body: Buffer; readonly effects: ScriptEffects } | undefined;

  function learn(text: Buffer): ScriptEffects {
    const sha = sha1(text);
    let known = effects.get(sha);
    if (known !== undefined) return known;
    known = effectsOf(text.toString('latin1'));
    effects.set(sha, known);
    const [oldest] = effects.keys();
    if (effects.size > SCRIPTS_MAX) effects.delete(oldest!);
    return known;
  }

  function effectsAt(name: string, buffer: Buffer, from: number, to: number): ScriptEffects {
    if (name === 'evalsha') {
      if (to - from !== SHA_BYTES) return UNKNOWN_EFFECTS;
      const sha = buffer.toString('latin1', from, to);
      return effects.get(sha) ?? effects.get(sha.toLowerCase()) ?? UNKNOWN_EFFECTS;
    }
    if (name === 'fcall') return UNKNOWN_EFFECTS;
    if (latest?.body.length !== to - from || latest.body.compare(buffer, from, to) !== 0) {
      const body = Buffer.from(buffer.subarray(from, to));
      latest = { body, effects: learn(body) };
    }
    return latest.effects;
  }

  function isOf(stream: Stream, prefix: Buffer | undefined): boolean {
    return stream.present && (prefix === undefined || stream.name.subarray(0, prefix.length).equals(prefix));
  }

  function concerns(database: number, prefix: Buffer | undefined): boolean {
    for (const stream of ledger.streams.in(database)) if (isOf(stream, prefix)) return true;
    return false;
  }

  function declaredKeys(args: readonly Buffer[]): readonly Buffer[] {
    const count = Number(args[2]?.toString('latin1'));
    return count > 0 ? args.slice(FIRST_KEY, FIRST_KEY + count) : [];
  }

  /** Streams that the KV store has and the script may end or change. */
  function touchable(
    { args, session: { database } }: Exchange,
    { ends, groups, declaredOnly, elsewhere }: ScriptEffects,
    prefix: Buffer | undefined,
  ): Stream[] {
    if (!ends && !groups) return [];
    if (declaredOnly && !elsewhere) {
      const declared = new Set(declaredKeys(args).map((key) => ledger.streams.find(database, key)));
      return [...declared].filter((stream) => stream?.present === true) as Stream[];
    }
    const streams = elsewhere ? ledger.streams.all() : ledger.streams.in(database);
    return [...streams].filter((stream) => isOf(stream, prefix));
  }

  function unavailable(thrown: unknown): never {
    recovery.changes.report(thrown);
    throw new HoldfastError('LEDGERDOWN', 'the script was executed, but the ledger could not take in what it did yet');
  }

  /** Has the ends of streams written down; `done` is called when that is so, however long it takes. */
  async function end(streams: readonly Stream[], sent: SentUnder, done: () => void): Promise<void> {
    if (streams.length === 0) done();
    else await scripts.end(streams, sent, done).catch(unavailable);
  }

  /** Without a reply, what is there tells: of those that `wereThere` says were, since what was lost before was not ended by the script. */
  function onLost(exchange: Exchange, wereThere: () => Promise<readonly Stream[]>, done: () => void): void {
    const { sentUnder } = recovery;
    exchange.onLost((cause, clientId) => {
      if (clientId === undefined) done();
      else {
        void wereThere()
          .then((streams) => scripts.settleLost(streams, sentUnder, clientId))
          .finally(done);
      }
      return encode.error(cause.toReplyText());
    });
  }

  function thereIn(before: StreamStates | undefined, streams: readonly Stream[]): Stream[] {
    return streams.filter((_, at) => before !== undefined && before.states[at] !== 'missing');
  }

  /** EXISTS right before and right behind it. */
  function watchOnLane(exchange: Exchange, streams: readonly Stream[]): void {
    const { before, after } = exchange.surround([EXISTS, ...streams.map(({ name }) => name)]);
    const done = scripts.begin(streams, () => exchange.session.closed);
    // Of fewer than all nobody can tell which.
    onLost(exchange, async () => (countOf(await before) === streams.length ? streams : []), done);
    exchange.onReply(async (reply) => {
      const [had, has] = [countOf(await before), countOf(await after)];
      if (had === undefined || has === undefined) {
        exchange.session.state.set(MAY_PROBE, false);
        done();
        return reply;
      }
      // What was not there before either is lost, and so may be any that is missing now.
      if (has >= had || had < streams.length) {
        done();
        return reply;
      }
      const now = await scripts.states(streams, false).catch((thrown: unknown) => {
        done();
        throw thrown;
      });
      await end(
        streams.filter((_, at) => now.states[at] === 'missing'),
        now,
        done,
      );
      return reply;
    });
  }

  /** Before and after are read on Holdfast's own connection. */
  function watchApart(exchange: Exchange, streams: readonly Stream[], groups: boolean): void | Promise<void> {
    let before: StreamStates | undefined;
    let done = (): void => undefined;
    const begin = async (): Promise<void> => {
      for (const stream of streams) if (stream.mode === 'restoring') await holdUntilWhole(context, exchange, stream);
      done = scripts.begin(streams, () => exchange.session.closed);
      before = await scripts.states(streams, true).catch(() => undefined);
    };
    exchange.onReply(async (reply) => {
      try {
        if (before !== undefined) await takeIn(streams, before, groups);
      } finally {
        done();
      }
      return reply;
    });
    if (!exchange.queued) {
      onLost(
        exchange,
        async () => thereIn(before, streams),
        () => done(),
      );
      return begin();
    }
    beforeExec(exchange, begin);
    exchange.onDiscard(() => done());
    exchange.onDoubt((_, clientId) => {
      if (before === undefined) return;
      void scripts.settleLost(thereIn(before, streams), before, clientId).finally(() => done());
    });
  }

  async function takeIn(streams: readonly Stream[], before: StreamStates, groups: boolean): Promise<void> {
    const after = await scripts.states(streams, true);
    if (after.runId !== before.runId || after.replicationId !== before.replicationId) return;
    const ended: Stream[] = [];
    for (const [at, stream] of streams.entries()) {
      const [had, has] = [before.states[at]!, after.states[at]!];
      if (typeof had === 'string' || has === 'other' || has === 'present') continue;
      if (has === 'missing' || has.entriesAdded < had.entriesAdded || has.lastId.compare(had.lastId) < 0) {
        ended.push(stream);
        continue;
      }
      if (has.expiresAtMs !== had.expiresAtMs)
        await recovery.changes.takeInExpiry(stream, [], undefined).catch(unavailable);
      if (!groups) continue;
      for (const name of new Set([...had.groups.keys(), ...has.groups.keys()])) {
        const [old, own] = [had.groups.get(name), has.groups.get(name)];
        const goesOn = old !== undefined && own !== undefined && own.lastDeliveredId.compare(old.lastDeliveredId) >= 0;
        if (goesOn) continue;
        await recovery.changes.takeInGroup(stream, Buffer.from(name, 'latin1'), old !== undefined).catch(unavailable);
      }
    }
    if (ended.length === 0) return;
    await new Promise<void>((resolve, reject) => {
      end(ended, after, resolve).catch(reject);
    });
    const anew = ended.filter((stream) => typeof after.states[streams.indexOf(stream)] !== 'string');
    for (const { database, name } of anew) await ledger.streams.discover(database, [name]).catch(unavailable);
  }

  function request(exchange: Exchange): void | Promise<void> {
    const { args, session } = exchange;
    const prefix = session.scope instanceof ScopedSession ? scopeOf(exchange).scope.prefix : undefined;
    const { name } = exchange.command!;
    const text = args[1];
    if (text === undefined) return;
    const what = effectsAt(name, text, 0, text.length);
    if (what.adds) for (const key of declaredKeys(args)) suspect(session.database, key);
    const streams = touchable(exchange, what, prefix);
    if (streams.length === 0) return;
    const mayProbe = session.state.get(MAY_PROBE);
    if (exchange.queued || what.groups || what.elsewhere || what.declaredOnly || mayProbe === false) {
      return watchApart(exchange, streams, what.groups);
    }
    if (mayProbe === true) {
      watchOnLane(exchange, streams);
      return;
    }
    // Once for each session: its user may not be allowed to.
    return exchange.run([EXISTS, ...streams.map((stream) => stream.name)]).then(
      (reply) => {
        session.state.set(MAY_PROBE, reply[0] === COLON);
        if (reply[0] === COLON) watchOnLane(exchange, streams);
        else return watchApart(exchange, streams, what.groups);
      },
      () => watchApart(exchange, streams, what.groups),
    );
  }

  function suspect(database: number, key: Buffer): void {
    if (recovery.ledgered(key) && ledger.streams.find(database, key) === undefined) {
      recovery.suspectStream(database, key.toString('latin1'));
    }
  }

  function look(
    name: ScriptCommand,
    buffer: Buffer,
    start: number,
    bounds: Int32Array,
    argc: number,
    prefix: Buffer | undefined,
    session: SessionView,
  ): number {
    if (argc < FIRST_KEY) return PLAIN;
    const what = effectsAt(name, buffer, start + bounds[2]!, start + bounds[3]!);
    const touches = what.ends || what.groups;
    if (!touches && !what.adds) return PLAIN;
    const { database } = session;
    if (touches && !what.declaredOnly && (what.elsewhere ? ledger.streams.size > 0 : concerns(database, prefix)))
      return EXCHANGE;
    if (session.scope !== undefined) return touches && concerns(database, prefix) ? EXCHANGE : PLAIN;
    const count = Number(buffer.toString('latin1', start + bounds[4]!, start + bounds[5]!));
    for (let at = FIRST_KEY; at < argc && at < FIRST_KEY + count; at += 1) {
      const key = buffer.subarray(start + bounds[2 * at]!, start + bounds[2 * at + 1]!);
      if (touches && ledger.streams.find(database, key) !== undefined) return EXCHANGE;
      if (what.adds) suspect(database, key);
    }
    return PLAIN;
  }

  return [
    ...COMMANDS.map(
      (name): Interceptor => ({
        name: `ledger of ${name}`,
        handles: (command) => command?.name === name,
        request,
        glance: {
          sieves: true,
          look: (buffer, start, bounds, argc, prefix, session) =>
            look(name, buffer, start, bounds, argc, prefix, session),
          answered: () => undefined,
          late: () => undefined,
        },
      }),
    ),
    {
      name: 'ledger of script load',
      handles: (command) => command?.name === 'script|load',
      request(exchange) {
        const text = exchange.args[2];
        if (text !== undefined) learn(text);
      },
    },
  ];
}
