/**
 * Requests in a row that a glance has marked (see the contract in intercept/interceptor.ts), with what it takes to make
 * exchanges of those whose reply is null or an error: one copy of their bytes, kept until all are answered.
 *
 * Hot path: nothing is allocated for a request, one object for a run.
 */
import type { HoldfastError } from '../../errors.ts';
import type { Glance, SentForm } from '../../interceptor.ts';
import { RequestScanner } from '../../resp/request-scanner.ts';
import { type Slab, slabFor } from '../io/slab.ts';
import type { CommandPlan } from './command-plan.ts';
import { type ExchangeHost, PendingExchange } from './pending-exchange.ts';
import { prefixKeys } from './prefix-keys.ts';

/** The bytes were scanned before. */
const NO_LIMITS = { bulkBytesMax: Number.MAX_SAFE_INTEGER };

/** The mark of each request of a run, or the one that all have. */
export type Marks = number | readonly number[];

export class GlancedRun {
  private readonly host: ExchangeHost;
  private readonly plan: CommandPlan;
  private readonly glance: Glance;
  private readonly form: SentForm | undefined;
  private readonly prefix: Buffer | undefined;
  private readonly slab: Slab;
  private readonly end: number;
  private readonly marks: Marks;
  private left: number;
  /** Whose reply comes next. */
  private next = 0;
  /** The request that the slab is read up to, and where it begins. */
  private read = 0;
  private readAt: number;

  /** `count` requests, which are `buffer[start, end)`. `prefix` is put before the keys that the plan names. */
  constructor(
    host: ExchangeHost,
    plan: CommandPlan,
    form: SentForm | undefined,
    prefix: Buffer | undefined,
    buffer: Buffer,
    start: number,
    end: number,
    marks: Marks,
    count: number,
  ) {
    this.host = host;
    this.plan = plan;
    this.glance = plan.glance!;
    this.form = form;
    this.prefix = prefix;
    this.slab = slabFor(end - start);
    this.readAt = this.slab.keep(buffer, start, end);
    this.end = this.readAt + end - start;
    this.marks = marks;
    this.left = count;
  }

  get errorsOnly(): boolean {
    return this.glance.errorsOnly === true;
  }

  get uniform(): boolean {
    return typeof this.marks === 'number';
  }

  /** The next replies, one where marks differ, have been delivered. */
  answered(replies: number, bytes: number): void {
    const { marks } = this;
    this.glance.answered(typeof marks === 'number' ? marks : marks[this.next]!, replies, bytes);
    this.passed(replies);
  }

  /** The next reply is this error, or null. */
  take(frame: Buffer): void {
    this.exchange().reply(frame);
  }

  fault(thrown: unknown): void {
    this.host.fault(thrown);
  }

  /** The next reply will not come. */
  lost(cause: HoldfastError): void {
    this.exchange().lost(cause);
  }

  private passed(replies: number): void {
    this.next += replies;
    this.left -= replies;
    if (this.left === 0) this.slab.release();
  }

  private exchange(): PendingExchange {
    const scanner = new RequestScanner(NO_LIMITS);
    const { buffer } = this.slab;
    let at = this.readAt;
    let length = 0;
    for (; this.read <= this.next; this.read += 1) {
      at += length;
      scanner.reset();
      length = scanner.scan(buffer, at, this.end);
    }
    // The exchange may outlive the run.
    const request = Buffer.from(buffer.subarray(at, at + length));
    this.readAt = at + length;
    this.passed(1);
    const args: Buffer[] = [];
    for (let i = 0; i < scanner.argc; i += 1) {
      args.push(request.subarray(scanner.bounds[i * 2]!, scanner.bounds[i * 2 + 1]!));
    }
    const { prefix, plan } = this;
    const sent = prefix === undefined ? args : prefixKeys(args, plan.prefixedKeys!, prefix);
    const exchange = new PendingExchange(this.host, plan.command, sent, false, []);
    exchange.nextInterceptor(plan.interceptors[0]!);
    this.glance.late(exchange, this.form);
    return exchange;
  }
}
