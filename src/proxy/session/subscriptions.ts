/**
 * What a session is subscribed to, by what the KV store has confirmed and nothing else: a request may be refused whole
 * (NOPERM, NOSUB) or in part, and only the server knows. `waiting` holds, in order, what it was asked and has not
 * confirmed yet; when the connection breaks both are what the next one has to be told.
 */
import type { Reply } from '../../resp/reply.ts';

type Kind = 'channels' | 'patterns' | 'shardChannels';

const COMMANDS: ReadonlyMap<string, { readonly kind: Kind; readonly adds: boolean }> = new Map([
  ['subscribe', { kind: 'channels', adds: true }],
  ['psubscribe', { kind: 'patterns', adds: true }],
  ['ssubscribe', { kind: 'shardChannels', adds: true }],
  ['unsubscribe', { kind: 'channels', adds: false }],
  ['punsubscribe', { kind: 'patterns', adds: false }],
  ['sunsubscribe', { kind: 'shardChannels', adds: false }],
]);

export class Subscriptions<Waiting = unknown> {
  /** Names as latin1 text, so that any bytes are kept. */
  readonly channels = new Set<string>();
  readonly patterns = new Set<string>();
  readonly shardChannels = new Set<string>();
  waiting: Waiting[] = [];

  get size(): number {
    return this.channels.size + this.patterns.size + this.shardChannels.size;
  }

  /** There are subscriptions, or may be as soon as the server has answered. */
  get expected(): boolean {
    return this.size > 0 || this.waiting.length > 0;
  }

  /** How many confirmations answer a command whose first one is about to be noted. */
  due(command: string, names: readonly Buffer[]): number {
    const { kind, adds } = COMMANDS.get(command)!;
    return adds || names.length > 0 ? names.length : Math.max(1, this[kind].size);
  }

  /** Notes a confirmation: its kind, the name (null where there was none) and the server's count. */
  confirm({ items }: Reply): void {
    const [word, name] = items ?? [];
    const command = word === undefined ? undefined : COMMANDS.get(word.bytes.toString('latin1'));
    if (command === undefined || name === undefined || name.isNull) return;
    const text = name.bytes.toString('latin1');
    if (command.adds) this[command.kind].add(text);
    else this[command.kind].delete(text);
  }

  clear(): void {
    this.channels.clear();
    this.patterns.clear();
    this.shardChannels.clear();
    this.waiting = [];
  }

  /** Takes out all that is confirmed, as the commands that subscribe a new connection to it. */
  takeConfirmed(): { readonly command: string; readonly names: Buffer[] }[] {
    const commands: { command: string; names: Buffer[] }[] = [];
    for (const [command, { kind, adds }] of COMMANDS) {
      if (!adds || this[kind].size === 0) continue;
      commands.push({ command, names: [...this[kind]].map((name) => Buffer.from(name, 'latin1')) });
      this[kind].clear();
    }
    return commands;
  }
}
