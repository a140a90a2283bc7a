/**
 * One intercepted request from its arrival to its reply (see the contract in intercept/interceptor.ts).
 *
 *   arrived ──▶ interceptors ──▶ sent ──▶ reply ──▶ transforms, last to first ──▶ written
 *                   │              │        └─ +QUEUED: waits for its member of EXEC's reply
 *                   │              └─ connection lost: `onLost` handlers, else an error
 *                   └─ respond(): never sent; transforms of earlier interceptors apply
 */
import type { Logger } from 'pino';
import type { CommandEntry } from '../../command/command.ts';
import { HoldfastError, messageOf } from '../../errors.ts';
import type { Exchange, Interceptor, SessionView, Surrounding } from '../../interceptor.ts';
import * as encode from '../../resp/encode.ts';
import { aggregate, readReply } from '../../resp/reply.ts';
import type { SessionOutput } from '../io/reply-buffer.ts';
import type { OwedReply } from '../upstream/reply-queue.ts';

/** What an exchange needs of the session it belongs to. */
export interface ExchangeHost {
  /** The client ended its side, and the server gives up what it did not get to: nobody is owed an answer. */
  readonly leaving: boolean;
  readonly view: SessionView;
  readonly output: SessionOutput;
  /** Writes a reply in its place, or ends the connection there (see `endsInstead`). */
  write(reply: Buffer): void;
  /** A reply says that the KV store has not answered, and the connection is to end in its place. */
  endsInstead(reply: Buffer): boolean;
  /** CLIENT REPLY was executed in a transaction. */
  setReplyMode(mode: ReplyMode): void;
  readonly log: Logger;
  /** A reply of a lane has come, or will never come. */
  replyDone(): void;
  resend(args: readonly Buffer[], database: number): Promise<Buffer>;
  run(behind: Interceptor, args: readonly Buffer[], database: number): Promise<Buffer>;
  judge(args: readonly Buffer[]): Promise<Buffer | undefined>;
  /** What was let in when it was judged is refused now. */
  forgetVerdicts(): void;
  /** A mistake of Holdfast's own while the exchange was settled. */
  fault(thrown: unknown): void;
}

export type ReplyMode = 'on' | 'off' | 'skip';

const NOTHING = Buffer.alloc(0);
const MINUS = 45;

interface Probe {
  readonly args: readonly Buffer[];
  readonly before: (reply: Buffer | undefined) => void;
  readonly after: (reply: Buffer | undefined) => void;
}

type Transform = (reply: Buffer) => Buffer | Promise<Buffer>;
type Recover = (cause: HoldfastError, clientId: number | undefined) => Buffer | Promise<Buffer>;

/** The session as it is for a command that is executed in `database`. */
export function viewIn(session: SessionView, database: number): SessionView {
  if (database === session.database) return session;
  return Object.create(session, { database: { value: database } }) as SessionView;
}

export class PendingExchange implements Exchange, OwedReply {
  readonly command: CommandEntry | undefined;
  readonly scope: object | undefined;
  readonly queued: boolean;
  readonly transaction: readonly PendingExchange[];
  args: readonly Buffer[];
  /** What `respond` gave. */
  answer: Buffer | undefined;
  /** CLIENT REPLY OFF or SKIP: nothing is written. */
  silent = false;
  /** Position in EXEC's reply; -1 outside a transaction. */
  slot = -1;
  /** A queued CLIENT REPLY: which replies of EXEC's are left out from here on. */
  replyMode: ReplyMode | undefined;
  /** Takes the reply in place of the client: of a command that an interceptor runs. */
  collect: ((reply: Buffer) => void) | undefined;

  /** What is sent around the request. */
  probe: Probe | undefined;

  private readonly host: ExchangeHost;
  private readonly view: SessionView;
  private readonly database: number;
  private readonly transforms: Transform[] = [];
  private recovery: { readonly recover: Recover; readonly boundary: number } | undefined;
  private answerBoundary = 0;
  /** Transforms registered before the interceptor that is being called. */
  private boundary = 0;
  private current: Interceptor | undefined;
  private readonly doubts: ((cause: HoldfastError, clientId: number | undefined) => void)[] = [];
  private readonly discards: (() => void)[] = [];
  /** Whether the KV store has queued it; `undefined` before it has answered. */
  private queuedThere: boolean | undefined;
  private judged = false;
  private readonly queueWaiters: ((queued: boolean) => void)[] = [];
  /** The session's own step, after all interceptors' transforms. */
  private last: Transform | undefined;

  constructor(
    host: ExchangeHost,
    command: CommandEntry | undefined,
    args: readonly Buffer[],
    queued: boolean,
    transaction: readonly PendingExchange[],
    scope?: object,
    session = host.view,
  ) {
    this.host = host;
    this.view = session;
    this.database = session.database;
    this.scope = scope;
    this.command = command;
    this.args = args;
    this.queued = queued;
    this.transaction = transaction;
  }

  /** The client's session, in the database where this command is executed: what follows in a pipeline may select another one. */
  get session(): SessionView {
    return viewIn(this.view, this.database);
  }

  respond(reply: Buffer): void {
    this.answer = reply;
    this.noteQueued(true);
    this.answerBoundary = this.boundary;
  }

  onReply(transform: Transform): void {
    this.transforms.push(transform);
  }

  onLost(recover: Recover): void {
    this.recovery ??= { recover, boundary: this.boundary };
  }

  /** The next interceptor is about to be called. */
  nextInterceptor(interceptor: Interceptor): void {
    this.boundary = this.transforms.length;
    this.current = interceptor;
  }

  run(args: readonly Buffer[], database = this.session.database): Promise<Buffer> {
    if (this.current === undefined || this.queued) throw new HoldfastError('ERR', 'nothing can be run here');
    return this.host.run(this.current, args, database);
  }

  judge(args: readonly Buffer[] = this.args): Promise<Buffer | undefined> {
    if (this.queued) throw new HoldfastError('ERR', 'a queued command is judged when it is queued');
    this.judged = true;
    return this.host.judge(args);
  }

  inQueue(): boolean | Promise<boolean> {
    return this.queuedThere ?? new Promise((resolve) => this.queueWaiters.push(resolve));
  }

  private noteQueued(queued: boolean): void {
    this.queuedThere ??= queued;
    for (const waiter of this.queueWaiters.splice(0)) waiter(this.queuedThere);
  }

  surround(args: readonly Buffer[]): Surrounding {
    let before: Probe['before'] = () => undefined;
    let after: Probe['after'] = () => undefined;
    const surrounding = {
      before: new Promise<Buffer | undefined>((resolve) => {
        before = resolve;
      }),
      after: new Promise<Buffer | undefined>((resolve) => {
        after = resolve;
      }),
    };
    this.probe = { args, before, after };
    return surrounding;
  }

  /** One confirmation of a SUBSCRIBE or its kin, as the client gets it. */
  confirmation(frame: Buffer): Buffer {
    const seen = this.chain(frame);
    if (seen instanceof Promise) throw new HoldfastError('ERR', 'a confirmation cannot be held');
    return seen;
  }

  onDiscard(listener: () => void): void {
    this.discards.push(listener);
  }

  resend(args: readonly Buffer[] = this.args): Promise<Buffer> {
    return this.host.resend(args, this.database);
  }

  /** The session's own look at the reply, after the interceptors'. */
  finally(transform: Transform): void {
    this.last = transform;
  }

  onDoubt(listener: (cause: HoldfastError, clientId: number | undefined) => void): void {
    this.doubts.push(listener);
  }

  discard(): void {
    this.noteQueued(false);
    this.doubts.length = 0;
    for (const listener of this.discards.splice(0)) listener();
  }

  /** No reply will come. Without a `clientId` it was never sent. */
  private givenUp(cause: HoldfastError, clientId: number | undefined): void {
    if (clientId === undefined) {
      this.discard();
      return;
    }
    this.noteQueued(false);
    this.discards.length = 0;
    for (const listener of this.doubts.splice(0)) listener(cause, clientId);
  }

  reply(frame: Buffer): void {
    if (this.judged && isRefusal(frame)) this.host.forgetVerdicts();
    if (this.queued && frame.equals(encode.QUEUED)) {
      this.noteQueued(true);
      this.write(frame);
    } else {
      if (this.queued) {
        this.discard();
        this.slot = -1;
      }
      this.settle(guard(() => this.transform(frame)));
    }
    // Last: who waits until everything was answered writes behind this reply.
    this.host.replyDone();
  }

  /** EXEC's reply, as the parts that its members are. */
  replyMembers(parts: readonly Buffer[]): void {
    const members = guard(() => this.transformParts(parts));
    this.settle(members instanceof Promise ? members.then((reply) => this.chain(reply)) : this.chain(members));
    this.host.replyDone();
  }

  fault(thrown: unknown): void {
    this.host.fault(thrown);
  }

  /** An `onLost` handler is there. */
  get recovers(): boolean {
    return this.recovery !== undefined;
  }

  /** The reply is still to come; what is behind it is written behind it. Who gives it tells the host of its end. */
  replyLater(frame: Promise<Buffer>): void {
    this.settle(frame.then((bytes) => this.transform(bytes)));
  }

  lost(cause: HoldfastError, clientId?: number): void {
    for (const member of this.transaction) member.givenUp(cause, clientId);
    // What waits in a transaction is executed by EXEC, not by its own request.
    if (this.queued) this.discard();
    else if (this.host.leaving) this.givenUp(cause, clientId);
    if (!this.host.leaving) this.recover(cause, clientId);
    this.host.replyDone();
  }

  private recover(cause: HoldfastError, clientId: number | undefined): void {
    const { recovery } = this;
    if (recovery === undefined) {
      this.write(encode.error(cause.toReplyText()));
      return;
    }
    const reply = guard(() => recovery.recover(cause, clientId));
    this.settle(
      reply instanceof Promise
        ? reply.then((bytes) => this.chain(bytes, recovery.boundary))
        : this.chain(reply, recovery.boundary),
    );
  }

  /** Writes what `respond` gave, in its turn. */
  settleAnswer(): void {
    this.settle(this.transformAnswer());
  }

  private transformAnswer(): Buffer | Promise<Buffer> {
    return this.chain(this.answer ?? encode.error('ERR no answer'), this.answerBoundary);
  }

  /** This exchange's reply, after its transforms. */
  transform(frame: Buffer): Buffer | Promise<Buffer> {
    const members = this.transformMembers(frame);
    return members instanceof Promise ? members.then((reply) => this.chain(reply)) : this.chain(members);
  }

  /** A transform that fails gives an error, which those before it see: the scope's takes physical names out of it. */
  private chain(frame: Buffer, boundary = this.transforms.length): Buffer | Promise<Buffer> {
    let reply: Buffer | Promise<Buffer> = frame;
    for (let i = boundary - 1; i >= 0; i -= 1) {
      const step = this.transforms[i]!;
      reply =
        reply instanceof Promise
          ? reply.catch((thrown) => this.failure(thrown)).then(step)
          : guard(() => step(reply as Buffer));
    }
    const { last } = this;
    if (last === undefined) return reply;
    return reply instanceof Promise ? reply.then(last) : last(reply);
  }

  /** EXEC: gives each member of the transaction its own part of the reply. */
  private transformMembers(frame: Buffer): Buffer | Promise<Buffer> {
    if (this.transaction.length === 0) return frame;
    const reply = readReply(frame);
    if (reply.type !== '*' || reply.items === undefined) {
      for (const member of this.transaction) member.discard();
      return frame;
    }
    return this.transformParts(reply.items.map((item) => item.raw));
  }

  private transformParts(frames: readonly Buffer[]): Buffer | Promise<Buffer> {
    const parts: (Buffer | Promise<Buffer>)[] = [...frames];
    for (const member of this.transaction) {
      if (member.slot < 0) continue;
      if (member.answer !== undefined)
        parts.splice(
          member.slot,
          0,
          guard(() => member.transformAnswer()),
        );
      else parts[member.slot] = guard(() => member.transform(parts[member.slot] as Buffer));
    }
    this.leaveOutSilent(parts);
    if (!parts.some((part) => part instanceof Promise)) return aggregate('*', parts as Buffer[]);
    const settled = parts.map((part) =>
      part instanceof Promise ? part.catch((thrown) => this.failure(thrown)) : part,
    );
    return Promise.all(settled).then((all) => aggregate('*', all));
  }

  /** As servers do it, to the byte: the header counts what CLIENT REPLY leaves out. */
  private leaveOutSilent(parts: (Buffer | Promise<Buffer>)[]): void {
    const modes = new Map(this.transaction.map((member) => [member.slot, member.replyMode]));
    let silent = false;
    for (let slot = 0; slot < parts.length; slot += 1) {
      const mode = modes.get(slot);
      if (mode !== undefined) {
        this.host.setReplyMode(mode);
        silent = mode === 'off' || (silent && mode === 'skip');
      }
      if (silent || mode === 'skip') parts[slot] = NOTHING;
    }
  }

  private settle(reply: Buffer | Promise<Buffer>): void {
    if (!(reply instanceof Promise)) {
      this.write(reply);
      return;
    }
    const { collect } = this;
    if (collect !== undefined) {
      reply.then(collect, (thrown) => collect(this.failure(thrown)));
      return;
    }
    if (this.silent) {
      reply.catch((thrown) => this.failure(thrown));
      return;
    }
    const hold = this.host.output.hold();
    const give = (bytes: Buffer): void => (this.host.endsInstead(bytes) ? hold.end() : hold.release(bytes));
    reply.then(give, (thrown) => give(this.failure(thrown)));
  }

  private failure(thrown: unknown): Buffer {
    if (thrown instanceof HoldfastError) return encode.error(thrown.toReplyText());
    this.host.log.error({ err: thrown, command: this.command?.name }, 'an interceptor failed');
    return encode.error(`ERR Holdfast failed internally: ${messageOf(thrown)}`);
  }

  private write(bytes: Buffer): void {
    if (this.collect !== undefined) this.collect(bytes);
    else if (!this.silent || this.host.endsInstead(bytes)) this.host.write(bytes);
  }
}

function isRefusal(frame: Buffer): boolean {
  if (frame[0] !== MINUS) return false;
  const code = frame.toString('latin1', 1, 7);
  return code === 'NOPERM' || code === 'NOAUTH';
}

/** A transform that throws is one that rejects. */
function guard(step: () => Buffer | Promise<Buffer>): Buffer | Promise<Buffer> {
  try {
    return step();
  } catch (thrown) {
    return Promise.reject(thrown);
  }
}
