/**
 * The contract between the proxy and what Holdfast does to commands. The proxy moves bytes; an interceptor
 * looks at one request and its reply. Registration is one line in `registry.ts`, whose order is the order of calls:
 * requests pass the interceptors first to last, replies last to first.
 *
 *   request ──▶ A.request ──▶ B.request ──▶ KV store
 *   client  ◀── A's onReply ◀── B's onReply ◀──┘
 *
 * A command that no interceptor handles never becomes an Exchange: its bytes go on as they are.
 */
import type { CommandEntry, KeyRange } from './command/command.ts';
import type { HoldfastError } from './errors.ts';
import type { Protocol } from './resp/encode.ts';

/** What interceptors may know of the client's session. */
export interface SessionView {
  /** Holdfast's own client ID, as `CLIENT ID` gives it. */
  readonly id: number;
  /** The name the session authenticated as; `default` without AUTH. */
  readonly user: string;
  /** The scope of the session's identity, as its provider made it; `undefined` for sessions without one. */
  readonly scope: object | undefined;
  /** Whether a user of Holdfast's own may administer it; `undefined` for the KV store's users, which it judges. */
  readonly administers: boolean | undefined;
  readonly database: number;
  readonly protocol: Protocol;
  readonly closed: boolean;
  /** Somebody has let this session in: Holdfast for a user of its own, else the KV store, now or at an earlier time. */
  readonly admitted: boolean;
  /** While the KV store cannot be reached: what INFO gave this session's user last, and when. */
  lastInfo(): { readonly text: string; readonly at: number } | undefined;
  /** Of the clients of the same scope, in all processes. */
  clientsInScope(): Promise<{ readonly connected: number; readonly blocked: number }>;
  /** INFO without arguments has given `text`. */
  noteInfo(text: string): void;
  /** It has state that belongs to a connection of its own: a transaction, watched keys, client tracking, a subscription. */
  readonly pinned: boolean;
  /** A place for an interceptor to keep what belongs to the session; dropped with it. */
  readonly state: Map<symbol, unknown>;
  /** Calls `listener` once when the session ends. */
  onClose(listener: () => void): void;
}

/** What was answered right before a request and right behind it. */
export interface Surrounding {
  readonly before: Promise<Buffer | undefined>;
  readonly after: Promise<Buffer | undefined>;
}

/** One intercepted request on its way. Arguments and replies are owned by the exchange and may be kept. */
export interface Exchange {
  readonly session: SessionView;
  /** `undefined`: a command that the table does not know. */
  readonly command: CommandEntry | undefined;
  /** The scope of this one request where it is not the session's (`HOLDFAST WITH`). */
  readonly scope: object | undefined;
  /** Command name first. Assigning rewrites what is sent. */
  args: readonly Buffer[];
  /** Queued behind a MULTI: `onReply` then sees this command's member of EXEC's reply, `+QUEUED` is not shown to it. */
  readonly queued: boolean;
  /** On EXEC: what was queued since MULTI, in order. Otherwise empty. */
  readonly transaction: readonly Exchange[];

  /** Answers in place of the KV store. Later interceptors are skipped; `onReply` of earlier ones still applies. */
  respond(reply: Buffer): void;
  /**
   * Sees the whole reply (one RESP frame in the session's protocol) and gives the one to pass on. A promise holds this
   * reply and those behind it, not the requests behind it. A rejection answers the client with an error and closes nothing.
   * Of SUBSCRIBE and its kin it sees each confirmation, and gives at once what the client gets for it: nothing, or more.
   */
  onReply(transform: (reply: Buffer) => Buffer | Promise<Buffer>): void;
  /**
   * The upstream connection broke before the reply: the outcome at the KV store is unknown. Gives the reply instead of
   * the default error. The first registered one that gives a buffer wins. `clientId` is the KV store's ID of that
   * connection, whose bytes can still land; undefined where the request was never sent.
   */
  onLost(recover: (cause: HoldfastError, clientId: number | undefined) => Buffer | Promise<Buffer>): void;
  /** Never executed: queued, then DISCARD, EXECABORT, a null EXEC (WATCH) or a refused queueing; or the session ended before it was sent. */
  onDiscard(listener: () => void): void;
  /**
   * It may have been executed, and no reply will come: queued, and the connection broke under EXEC; or the session ended meanwhile.
   * Otherwise `onLost` is told. `clientId` as there.
   */
  onDoubt(listener: (cause: HoldfastError, clientId: number | undefined) => void): void;
  /**
   * Sends a request once more (this one's current `args` by default) on a connection fit for this session and command,
   * and gives the raw reply. Only inside `onReply` and `onLost`. Rejects with `KVDOWN` when there is no upstream
   * within `limits.holdMs`, and when that connection breaks too.
   */
  resend(args?: readonly Buffer[]): Promise<Buffer>;
  /**
   * Asks the KV store whether it lets the session do this (this request by default), without doing it; for work that begins
   * before the request is sent. Gives its NOAUTH or NOPERM, or nothing. Only inside `request`, and not of a queued exchange.
   */
  judge(args?: readonly Buffer[]): Promise<Buffer | undefined>;
  /** Queued: whether the KV store has taken it into its queue. A promise while its answer is on the way; it never rejects. */
  inQueue(): boolean | Promise<boolean>;
  /**
   * Sends `args` right before this request and right behind it, on the same connection, and gives both replies; `undefined` for one that
   * is lost. Only inside `request`, and not of a queued exchange. For a request that is never sent they do not come.
   */
  surround(args: readonly Buffer[]): Surrounding;
  /**
   * Runs another command for this session through the interceptors behind the one that asks, and gives its reply: on the
   * session's own lane, behind everything that was sent before, or in another database. Only inside `request`, and not of
   * a queued exchange. Rejects as `resend` does.
   */
  run(args: readonly Buffer[], database?: number): Promise<Buffer>;
}

/** What `Glance.look` gives: the request goes on as it is, or becomes an exchange. */
export const PLAIN = -1;
export const EXCHANGE = -2;

/**
 * For interceptors that care about few requests, or about replies that are null or errors: they decide on the bytes that
 * came, and no exchange is made for the rest. Other replies are not copied, and nothing is allocated for them.
 *
 *   look ──▶ PLAIN      forwarded, never heard of again
 *        ──▶ EXCHANGE   an exchange, as without a glance
 *        ──▶ mark ≥ 0   forwarded; reply null, an error or lost ──▶ an exchange that was sent already ──▶ late(exchange)
 *                                  any other reply              ──▶ answered(mark, …)
 *
 * It is asked only where a session has nothing special (no transaction, no pinned connection); otherwise `request` is.
 */
export interface Glance {
  /**
   * The request stands in `buffer` at `start`, argument i between `start + bounds[2i]` and `start + bounds[2i + 1]`.
   * `prefix` is put before the keys of a scoped session's request.
   */
  look(
    buffer: Buffer,
    start: number,
    bounds: Int32Array,
    argc: number,
    prefix: Buffer | undefined,
    session: SessionView,
  ): number;
  /** So many replies have passed: their length with framing, together. */
  answered(mark: number, replies: number, bytes: number): void;
  /**
   * `args` are the client's own, keys prefixed where the command needs nothing else in a scope. Only `onReply` and
   * `onLost` have a meaning any more.
   */
  late(exchange: Exchange, form: SentForm | undefined): void;
  /** What the request that was marked last is sent as. Requests in a row with one and the same form are sent in one run. */
  readonly form?: SentForm | undefined;
  /** It never marks a request. Beside such ones another interceptor's glance has its use, and each of them has its say. */
  readonly sieves?: boolean;
  /** Replies that are null are not looked at either. */
  readonly errorsOnly?: boolean;
}

/** `head`, the arguments from `argumentsFrom` on as they came, `tail`. */
export interface SentForm {
  readonly head: Buffer;
  readonly argumentsFrom: number;
  readonly tail: Buffer;
  /** The arguments that get the session's prefix, where they are not the same for all requests of the command. */
  readonly keys?: KeyRange;
}

export interface Interceptor {
  readonly name: string;
  /** Has a use only where no other interceptor looks at the command, but for those that sieve. */
  readonly glance?: Glance;
  /** Called for sessions with a scope, or without one, only; costs others nothing. */
  readonly sessions?: 'scoped' | 'unscoped';
  /** Asked once per command at start, and once with `undefined` for commands that the table does not know. */
  handles(command: CommandEntry | undefined): boolean;
  /**
   * A promise holds this request and all behind it in the session (execution order is kept); a rejection with a
   * HoldfastError answers the client with it. Synchronous is the usual case.
   */
  request(exchange: Exchange): void | Promise<void>;
}
