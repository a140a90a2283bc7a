/**
 * The reply to an EXEC behind which SUBSCRIBE or its kin was queued. Such a member is answered by a frame for each name, all
 * in place of the one that the reply's header counts, and messages may stand between:
 *
 *   *2 ── >subscribe a ── >subscribe b ── >message a x ── :1        MULTI, SUBSCRIBE a b, PUBLISH a x, EXEC
 *         └──────── first member ────────┘                └ second
 *
 * How many confirmations a member has follows from its names and from what was confirmed before it. Messages follow the reply.
 */
import { HoldfastError } from '../../errors.ts';
import { type Reply, readReply } from '../../resp/reply.ts';
import type { PendingExchange } from '../request/pending-exchange.ts';
import type { Session } from '../session/session.ts';
import type { QueuedSubscription } from '../session/session-state.ts';
import type { OwedTransaction } from '../upstream/reply-queue.ts';
import { noteSubscribed } from './subscription-request.ts';

const MINUS = 45;
const PUSH = 62;
const MESSAGES: ReadonlySet<string> = new Set(['message', 'pmessage', 'smessage']);

export class TransactionReply implements OwedTransaction {
  private readonly session: Session;
  private readonly exchange: PendingExchange;
  /** By position in the server's reply. */
  private readonly subscriptions: ReadonlyMap<number, QueuedSubscription>;
  private readonly parts: Buffer[] = [];
  private readonly pushes: Buffer[] = [];
  private count = 0;
  /** Of the member that is being confirmed. */
  private confirmed: Buffer[] = [];
  private left: number | undefined;

  constructor(session: Session, exchange: PendingExchange, subscriptions: ReadonlyMap<number, QueuedSubscription>) {
    this.session = session;
    this.exchange = exchange;
    this.subscriptions = subscriptions;
  }

  begin(count: number): void {
    this.count = count;
  }

  member(frame: Buffer): boolean {
    const subscription = this.subscriptions.get(this.parts.length);
    const reply = readReply(frame);
    const word = reply.items?.[0]?.bytes.toString('latin1');
    if (subscription !== undefined && word === subscription.command) this.confirm(subscription, frame, reply);
    else if (frame[0] === PUSH || this.isMessage(reply, word)) this.pushes.push(frame);
    else if (subscription === undefined || (frame[0] === MINUS && this.left === undefined)) this.parts.push(frame);
    else throw new HoldfastError('KVDOWN', 'the KV store sent a reply where only a confirmation can be');
    return this.parts.length === this.count;
  }

  reply(frame: Buffer): void {
    const { exchange, session } = this;
    if (this.count === 0) exchange.reply(frame);
    else exchange.replyMembers(this.parts);
    for (const push of this.pushes) session.push(push);
  }

  lost(cause: HoldfastError, clientId?: number): void {
    this.exchange.lost(cause, clientId);
  }

  fault(thrown: unknown): void {
    this.session.fault(thrown);
  }

  private confirm({ command, names }: QueuedSubscription, frame: Buffer, reply: Reply): void {
    const { subscriptions } = this.session;
    this.left = (this.left ?? subscriptions.due(command, names)) - 1;
    subscriptions.confirm(reply);
    noteSubscribed(this.session);
    this.session.laneDirty = true;
    this.confirmed.push(frame);
    if (this.left > 0) return;
    this.parts.push(Buffer.concat(this.confirmed));
    this.confirmed = [];
    this.left = undefined;
  }

  /** RESP2 has no other sign than the first word, and that the client has just subscribed to what is named behind it. */
  private isMessage({ items }: Reply, word: string | undefined): boolean {
    if (this.session.protocol === 3 || word === undefined || !MESSAGES.has(word)) return false;
    const { channels, patterns, shardChannels } = this.session.subscriptions;
    const name = items![1]?.bytes.toString('latin1') ?? '';
    return channels.has(name) || patterns.has(name) || shardChannels.has(name);
  }
}
