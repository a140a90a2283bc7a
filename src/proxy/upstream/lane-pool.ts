/**
 * The lanes of one upstream identity (user, database, protocol version): shared lanes, and a pool of dedicated ones.
 *
 * Usually there is one shared lane. It is *stalled* when a reply is slow in coming (a script that runs for seconds, CLIENT
 * PAUSE), or when what was owed a while ago is still owed although bytes come in great number (replies of many megabytes):
 * sessions with nothing in flight move to a further one, so that SCRIPT KILL gets through, and a PING does not wait for a gigabyte.
 *
 * A script may run without end, and nobody can tell before. So while one is under way its lane takes requests of that session only;
 * others use a further lane, where the server answers them `-BUSY` when it would answer a client of its own so.
 */
import { HoldfastError } from '../../errors.ts';
import type { Lane } from './lane.ts';
import type { LaneIdentity, Upstream } from './upstream.ts';

/** Somebody who waits for a lane. Called once. */
export interface LaneWaiter {
  ready(lane: Lane): void;
  /** `refused` is true where the server answered the handshake with an error: `cause.message` is that error's text. */
  failed(cause: HoldfastError, refused: boolean): void;
}

interface Waiting {
  readonly waiter: LaneWaiter;
  readonly dedicated: boolean;
  readonly deadline: number;
  /** Waits no longer than the KV store can be reached. */
  readonly onlyWhileReachable: boolean;
}

/** What a shared lane had done when it was last seen to make progress. */
interface Progress {
  bytesRead: number;
  ticks: number;
  idleTicks: number;
  /** So many entries will be over when the one that was the last of the queue at the mark is. */
  settledAtMark: number;
  bytesAtMark: number;
  ticksSinceMark: number;
}

function progressOf(lane: Lane): Progress {
  return {
    bytesRead: lane.bytesRead,
    ticks: 0,
    idleTicks: 0,
    settledAtMark: lane.settled,
    bytesAtMark: lane.bytesRead,
    ticksSinceMark: 0,
  };
}

/** Whether all this time went into what was owed at the mark. Sets the mark anew when that is over. */
function isBusyWithLargeReplies(lane: Lane, seen: Progress): boolean {
  if (lane.settled >= seen.settledAtMark) {
    seen.settledAtMark = lane.settled + lane.owed;
    seen.bytesAtMark = lane.bytesRead;
    seen.ticksSinceMark = 0;
    return false;
  }
  seen.ticksSinceMark += 1;
  return seen.ticksSinceMark >= STALLED_TICKS && lane.bytesRead - seen.bytesAtMark >= LARGE_REPLIES_BYTES;
}

const RETIRED = new HoldfastError('RETIRED', 'closed by Holdfast');
/** Ticks without progress before a lane with replies owed counts as stalled, and before idle lanes are closed. */
const STALLED_TICKS = 3;
const IDLE_TICKS = 20 * 60;
/** Until a user that could not be made is tried again. */
const PREPARE_RETRY_MS = 100;
const SHARED_LANES_MAX = 16;
/** Bytes that a lane must have read since what it owes was asked for, to be stalled by the size of its replies. */
const LARGE_REPLIES_BYTES = 8 * 1024 * 1024;
/** Ticks between attempts to have a spare lane. */
const SPARE_TICKS = 2;

export class LaneSet {
  readonly identity: LaneIdentity;
  private readonly upstream: Upstream;
  private readonly onEmpty: () => void;
  private readonly shared: Lane[] = [];
  private readonly idle: { lane: Lane; ticks: number }[] = [];
  private waiting: Waiting[] = [];
  private readonly progress = new Map<Lane, Progress>();
  private connecting = 0;
  private dedicatedInUse = 0;
  private spareTicks = 0;
  private retryTimer: NodeJS.Timeout | undefined;

  constructor(upstream: Upstream, identity: LaneIdentity, onEmpty: () => void) {
    this.upstream = upstream;
    this.identity = identity;
    this.onEmpty = onEmpty;
  }

  /** Lanes that no client has to itself. */
  get unownedLanes(): number {
    return this.shared.length + this.idle.length + this.connecting;
  }

  /** The lane that could be closed without anybody noticing and has been unused for longest, in ticks. */
  leastRecentlyUsed(): { readonly lane: Lane; readonly ticks: number } | undefined {
    let oldest: { lane: Lane; ticks: number } | undefined;
    for (const { lane, ticks } of this.idle) if (oldest === undefined || ticks > oldest.ticks) oldest = { lane, ticks };
    for (const lane of this.shared) {
      const ticks = this.progress.get(lane)?.idleTicks ?? 0;
      if (lane.owed === 0 && (oldest === undefined || ticks > oldest.ticks)) oldest = { lane, ticks };
    }
    return oldest;
  }

  /** A shared lane to use at once, if there is one. */
  sharedLane(): Lane | undefined {
    for (const lane of this.shared) if (!lane.stalled && lane.occupant === undefined) return lane;
    const spare = this.shared.length > 0 && this.shared.length < SHARED_LANES_MAX ? this.idle.pop()?.lane : undefined;
    if (spare !== undefined) {
      this.shared.push(spare);
      this.progress.set(spare, progressOf(spare));
      spare.onVacant = () => this.offer(spare);
      return spare;
    }
    if (this.shared.length < SHARED_LANES_MAX) return undefined;
    // The end of a script is waited for, the end of a stall is not.
    return this.shared.find((lane) => lane.occupant === undefined);
  }

  /** A dedicated lane to use at once, if one is idle. */
  dedicatedLane(): Lane | undefined {
    const lane = this.idle.pop()?.lane;
    if (lane !== undefined) this.dedicatedInUse += 1;
    return lane;
  }

  /** Waits for a lane, for `limits.holdMs` where nothing else is said. Gives a function that ends the wait. */
  wait(
    dedicated: boolean,
    waiter: LaneWaiter,
    deadline = this.upstream.waitDeadline(),
    onlyWhileReachable = false,
  ): () => void {
    const waiting: Waiting = { waiter, dedicated, deadline, onlyWhileReachable };
    this.waiting.push(waiting);
    this.connectForWaiters();
    // Away for longer than anybody may wait: say so at once, not at the next tick.
    if (waiting.deadline <= Date.now()) setImmediate(() => this.giveUp(Date.now()));
    return () => {
      const at = this.waiting.indexOf(waiting);
      if (at >= 0) this.waiting.splice(at, 1);
    };
  }

  /** Takes back a dedicated lane. One that is not provably clean is closed, never used again. */
  release(lane: Lane, clean: boolean): void {
    this.dedicatedInUse -= 1;
    lane.owner = undefined;
    if (lane.state !== 'ready') return;
    const wanted = this.waiting.some((waiting) => waiting.dedicated);
    if (!clean || lane.owed > 0) lane.close(RETIRED);
    else if (wanted || this.idle.length < this.upstream.limits.idleLanesMax) this.addDedicated(lane);
    else lane.close(RETIRED);
  }

  /** Called 20 times a second: finds stalled lanes, closes idle ones, gives up on waits that took too long. */
  tick(): void {
    this.giveUp(Date.now());
    for (const lane of this.shared) this.watch(lane);
    for (let i = this.idle.length - 1; i >= 0; i -= 1) {
      const entry = this.idle[i]!;
      entry.ticks += 1;
      if (entry.ticks < IDLE_TICKS || (this.wantsSpare && this.idle.length === 1)) continue;
      this.idle.splice(i, 1);
      entry.lane.close(RETIRED);
    }
    if (this.waiting.length > 0) this.connectForWaiters();
    this.keepSpare();
    const unused = this.shared.length + this.idle.length + this.waiting.length + this.connecting + this.dedicatedInUse;
    if (unused === 0) this.onEmpty();
  }

  /**
   * While a script keeps the server busy, no new connection can SELECT its database; what the server still takes then
   * (SCRIPT KILL, FUNCTION STATS, MULTI) goes over a lane that was there before.
   */
  private keepSpare(): void {
    if (!this.wantsSpare || this.idle.length > 0 || this.connecting > 0 || !this.upstream.hasRoom) return;
    this.spareTicks -= 1;
    if (this.spareTicks > 0) return;
    this.spareTicks = SPARE_TICKS;
    this.connectOne(false);
  }

  private get wantsSpare(): boolean {
    return this.identity.database !== 0 && this.shared.length > 0;
  }

  private giveUp(now: number): void {
    if (this.waiting.length === 0) return;
    const { reachable } = this.upstream;
    const late: Waiting[] = [];
    this.waiting = this.waiting.filter((waiting) => {
      const awaitsScript = !waiting.dedicated && this.shared.length >= SHARED_LANES_MAX;
      const over = (waiting.deadline <= now && !awaitsScript) || (waiting.onlyWhileReachable && !reachable);
      if (over) late.push(waiting);
      return !over;
    });
    for (const { waiter } of late) {
      waiter.failed(new HoldfastError('KVDOWN', 'the KV store cannot be reached; try again later'), false);
    }
  }

  private watch(lane: Lane): void {
    const seen = this.progress.get(lane);
    if (seen === undefined) return;
    if (lane.bytesRead !== seen.bytesRead) {
      seen.bytesRead = lane.bytesRead;
      seen.ticks = 0;
      seen.idleTicks = 0;
      lane.stalled = isBusyWithLargeReplies(lane, seen);
    } else if (lane.owed > 0) {
      seen.ticks += 1;
      if (seen.ticks >= STALLED_TICKS) lane.stalled = true;
    } else {
      seen.ticks = 0;
      lane.stalled = false;
      seen.idleTicks += 1;
      // The first lane stays while it serves anybody; further ones were for a stall that is over.
      if (seen.idleTicks >= IDLE_TICKS && this.shared[0] !== lane) lane.close(RETIRED);
    }
  }

  private connectForWaiters(): void {
    if (this.retryTimer !== undefined) return;
    const dedicated = this.waiting.filter((waiting) => waiting.dedicated).length;
    const shared = this.waiting.length > dedicated && this.shared.length < SHARED_LANES_MAX ? 1 : 0;
    const wanted = Math.min(dedicated + shared, 256) - this.connecting;
    if (wanted <= 0) return;
    const backoffMs = this.upstream.backoffMs();
    if (backoffMs > 0) {
      this.retryTimer = setTimeout(() => {
        this.retryTimer = undefined;
        this.connectForWaiters();
      }, backoffMs);
      return;
    }
    // Without room they wait for the next tick.
    for (let i = 0; i < wanted && this.upstream.makeRoom(); i += 1)
      this.connectOne(shared === 1 && i === 0 && this.connecting === 0);
  }

  private connectOne(forShared: boolean): void {
    this.connecting += 1;
    const prepare = this.identity.credentials?.prepare;
    if (prepare === undefined) {
      this.connectNow(forShared, true);
      return;
    }
    prepare(false).then(
      () => this.connectNow(forShared, false),
      () => this.notPrepared(),
    );
  }

  /** The user could not be made: as if the KV store could not be reached. */
  private notPrepared(): void {
    this.connecting -= 1;
    this.retryTimer ??= setTimeout(() => {
      this.retryTimer = undefined;
      if (this.waiting.length > 0) this.connectForWaiters();
    }, PREPARE_RETRY_MS);
  }

  /** `final`: a refusal of the server's is told to those who wait; otherwise the user is made once more. */
  private connectNow(forShared: boolean, final: boolean): void {
    this.upstream.connect(this.identity, forShared, {
      ready: (lane) => {
        this.connecting -= 1;
        if (forShared) this.addShared(lane);
        else this.addDedicated(lane);
      },
      failed: (cause, refused) => {
        if (refused && !final) {
          this.identity.credentials!.prepare!(true).then(
            () => this.connectNow(forShared, true),
            () => this.notPrepared(),
          );
          return;
        }
        this.connecting -= 1;
        if (refused) {
          for (const { waiter } of this.waiting.splice(0)) waiter.failed(cause, true);
          return;
        }
        if (this.waiting.length > 0) this.connectForWaiters();
      },
      closed: (lane) => {
        const at = this.shared.indexOf(lane);
        if (at >= 0) this.shared.splice(at, 1);
        const idleAt = this.idle.findIndex((entry) => entry.lane === lane);
        if (idleAt >= 0) this.idle.splice(idleAt, 1);
        this.progress.delete(lane);
      },
    });
  }

  private addShared(lane: Lane): void {
    this.shared.push(lane);
    this.keepSpare();
    this.progress.set(lane, progressOf(lane));
    lane.onVacant = () => this.offer(lane);
    this.offer(lane);
  }

  /** Gives the lane to all who wait for a shared one, up to the first with a script. */
  private offer(lane: Lane): void {
    for (let i = 0; i < this.waiting.length && lane.state === 'ready' && lane.occupant === undefined; ) {
      const waiting = this.waiting[i]!;
      if (waiting.dedicated) i += 1;
      else {
        this.waiting.splice(i, 1);
        waiting.waiter.ready(lane);
      }
    }
  }

  private addDedicated(lane: Lane): void {
    const at = this.waiting.findIndex((waiting) => waiting.dedicated);
    if (at < 0) {
      this.idle.push({ lane, ticks: 0 });
      return;
    }
    const [waiting] = this.waiting.splice(at, 1);
    this.dedicatedInUse += 1;
    waiting!.waiter.ready(lane);
  }
}
