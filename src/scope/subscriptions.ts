/**
 * What one scoped session is subscribed to, in its own words, and what it hears.
 *
 * Channels are subscribed one by one under their physical names. Patterns are not: the KV store sends what matches the
 * scope's few physical patterns (channels.ts), and each message is matched with the session's own patterns here.
 *
 *   PSUBSCRIBE a b   ──▶ PSUBSCRIBE (what a and b need)    first confirmation ──▶ one for a, one for b; others ──▶ none
 *   PUNSUBSCRIBE a   ──▶ PUNSUBSCRIBE (nothing subscribed) the confirmation   ──▶ one for a
 *   last one goes    ──▶ PUNSUBSCRIBE                      first confirmation ──▶ one for each; others ──▶ none
 *
 * Confirmed names decide the counts that the client reads. What has to be sent depends on those and on what waits for its
 * answer; a request that is refused, whole or in part, leaves no trace.
 */
import { HoldfastError } from '../errors.ts';
import * as encode from '../resp/encode.ts';
import { globMatches } from '../resp/glob.ts';
import { aggregate, type Reply, readReply } from '../resp/reply.ts';
import {
  type ListeningPatterns,
  logicalChannel,
  logicalInvalidation,
  logicalPayload,
  patternsNeeded,
  physicalChannel,
} from './channels.ts';
import { prefixed, type Scope } from './scope.ts';

/** One SUBSCRIBE or UNSUBSCRIBE of any kind on its way. */
export interface SubscriptionRequest {
  readonly args: readonly Buffer[];
  /** Each frame that answers it; gives what the client gets instead, which may be nothing. */
  confirmed(frame: Buffer): Buffer;
}

/** A PSUBSCRIBE or PUNSUBSCRIBE that waits for its answer. */
interface PatternChange {
  readonly adds: boolean;
  /** Empty: all. */
  readonly names: readonly Buffer[];
}

const MINUS = 45;
const PATTERNS_MAX = 1000;
const PUSH = 62;
const NOTHING = Buffer.alloc(0);
const SHARD_COMMANDS = new Set(['ssubscribe', 'sunsubscribe']);

export class ScopedSubscriptions {
  readonly channels = new Map<string, Buffer>();
  readonly shardChannels = new Map<string, Buffer>();
  readonly patterns = new Map<string, Buffer>();
  readonly #scope: Scope;
  readonly #listening: ListeningPatterns;
  readonly #changes: PatternChange[] = [];
  /** Requests of which nothing has been confirmed yet. */
  #unanswered = 0;

  constructor(scope: Scope, listening: ListeningPatterns) {
    this.#scope = scope;
    this.#listening = listening;
  }

  get size(): number {
    return this.channels.size + this.patterns.size + this.shardChannels.size;
  }

  /** There are subscriptions, or may be as soon as the server has answered. */
  get expected(): boolean {
    return this.size > 0 || this.#unanswered > 0;
  }

  /** `args` with the command's name first. */
  request(args: readonly Buffer[]): SubscriptionRequest {
    const asked = this.#requestOf(args);
    this.#unanswered += 1;
    let answered = false;
    return {
      args: asked.args,
      confirmed: (frame) => {
        if (!answered) this.#unanswered -= 1;
        answered = true;
        return asked.confirmed(frame);
      },
    };
  }

  #requestOf(args: readonly Buffer[]): SubscriptionRequest {
    const command = args[0]!.toString('latin1').toLowerCase();
    const names = args.slice(1);
    switch (command) {
      case 'psubscribe':
        return this.#subscribePatterns(args[0]!, names);
      case 'punsubscribe':
        return this.#unsubscribePatterns(args[0]!, names);
      default:
        return this.#channelRequest(command, args);
    }
  }

  /** A message or an invalidation, as it came; `undefined` where the client must not see it. */
  push(frame: Buffer): Buffer | undefined {
    const push = readReply(frame);
    const items = push.items ?? [];
    const kind = items[0]?.bytes.toString('latin1');
    switch (kind) {
      case 'message':
      case 'smessage':
        return this.#message(push, kind);
      case 'pmessage':
        return this.#patternMessage(push);
      case 'invalidate': {
        const keys = logicalInvalidation(this.#scope, items[1]!);
        return keys === undefined ? undefined : pushLike(frame, [encode.bulk('invalidate'), keys]);
      }
      case 'tracking-redir-broken':
        return frame;
      default:
        return undefined;
    }
  }

  #message({ raw, items }: Reply, kind: string): Buffer | undefined {
    const [, channel, payload] = items as [Reply, Reply, Reply];
    const name = logicalChannel(this.#scope, channel.bytes);
    const content = logicalPayload(this.#scope, channel.bytes, payload);
    if (name === undefined || content === undefined) return undefined;
    return pushLike(raw, [encode.bulk(kind), encode.bulk(name), content]);
  }

  #patternMessage({ raw, items }: Reply): Buffer | undefined {
    const [, , channel, payload] = items as [Reply, Reply, Reply, Reply];
    const name = logicalChannel(this.#scope, channel.bytes);
    const content = logicalPayload(this.#scope, channel.bytes, payload);
    if (name === undefined || content === undefined) return undefined;
    const frames: Buffer[] = [];
    for (const pattern of this.patterns.values()) {
      if (!globMatches(pattern, name)) continue;
      frames.push(pushLike(raw, [encode.bulk('pmessage'), encode.bulk(pattern), encode.bulk(name), content]));
    }
    return frames.length === 0 ? undefined : Buffer.concat(frames);
  }

  /** `frame` is the server's confirmation, whose form is kept. */
  #confirmation(frame: Buffer, kind: string, name: Buffer | undefined): Buffer {
    const count = SHARD_COMMANDS.has(kind) ? this.shardChannels.size : this.channels.size + this.patterns.size;
    const shown = name === undefined ? encode.nullBulk(frame[0] === PUSH ? 3 : 2) : encode.bulk(name);
    return pushLike(frame, [encode.bulk(kind), shown, encode.integer(count)]);
  }

  // ---------------------------------------------------------------- channels

  #channelRequest(command: string, args: readonly Buffer[]): SubscriptionRequest {
    const scope = this.#scope;
    const sharded = SHARD_COMMANDS.has(command);
    const set = sharded ? this.shardChannels : this.channels;
    const adds = !command.includes('unsub');
    const physical = (name: Buffer): Buffer => (sharded ? prefixed(scope, name) : physicalChannel(scope, name));
    const change = (name: Buffer): void => {
      const text = name.toString('latin1');
      if (adds) set.set(text, name);
      else set.delete(text);
    };
    return {
      args: [args[0]!, ...args.slice(1).map(physical)],
      confirmed: (frame) => {
        if (frame[0] === MINUS) return frame;
        const [, subject] = readReply(frame).items!;
        if (subject!.isNull) return this.#confirmation(frame, command, undefined);
        const name = logicalChannel(scope, subject!.bytes);
        if (name === undefined) return NOTHING;
        change(Buffer.from(name));
        return this.#confirmation(frame, command, name);
      },
    };
  }

  // ---------------------------------------------------------------- patterns

  /** Patterns as they will be if everything that waits is granted. */
  #expectedPatterns(): Set<string> {
    const expected = new Set(this.patterns.keys());
    for (const { adds, names } of this.#changes) {
      if (names.length === 0) expected.clear();
      for (const name of names) {
        if (adds) expected.add(name.toString('latin1'));
        else expected.delete(name.toString('latin1'));
      }
    }
    return expected;
  }

  /** `all` is called at the first confirmation, and gives what the client gets; what comes after that is not shown. */
  #patternRequest(change: PatternChange, args: Buffer[], all: (frame: Buffer) => Buffer[]): SubscriptionRequest {
    let answered = false;
    return {
      args,
      confirmed: (frame) => {
        if (answered && frame[0] !== MINUS) return NOTHING;
        const at = this.#changes.indexOf(change);
        if (at >= 0) this.#changes.splice(at, 1);
        if (frame[0] === MINUS) return frame;
        answered = true;
        return Buffer.concat(all(frame));
      },
    };
  }

  #subscribePatterns(command: Buffer, names: readonly Buffer[]): SubscriptionRequest {
    // Each message is matched with all of them, while everybody else waits.
    if (this.#expectedPatterns().size + names.length > PATTERNS_MAX) {
      throw new HoldfastError('LIMIT', `a client in a scope may have ${PATTERNS_MAX} patterns; use fewer, or channels`);
    }
    const needed = new Map<string, Buffer>();
    for (const name of names) {
      for (const pattern of patternsNeeded(this.#listening, name)) needed.set(pattern.toString('latin1'), pattern);
    }
    const change: PatternChange = { adds: true, names };
    this.#changes.push(change);
    return this.#patternRequest(change, [command, ...needed.values()], (frame) =>
      names.map((name) => {
        this.patterns.set(name.toString('latin1'), name);
        return this.#confirmation(frame, 'psubscribe', name);
      }),
    );
  }

  #unsubscribePatterns(command: Buffer, names: readonly Buffer[]): SubscriptionRequest {
    const change: PatternChange = { adds: false, names };
    this.#changes.push(change);
    // A pattern that nobody is subscribed to: the server confirms, and nothing changes.
    const placeholder = Buffer.concat([this.#scope.prefixPattern, Buffer.from('holdfast-nothing')]);
    const args = this.#expectedPatterns().size > 0 ? [command, placeholder] : [command];
    return this.#patternRequest(change, args, (frame) => {
      const gone = names.length > 0 ? names : [...this.patterns.values()];
      if (gone.length === 0) return [this.#confirmation(frame, 'punsubscribe', undefined)];
      return gone.map((name) => {
        this.patterns.delete(name.toString('latin1'));
        return this.#confirmation(frame, 'punsubscribe', name);
      });
    });
  }
}

/** A push in the form of another: a push proper in RESP3, an array in RESP2. */
function pushLike(frame: Buffer, items: readonly Buffer[]): Buffer {
  return aggregate(frame[0] === PUSH ? '>' : '*', items);
}
