/**
 * A connection of recovery's own to the KV store, off the data plane. It does not reconnect: when it breaks it is over,
 * commands on it fail, and whoever needs one opens another. Replies are RESP2 with bulk strings as Buffers.
 */
import type { Redis } from 'ioredis';
import { connectControl, controlRedis, explainKvFailure, type KvAddress } from '../../control-redis.ts';
import { HoldfastError } from '../../errors.ts';

export type KvArgument = string | Buffer | number;
/** What a RESP2 reply becomes; a member of EXEC that failed is an Error. */
export type KvReply = Buffer | number | null | Error | KvReply[];

const CONNECT_TIMEOUT_MS = 2000;

export class KvConnection {
  readonly #redis: Redis;
  #database = 0;

  private constructor(redis: Redis) {
    this.#redis = redis;
  }

  /** `name`: behind `holdfast:` in the KV store's CLIENT LIST. Rejects with KVDOWN. */
  static async open(address: KvAddress, commandTimeoutMs: number, name = 'control'): Promise<KvConnection> {
    const redis = controlRedis(address, {
      name,
      connectTimeoutMs: CONNECT_TIMEOUT_MS,
      commandTimeoutMs,
    });
    try {
      await connectControl(redis);
    } catch (thrown) {
      throw new HoldfastError('KVDOWN', explainKvFailure(address, thrown), { cause: thrown });
    }
    return new KvConnection(redis);
  }

  get open(): boolean {
    return this.#redis.status === 'ready';
  }

  onClose(listener: () => void): void {
    this.#redis.once('close', listener);
  }

  close(): void {
    this.#redis.disconnect();
  }

  /** Runs one command in database `database`. Rejects with the server's error, or KVDOWN where the connection broke. */
  async command(database: number, args: readonly KvArgument[]): Promise<KvReply> {
    const [reply] = await this.pipeline(database, [args]);
    if (reply instanceof Error) throw reply;
    return reply!;
  }

  /** Sends all at once; a refused command is an Error in its place. Rejects where the connection broke. */
  async pipeline(database: number, commands: readonly (readonly KvArgument[])[]): Promise<KvReply[]> {
    const pipeline = this.#redis.pipeline();
    const select = this.#database !== database;
    if (select) {
      pipeline.call('SELECT', database);
      this.#database = database;
    }
    for (const [name, ...args] of commands) pipeline.callBuffer(String(name), ...args);
    const results = await pipeline.exec();
    if (results === null) throw new HoldfastError('KVDOWN', 'the KV store closed the connection');
    const replies: KvReply[] = [];
    for (const [failure, reply] of results) {
      if (failure === null) replies.push(reply as KvReply);
      else if (failure.name === 'ReplyError') replies.push(failure);
      else throw new HoldfastError('KVDOWN', `the KV store: ${failure.message}`, { cause: failure });
    }
    return select ? replies.slice(1) : replies;
  }

  /**
   * MULTI, the commands, EXEC, in one write. Null where a watched key changed. Commands may SELECT: the connection is in
   * `database` again at the end.
   */
  async transaction(database: number, commands: readonly (readonly KvArgument[])[]): Promise<KvReply[] | null> {
    const replies = await this.pipeline(database, [['MULTI'], ...commands, ['SELECT', database], ['EXEC']]);
    const result = replies.at(-1)!;
    if (result instanceof Error) {
      // EXECABORT: the member that was refused says why.
      throw replies.find((reply) => reply instanceof Error) ?? result;
    }
    if (result === null) return null;
    return (result as KvReply[]).slice(0, -1);
  }

  /**
   * Reads, all of one moment; a refused command is an Error in its place. Commands may SELECT. A server that is out of
   * memory refuses whatever stands in MULTI, reads too: then a script does the same.
   */
  async readTogether(database: number, commands: readonly (readonly KvArgument[])[]): Promise<KvReply[]> {
    try {
      // Without a WATCH there is always a reply.
      return (await this.transaction(database, commands))!;
    } catch (thrown) {
      if (!isOutOfMemory(thrown)) throw thrown;
    }
    const counted = commands.flatMap((command): KvArgument[] => [command.length, ...command]);
    return (await this.command(database, ['EVAL_RO', READ_TOGETHER, 0, ...counted])) as KvReply[];
  }
}

/** ARGV: of each command how many arguments it has, and these. A SELECT lasts until the end of the script. */
const READ_TOGETHER = `
local replies, at = {}, 1
while at <= #ARGV do
  local count = tonumber(ARGV[at])
  replies[#replies + 1] = redis.pcall(unpack(ARGV, at + 1, at + count))
  at = at + count + 1
end
return replies`;

/** There was no answer in time; the connection may still give one. */
export function isTimeout(thrown: unknown): boolean {
  return thrown instanceof HoldfastError && thrown.code === 'KVDOWN' && /timed out/i.test(thrown.message);
}

/** The KV store refused because it has no memory left. */
export function isOutOfMemory(thrown: unknown): boolean {
  return thrown instanceof Error && thrown.message.startsWith('OOM ');
}

/** A flat RESP2 map (`XINFO`, `HELLO`, …) by its keys. */
export function byField(reply: KvReply): Map<string, KvReply> {
  const fields = new Map<string, KvReply>();
  if (!Array.isArray(reply)) return fields;
  for (let at = 0; at + 1 < reply.length; at += 2) fields.set(String(reply[at]), reply[at + 1]!);
  return fields;
}
