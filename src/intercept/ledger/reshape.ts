/**
 * Commands that take a ledgered stream away or make another one of it: DEL and its kin, renames, times to live, XSETID,
 * whole databases. The intention commits before the command goes out, so that nobody takes the result for a loss, and is
 * settled by the reply, before the client hears.
 *
 *   open ──▶ forwarded ──▶ executed ─────────▶ taken in ──▶ the client hears
 *    ▲                 ├──▶ refused ─────────▶ cancelled ──▶ the client hears
 *    │                 ├──▶ nothing done ────▶ cancelled; a stream that the ledger knows is not there: a loss ─┐
 *    │                 └──▶ reply lost ──────▶ in doubt, the leader judges it                                  │
 *    └──────────────────────────── restored, then asked again ◀───────────────────────────────────────────────┘
 */
import { setTimeout as delay } from 'node:timers/promises';
import { HoldfastError } from '../../errors.ts';
import type { Exchange, Interceptor } from '../../interceptor.ts';
import type { EndIntention } from '../../ledger/intention-store.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import * as encode from '../../resp/encode.ts';
import { type Reply, readReply } from '../../resp/reply.ts';
import { beforeExec } from './before-exec.ts';
import { holdUntilWhole, type LedgerContext } from './context.ts';
import { type Place, type Reshaping, reshapes, reshapingPlans, type TakenIn } from './reshape-plans.ts';

/** Intentions that are open, and what they were opened for. */
interface Opened {
  readonly intentions: readonly EndIntention[];
  readonly plan: Reshaping;
}

/** How long a command waits before it looks again whether another one is done with its streams. */
const BUSY_MS = 20;
const ATTEMPTS_MAX = 3;
const LOSS = 'a command found no stream where the ledger knows one';

function isRefusal(reply: Reply): boolean {
  return reply.type === '-' || reply.type === '!';
}

/** A refusal for want of the key. */
function missesKey(reply: Reply): boolean {
  return isRefusal(reply) && /no such key|requires the key to exist/.test(reply.bytes.toString('latin1', 0, 80));
}

export function ledgerReshape(context: LedgerContext): Interceptor {
  const { ledger, recovery } = context;
  const { changes } = recovery;
  const reshaping = reshapingPlans(context);

  function unavailable(thrown: unknown): never {
    changes.report(thrown);
    throw new HoldfastError('LEDGERDOWN', 'the ledger does not answer; nothing was done, try again');
  }

  /** Gives what is open now; nothing where the command reshapes no stream any more. */
  async function open(exchange: Exchange): Promise<Opened | undefined> {
    for (const until = Date.now() + context.holdMs; ; ) {
      // Anew each time: what is waited for may have moved or ended a stream.
      const plan = reshaping(exchange);
      if (plan === undefined) return undefined;
      for (const stream of plan.streams) await holdUntilWhole(context, exchange, stream);
      const opened = await plan.open().catch(unavailable);
      if (!('busy' in opened)) {
        if (!(await meetsLoss(plan))) return { intentions: opened, plan };
        // It would take the place of what has to come back, or hide that it must.
        await changes.cancelSurely(opened);
        await recovery.noticed(LOSS, context.holdMs);
      } else {
        const stream = await ledger.streams.refresh(opened.busy).catch(unavailable);
        if (stream === undefined || stream.ended) continue;
        await holdUntilWhole(context, exchange, stream);
        if (Date.now() > until) throw busy(stream);
      }
      if (Date.now() > until) throw busy(plan.streams[0]!);
      await delay(BUSY_MS);
    }
  }

  function busy(stream: Stream): HoldfastError {
    return new HoldfastError(
      'RECOVERING',
      `another command is about to move or end the stream ${stream.name.toString()}; nothing was done, try again`,
    );
  }

  async function meetsLoss({ spares, compares }: Reshaping): Promise<boolean> {
    if (spares !== undefined && (await isMissing(spares))) return true;
    return compares !== undefined && !(await changes.isWhole(compares).catch(() => true));
  }

  /** Whether the KV store has not got a stream that the ledger knows it to have; false where it cannot be asked. */
  async function isMissing(stream: Stream): Promise<boolean> {
    if (!stream.present || stream.ended) return false;
    return recovery.isMissing(stream).catch(() => false);
  }

  async function settle({ intentions, plan }: Opened, reply: Reply): Promise<TakenIn> {
    const nothing = isRefusal(reply) || plan.nothingDone(reply);
    if (!nothing) return takeIn(intentions, plan);
    await changes.cancelSurely(intentions);
    if (isRefusal(reply) && !missesKey(reply)) return 'taken';
    for (const stream of plan.standing) if (await isMissing(stream)) return 'lost';
    return 'taken';
  }

  async function takeIn(intentions: readonly EndIntention[], plan: Reshaping): Promise<TakenIn> {
    try {
      return await plan.takeIn(intentions);
    } catch (thrown) {
      ledger.postgres.failed(thrown);
      changes.leaveToLeader(intentions, thrown);
      throw new HoldfastError('LEDGERDOWN', 'the command was executed, but the ledger could not take it in yet');
    }
  }

  /** The reply for the client. What a loss had kept from being done is done once the stream is back. */
  async function answer(exchange: Exchange, first: Opened, frame: Buffer): Promise<Buffer> {
    let opened: Opened | undefined = first;
    let reply = frame;
    for (let attempt = 1; opened !== undefined && opened.intentions.length > 0; attempt += 1) {
      const taken = await settle(opened, readReply(reply));
      if (taken === 'taken') return reply;
      await lost(opened.plan);
      if (exchange.queued || attempt === ATTEMPTS_MAX) return reply;
      opened = await open(exchange);
      if (opened === undefined) return reply;
      const { intentions } = opened;
      reply = await exchange.resend().catch((thrown: unknown) => {
        changes.leaveToLeader(intentions, thrown);
        throw thrown;
      });
    }
    return reply;
  }

  async function arrived(plan: Reshaping, place: Place, frame: Buffer): Promise<Buffer> {
    const reply = readReply(frame);
    if (isRefusal(reply) || plan.nothingDone(reply)) return frame;
    await changes.takeInArrival(place).catch((thrown: unknown) => {
      changes.report(thrown);
      throw new HoldfastError('LEDGERDOWN', 'the command was executed, but the ledger could not take it in yet');
    });
    return frame;
  }

  async function lost({ standing }: Reshaping): Promise<void> {
    for (const stream of standing) {
      if (stream.ended) continue;
      await recovery.proved(stream, stream.epoch, LOSS, context.holdMs).catch((thrown: unknown) => {
        ledger.postgres.failed(thrown);
      });
    }
  }

  return {
    name: 'ledger-reshape',
    handles: reshapes,
    request(exchange) {
      if (reshaping(exchange) === undefined) return;
      let opened: Opened | undefined;
      const begin = async (): Promise<void> => {
        const refusal = exchange.queued ? undefined : await exchange.judge();
        if (refusal === undefined) opened = await open(exchange);
        else exchange.respond(refusal);
      };
      const intentions = (): readonly EndIntention[] => opened?.intentions ?? [];
      /** Done or not: the leader will see, by what is there. Until then nobody takes it for a loss. */
      const doubt = (cause: unknown, clientId: number | undefined): void => {
        const { runId } = recovery;
        const connection = clientId === undefined ? undefined : { clientId, runId };
        if (intentions().length > 0) changes.leaveToLeader(intentions(), cause, connection);
      };
      exchange.onReply((frame) => {
        if (opened === undefined) return frame;
        const { arrives } = opened.plan;
        if (arrives !== undefined)
          return answer(exchange, opened, frame).then((reply) => arrived(opened!.plan, arrives, reply));
        return intentions().length === 0 ? frame : answer(exchange, opened, frame);
      });
      exchange.onDiscard(() => void changes.cancelSurely(intentions()));
      exchange.onDoubt(doubt);
      if (exchange.queued) {
        beforeExec(exchange, begin);
        return;
      }
      exchange.onLost((cause, clientId) => {
        doubt(cause, clientId);
        return encode.error(cause.toReplyText());
      });
      return begin();
    },
  };
}
