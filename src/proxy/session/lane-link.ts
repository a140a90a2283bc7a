/** How a session comes to a lane that fits, changes it, and leaves it (the rules are drawn in session.ts). */
import { HoldfastError } from '../../errors.ts';
import * as encode from '../../resp/encode.ts';
import { failWaiting, subscribeAgain } from '../commands/subscription-request.ts';
import type { Lane } from '../upstream/lane.ts';
import type { LaneSet, LaneWaiter } from '../upstream/lane-pool.ts';
import type { Session } from './session.ts';
import { Hold, Pin } from './session-state.ts';

/** Until a session that must have a lane asks for one again. */
const ATTACH_RETRY_MS = 200;

/**
 * Runs `action` on a lane that fits: at once where it can, else when everything in flight was answered and a lane is
 * there; requests behind it wait. `pin` says what the session needs a dedicated lane for, 0 where any lane does.
 */
export function runOnLane(
  session: Session,
  pin: number,
  action: () => void,
  refused: (reply: Buffer) => void,
  until?: number,
): void {
  if (session.closed) return;
  if (laneFits(session, pin)) {
    session.pins |= pin;
    action();
    return;
  }
  session.hold(Hold.lane);
  session.whenQuiet(() => awaitLane(session, pin, action, refused, until));
}

function awaitLane(
  session: Session,
  pin: number,
  action: () => void,
  refused: (reply: Buffer) => void,
  until: number | undefined,
): void {
  const set = session.laneSet;
  const dedicated = pin !== 0 || session.pins !== 0;
  const proceed = (): void => {
    session.pins |= pin;
    action();
    session.lift(Hold.lane);
  };
  if (laneFits(session, pin)) {
    proceed();
    return;
  }
  if (dedicated) {
    try {
      session.takeOwnLane();
    } catch (thrown) {
      refused(encode.error(limitText(thrown)));
      session.lift(Hold.lane);
      return;
    }
  }
  const lane = dedicated ? set.dedicatedLane() : set.sharedLane();
  if (lane !== undefined) {
    if (dedicated) enterDedicated(session, set, lane);
    else session.lane = lane;
    proceed();
    return;
  }
  const waiter: LaneWaiter = {
    ready: (ready) => {
      session.endWait = undefined;
      if (session.closed) {
        if (dedicated) set.release(ready, true);
        return;
      }
      session.guarded(() => {
        // Somebody else may have waited too, and have found one.
        if (dedicated && laneFits(session, pin)) set.release(ready, true);
        else if (dedicated) enterDedicated(session, set, ready);
        else session.lane = ready;
        proceed();
      });
    },
    failed: (cause, byServer) => {
      session.endWait = undefined;
      session.giveOwnLane();
      session.guarded(() => {
        refused(encode.error(byServer ? cause.message : cause.toReplyText()));
        session.lift(Hold.lane);
      });
    },
  };
  session.endWait = set.wait(dedicated, waiter, until);
}

function limitText(thrown: unknown): string {
  if (thrown instanceof HoldfastError) return thrown.toReplyText();
  throw thrown;
}

/** The request that was sent last is a script. */
export function occupyLane(session: Session): void {
  if (!session.dedicated) session.lane?.occupy(session);
}

function laneFits(session: Session, pin: number): boolean {
  const { lane } = session;
  if (lane === undefined || lane.state !== 'ready') return false;
  if (session.dedicated) {
    if (lane.congested) holdForCongestion(session, lane);
    return true;
  }
  if (pin !== 0 || session.pins !== 0) return false;
  if (lane.congested) holdForCongestion(session, lane);
  if (lane.occupant !== undefined && lane.occupant !== session) return false;
  return !(lane.stalled && session.inFlight === 0);
}

/** The request at hand is still sent; those behind it wait until the KV store takes bytes again. */
export function holdForCongestion(session: Session, lane: Lane): void {
  if (session.holds & Hold.congestion) return;
  session.hold(Hold.congestion);
  lane.drainWaiters.add(() => session.guarded(() => session.lift(Hold.congestion)));
}

/** Takes a lane of its own, set up as the one before was. */
export function enterDedicated(session: Session, set: LaneSet, lane: Lane): void {
  session.countOwnLane();
  session.lane = lane;
  session.laneSetInUse = set;
  session.dedicated = true;
  session.laneDirty = false;
  lane.owner = session;
  if (session.pins & Pin.pooling) {
    session.laneDirty = true;
    session.sendIgnored(['CLIENT', 'SETNAME', Buffer.from(session.name, 'latin1')]);
  }
  for (const [what, args] of session.setup) {
    session.laneDirty = true;
    session.sendIgnored(what === 'client|tracking' ? towardsItself(session, lane, args) : args);
  }
  if (session.subscriptions.expected) subscribeAgain(session);
}

/** A client that gets its own invalidations redirected to itself has another number at the server now. */
function towardsItself(session: Session, lane: Lane, args: readonly Buffer[]): readonly Buffer[] {
  if (session.redirectsTo !== session.id) return args;
  const at = args.findIndex((arg) => arg.toString('latin1').toLowerCase() === 'redirect') + 1;
  return args.map((arg, i) => (at > 0 && i === at ? Buffer.from(String(lane.clientId)) : arg));
}

/** Goes back to shared lanes; a lane that is not provably clean is closed. Nothing is in flight, or the session ends. */
export function leaveDedicated(session: Session): void {
  const { lane, laneSetInUse } = session;
  session.lane = undefined;
  session.dedicated = false;
  session.laneSetInUse = undefined;
  session.giveOwnLane();
  if (lane === undefined) return;
  const dirty = session.laneDirty || session.inFlight > 0 || (session.pins & ~Pin.pooling) !== 0;
  lane.socket.resume();
  laneSetInUse?.release(lane, !dirty);
}

/** Asks for a dedicated lane without a request: for a redirection target, or a subscriber whose lane was lost. */
export function attachDedicated(session: Session): void {
  if (session.closed) return;
  session.onLane(
    0,
    () => undefined,
    (reply) => {
      failWaiting(session, reply);
      if ((session.pins & (Pin.subscribed | Pin.sticky | Pin.redirectTarget)) === 0) return;
      clearTimeout(session.attachTimer);
      session.attachTimer = setTimeout(() => session.guarded(() => attachDedicated(session)), ATTACH_RETRY_MS);
    },
  );
}

/** Sends a request once more, on a lane of its own, and gives its reply. */
export async function resendOn(session: Session, set: LaneSet, args: readonly Buffer[]): Promise<Buffer> {
  return withOwnLane(
    session,
    set,
    (lane) =>
      new Promise<Buffer>((resolve, reject) => {
        lane.sendWhole({ reply: resolve, lost: reject, fault: reject }, encode.request(args));
      }),
  );
}

/**
 * Lets `use` have a lane that nobody else uses meanwhile, beside the session's own; it is closed with the session.
 * `onlyWhileReachable`: rejects as soon as the KV store cannot be reached, instead of after `limits.holdMs`.
 */
export async function withOwnLane<T>(
  session: Session,
  set: LaneSet,
  use: (lane: Lane) => Promise<T>,
  onlyWhileReachable = false,
): Promise<T> {
  const { tenant } = session;
  tenant.takeLane();
  try {
    const lane =
      set.dedicatedLane() ??
      (await new Promise<Lane>((resolve, reject) => {
        set.wait(true, { ready: resolve, failed: reject }, undefined, onlyWhileReachable);
      }));
    if (session.closed) {
      set.release(lane, true);
      throw new HoldfastError('KVDOWN', 'the client is gone');
    }
    session.resendLanes.add(lane);
    try {
      return await use(lane);
    } finally {
      session.resendLanes.delete(lane);
      set.release(lane, true);
    }
  } finally {
    tenant.giveLane();
  }
}
