/** What the commands on resources have in common: the database, the organization, who asks, and words for resources. */
import { userInfo } from 'node:os';
import type pg from 'pg';
import { ledgerDatabaseUrl } from '../../config/ledger-database-url.ts';
import { type LoadedConfig, loadConfig } from '../../config/load-config.ts';
import { HoldfastError } from '../../errors.ts';
import type { Invocation } from '../../subcommand.ts';
import { kindNamed } from '../resources/kinds.ts';
import { openStore } from '../resources/store.ts';

export const DEFAULT_ORG = '00000000-0000-0000-0000-000000000000';
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const UNITS: Readonly<Record<string, number>> = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

export interface CommandContext {
  readonly pool: pg.Pool;
  readonly org: string;
  /** Who did it, as events say. */
  readonly actor: string;
  readonly flags: LoadedConfig['flags'];
  readonly words: readonly string[];
}

/** Loads the configuration, connects, runs, and disconnects. */
export async function withContext<T>(
  { args, env, workingDirectory }: Invocation,
  options: { readonly flags: NonNullable<Parameters<typeof loadConfig>[0]['flags']>; readonly wordsMax: number },
  run: (context: CommandContext) => Promise<T>,
): Promise<T> {
  const { config, flags, words } = loadConfig({
    args,
    env,
    workingDirectory,
    flags: { ...options.flags, org: { type: 'string' } },
    wordsMax: options.wordsMax,
  });
  const org = typeof flags.org === 'string' ? flags.org.toLowerCase() : DEFAULT_ORG;
  if (!UUID.test(org)) throw new HoldfastError('CONFIG', '--org: must be a UUID');
  const url = await ledgerDatabaseUrl(config);
  if (url === undefined) {
    throw new HoldfastError('CONFIG', 'ledger.database: is not set, and no Holdfast runs one in the data directory');
  }
  const pool = await openStore(url, 2);
  try {
    return await run({ pool, org, actor: `user:${userInfo().username}`, flags, words });
  } finally {
    await pool.end();
  }
}

export interface Named {
  readonly kind: string;
  readonly name: string | undefined;
}

/** `devices`, `device x`, `device/x`. Throws `CONFIG`. */
export function namedResource(words: readonly string[], command: string): Named {
  const [first, second] = words;
  if (first === undefined) throw new HoldfastError('CONFIG', `${command}: of what? say a kind, such as devices`);
  const [word, inSame] = first.split('/', 2) as [string, string | undefined];
  const kind = kindNamed(word);
  if (kind === undefined) throw new HoldfastError('CONFIG', `${command}: there is no kind ${word}`);
  return { kind, name: inSame ?? second };
}

export function oneResource(
  words: readonly string[],
  command: string,
): { readonly kind: string; readonly name: string } {
  const { kind, name } = namedResource(words, command);
  if (name === undefined || name === '') throw new HoldfastError('CONFIG', `${command}: which ${kind}? give its name`);
  return { kind, name };
}

export function textFlag(context: CommandContext, name: string): string | undefined {
  const value = context.flags[name];
  return typeof value === 'string' ? value : undefined;
}

export function countFlag(context: CommandContext, name: string): number | undefined {
  const text = textFlag(context, name);
  if (text === undefined) return undefined;
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 1) {
    throw new HoldfastError('CONFIG', `--${name}: must be a whole number above 0`);
  }
  return value;
}

/** Milliseconds of `90m`, `12h` or `7d`. */
export function durationFlag(context: CommandContext, name: string): number | undefined {
  const text = textFlag(context, name);
  if (text === undefined) return undefined;
  const match = /^(\d+)([smhd])$/.exec(text);
  if (match === null) throw new HoldfastError('CONFIG', `--${name}: must be a time such as 90m, 12h or 7d`);
  return Number(match[1]) * UNITS[match[2]!]!;
}
