/**
 * What Holdfast knows of one command or subcommand of the reference servers.
 * Sources: `COMMAND` of Redis 7.0.15 and Valkey 8.0.x (generated), and a hand-written supplement.
 */

/** A key specification in the words of `COMMAND INFO` (https://redis.io/docs/reference/key-specs/). */
export interface KeySpec {
  readonly flags: readonly string[];
  readonly beginSearch:
    | { readonly type: 'index'; readonly index: number }
    | { readonly type: 'keyword'; readonly keyword: string; readonly startFrom: number }
    | { readonly type: 'unknown' };
  readonly findKeys:
    | { readonly type: 'range'; readonly lastKey: number; readonly keyStep: number; readonly limit: number }
    | {
        readonly type: 'keynum';
        readonly keyNumIndex: number;
        readonly firstKey: number;
        readonly keyStep: number;
      }
    | { readonly type: 'unknown' };
}

/** Which arguments of a request are keys: from `first` to `last` (from the end where negative), every `step`. */
export interface KeyRange {
  readonly first: number;
  readonly last: number;
  readonly step: number;
}

/** One command as a server's `COMMAND` describes it, and as the generated table stores it. */
export interface CommandDescription {
  /** Lower case; a subcommand as `container|subcommand`. */
  readonly name: string;
  readonly arity: number;
  readonly flags: readonly string[];
  readonly categories: readonly string[];
  readonly keySpecs: readonly KeySpec[];
  /** Which reference servers have it; empty for Holdfast's own. */
  readonly servers: readonly ('redis' | 'valkey')[];
  readonly subcommands: readonly CommandDescription[];
}

export interface CommandEntry {
  /** Lower case; a subcommand as `container|subcommand`, e.g. `xgroup|create`. */
  readonly name: string;
  /** Position in the table: a small integer, for arrays indexed by command. */
  readonly index: number;
  /** As `COMMAND INFO` gives it: negative means "at least". */
  readonly arity: number;
  /** `write`, `readonly`, `blocking`, `pubsub`, `noscript`, … as the servers name them. */
  readonly flags: ReadonlySet<string>;
  readonly categories: ReadonlySet<string>;
  readonly keySpecs: readonly KeySpec[];
  /** Which reference servers have it; empty for Holdfast's own commands. */
  readonly servers: readonly ('redis' | 'valkey')[];
  /** Holdfast's own: no KV store knows it. */
  readonly own: boolean;
  /** For containers (`xgroup`, `client`, …): its subcommands by lower-case name. */
  readonly subcommands: ReadonlyMap<string, CommandEntry> | undefined;
  /** For subcommands: the command it belongs to. */
  readonly container: CommandEntry | undefined;
}
