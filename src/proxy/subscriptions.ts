/**
 * What a session is subscribed to, as it will be once the KV store has answered what was sent. Needed to know how many
 * confirmations an UNSUBSCRIBE without arguments brings, and to subscribe again on a new connection.
 */
type Kind = 'channels' | 'patterns' | 'shardChannels';

const COMMANDS: Readonly<Record<string, { readonly kind: Kind; readonly adds: boolean }>> = {
  subscribe: { kind: 'channels', adds: true },
  psubscribe: { kind: 'patterns', adds: true },
  ssubscribe: { kind: 'shardChannels', adds: true },
  unsubscribe: { kind: 'channels', adds: false },
  punsubscribe: { kind: 'patterns', adds: false },
  sunsubscribe: { kind: 'shardChannels', adds: false },
};

export class Subscriptions {
  /** Names as latin1 text, so that any bytes are kept. */
  readonly channels = new Set<string>();
  readonly patterns = new Set<string>();
  readonly shardChannels = new Set<string>();

  get size(): number {
    return this.channels.size + this.patterns.size + this.shardChannels.size;
  }

  /** Notes a command of the SUBSCRIBE family; gives how many confirmations it brings, and how to take it back. */
  apply(command: string, names: readonly Buffer[]): { readonly count: number; readonly revert: () => void } {
    const { kind, adds } = COMMANDS[command]!;
    const set = this[kind];
    const before = [...set];
    const revert = (): void => {
      set.clear();
      for (const name of before) set.add(name);
    };
    if (!adds && names.length === 0) {
      const count = Math.max(1, set.size);
      set.clear();
      return { count, revert };
    }
    for (const name of names) {
      const text = name.toString('latin1');
      if (adds) set.add(text);
      else set.delete(text);
    }
    return { count: names.length, revert };
  }

  clear(): void {
    this.channels.clear();
    this.patterns.clear();
    this.shardChannels.clear();
  }

  /** The commands that subscribe a new connection to all of it. */
  commands(): Buffer[][] {
    const commands: Buffer[][] = [];
    for (const [command, { kind, adds }] of Object.entries(COMMANDS)) {
      if (!adds || this[kind].size === 0) continue;
      commands.push([Buffer.from(command), ...[...this[kind]].map((name) => Buffer.from(name, 'latin1'))]);
    }
    return commands;
  }
}
