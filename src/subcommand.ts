/** What `main.ts` hands to a subcommand: the only way by which arguments and environment come in. */
export interface Invocation {
  /** Behind the subcommand's name. */
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly workingDirectory: string;
  /** Whether a person reads what is written. */
  readonly terminal: boolean;
  write(text: string): void;
  /** Resolves at the first SIGINT or SIGTERM; a second one ends the process at once. */
  readonly stopRequested: Promise<void>;
}

export interface Subcommand {
  /** The whole text of `--help`. */
  help(): string;
  /** Gives the exit code. Throws a HoldfastError for what is to be one line on stderr and exit code 2. */
  run(invocation: Invocation): Promise<number>;
}
