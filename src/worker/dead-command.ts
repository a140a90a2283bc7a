/** `holdfast dead list|show|retry|purge`: what an operator does with permanent failures. */
import type { Redis } from 'ioredis';
import { loadConfig } from '../config/load-config.ts';
import { settingsHelp } from '../config/settings.ts';
import { workerUrl } from '../config/worker-url.ts';
import { HoldfastError } from '../errors.ts';
import { createLogger } from '../operations/logger.ts';
import type { Subcommand } from '../subcommand.ts';
import { connectFirst, createConnection } from './connection.ts';
import {
  type DeadLetter,
  findDeadLetter,
  findDeadLetterStreams,
  listDeadLetters,
  purgeDeadLetters,
  retryDeadLetter,
} from './group/dead-letters.ts';

const LIST_COUNT = 50;
const FLAGS = {
  stream: { type: 'string' },
  count: { type: 'string' },
  all: { type: 'boolean' },
  before: { type: 'string' },
  json: { type: 'boolean' },
} as const;

const DURATION_UNITS: Readonly<Record<string, number>> = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

export const dead: Subcommand = {
  help: () => `Usage: holdfast dead list [--count N]
       holdfast dead show ID
       holdfast dead retry ID | --all
       holdfast dead purge ID | --all | --before AGE

Permanent failures. ID is a dead letter's own or that of the entry that failed.
  retry adds the entry to its stream again, under a new ID, for all groups of the stream, and removes the dead letter.
  purge removes dead letters; AGE is such as 90m, 12h or 7d.

  --stream NAME  of dead letters (every one whose name ends in :dead)
  --count N      the newest N of each stream (${LIST_COUNT})
  --json         one JSON object for each dead letter

${settingsHelp()}
`,
  async run({ args, env, workingDirectory, write }) {
    const { config, flags, words } = loadConfig({ args, env, workingDirectory, flags: FLAGS, wordsMax: 2 });
    const [action, id] = words;
    const url = workerUrl(config);
    const redis = createConnection(url, 'holdfast-dead', createLogger({ level: 'silent', pretty: false }));
    await connectFirst(redis, url);
    try {
      const streams = typeof flags.stream === 'string' ? [flags.stream] : await findDeadLetterStreams(redis);
      const print = (stream: string, letter: DeadLetter, whole: boolean): void =>
        write(flags.json === true ? `${JSON.stringify({ deadLetters: stream, ...letter })}\n` : format(letter, whole));
      switch (action) {
        case 'list': {
          const count = positive('--count', flags.count ?? String(LIST_COUNT));
          for (const stream of streams) {
            for (const letter of await listDeadLetters(redis, stream, count)) print(stream, letter, false);
          }
          return 0;
        }
        case 'show': {
          const { stream, letter } = await find(redis, streams, required(id, 'show'));
          print(stream, letter, true);
          return 0;
        }
        case 'retry': {
          let count = 0;
          for (const { stream, letter } of await chosen(redis, streams, id, flags.all === true)) {
            const newId = await retryDeadLetter(redis, stream, letter.id);
            if (newId === undefined) continue;
            count += 1;
            write(`${letter.fields.stream} ${letter.fields.id} -> ${newId}\n`);
          }
          write(`${count} retried\n`);
          return 0;
        }
        case 'purge': {
          const beforeMs = typeof flags.before === 'string' ? Date.now() - age(flags.before) : undefined;
          let count = 0;
          if (beforeMs !== undefined || flags.all === true) {
            for (const stream of streams) {
              // One past the newest possible: everything.
              count += await purgeDeadLetters(redis, stream, { beforeMs: beforeMs ?? Number.MAX_SAFE_INTEGER });
            }
          } else {
            const { stream, letter } = await find(redis, streams, required(id, 'purge'));
            count = await purgeDeadLetters(redis, stream, { id: letter.id });
          }
          write(`${count} purged\n`);
          return 0;
        }
        default:
          throw new HoldfastError('CONFIG', 'dead: say list, show, retry or purge; see holdfast dead --help');
      }
    } finally {
      redis.disconnect();
    }
  },
};

interface Found {
  readonly stream: string;
  readonly letter: DeadLetter;
}

async function find(redis: Redis, streams: readonly string[], id: string): Promise<Found> {
  for (const stream of streams) {
    const letter = await findDeadLetter(redis, stream, id);
    if (letter !== undefined) return { stream, letter };
  }
  throw new HoldfastError('CONFIG', `dead: there is no dead letter ${id}`);
}

async function chosen(
  redis: Redis,
  streams: readonly string[],
  id: string | undefined,
  all: boolean,
): Promise<Found[]> {
  if (!all) return [await find(redis, streams, required(id, 'retry'))];
  const found: Found[] = [];
  for (const stream of streams) {
    const letters = await listDeadLetters(redis, stream, Number(await redis.call('XLEN', stream)));
    found.push(...letters.reverse().map((letter) => ({ stream, letter })));
  }
  return found;
}

function required(id: string | undefined, action: string): string {
  if (id === undefined) throw new HoldfastError('CONFIG', `dead ${action}: which one? give its ID`);
  return id;
}

function positive(flag: string, text: unknown): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1)
    throw new HoldfastError('CONFIG', `${flag}: must be a whole number above 0`);
  return value;
}

function age(text: string): number {
  const match = /^(\d+)([smhd])$/.exec(text);
  if (match === null) throw new HoldfastError('CONFIG', '--before: must be an age such as 90m, 12h or 7d');
  return Number(match[1]) * DURATION_UNITS[match[2]!]!;
}

function format({ id, fields }: DeadLetter, whole: boolean): string {
  const { stream = '', group = '', task = '', attempts = '', failedAt = '', error = '' } = fields;
  if (!whole) {
    const firstLine = error.split('\n', 1)[0]!.slice(0, 100);
    return `${id}  ${failedAt}  ${stream} ${fields.id}  ${task || '-'}  ${attempts} attempts  ${firstLine}\n`;
  }
  const original = JSON.parse(fields.original ?? fields.originalBase64 ?? '[]') as string[];
  const lines = [
    `dead letter  ${id}`,
    `failed at    ${failedAt}`,
    `stream       ${stream}`,
    `group        ${group}`,
    `entry        ${fields.id}`,
    `task         ${task || '-'}`,
    `attempts     ${attempts}, taken over ${fields.takeovers ?? 0} times`,
    `error        ${error.split('\n').join('\n             ')}`,
    fields.original === undefined ? 'fields (base64)' : 'fields',
  ];
  for (let i = 0; i + 1 < original.length; i += 2) lines.push(`  ${original[i]}: ${original[i + 1]}`);
  return `${lines.join('\n')}\n`;
}
