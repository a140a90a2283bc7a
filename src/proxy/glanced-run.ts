/**
 * Requests in a row that a glance has marked (see the contract in intercept/interceptor.ts), with what it takes to make
 * exchanges of those whose reply is null or an error: one copy of their bytes, kept until all are answered.
 */
import type { HoldfastError } from '../errors.ts';
import type { Glance } from '../intercept/interceptor.ts';
import { RequestScanner } from '../resp/request-scanner.ts';
import type { CommandPlan } from './carriage.ts';
import { type ExchangeHost, PendingExchange } from './pending-exchange.ts';
import { prefixKeys } from './prefix-keys.ts';

/** The bytes were scanned before. */
const NO_LIMITS = { bulkBytesMax: Number.MAX_SAFE_INTEGER };

export class GlancedRun {
  private readonly host: ExchangeHost;
  private readonly plan: CommandPlan;
  private readonly glance: Glance;
  private readonly prefix: Buffer | undefined;
  private readonly bytes: Buffer;
  private readonly marks: readonly number[];
  /** Whose reply comes next. */
  private next = 0;
  /** The request that `bytes` is read up to. */
  private read = 0;
  private readBytes = 0;

  constructor(
    host: ExchangeHost,
    plan: CommandPlan,
    prefix: Buffer | undefined,
    bytes: Buffer,
    marks: readonly number[],
  ) {
    this.host = host;
    this.plan = plan;
    this.glance = plan.glance!;
    this.prefix = prefix;
    this.bytes = bytes;
    this.marks = marks;
  }

  /** The next reply has been delivered. */
  answered(replyBytes: number): void {
    this.glance.answered(this.marks[this.next]!, replyBytes);
    this.next += 1;
  }

  /** The next reply is this null or error. */
  take(frame: Buffer): void {
    this.exchange().reply(frame);
  }

  /** The next reply will not come. */
  lost(cause: HoldfastError): void {
    this.exchange().lost(cause);
  }

  private exchange(): PendingExchange {
    const scanner = new RequestScanner(NO_LIMITS);
    let length = 0;
    for (; this.read <= this.next; this.read += 1) {
      this.readBytes += length;
      scanner.reset();
      length = scanner.scan(this.bytes, this.readBytes, this.bytes.length);
    }
    const args: Buffer[] = [];
    for (let i = 0; i < scanner.argc; i += 1) {
      const start = this.readBytes + scanner.bounds[i * 2]!;
      args.push(this.bytes.subarray(start, this.readBytes + scanner.bounds[i * 2 + 1]!));
    }
    this.readBytes += length;
    this.next += 1;
    const { prefix, plan } = this;
    const sent = prefix === undefined ? args : prefixKeys(args, plan.prefixedKeys!, prefix);
    const exchange = new PendingExchange(this.host, plan.command, sent, false, []);
    exchange.nextInterceptor(plan.interceptors[0]!);
    this.glance.late(exchange);
    return exchange;
  }
}
