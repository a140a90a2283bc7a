/** `holdfast apply`: manifests into resources. */
import { readdir, readFile, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { HoldfastError, messageOf } from '../../errors.ts';
import type { Subcommand } from '../../subcommand.ts';
import { decodeManifest } from '../manifest/read-manifest.ts';
import { applyManifest } from '../resources/apply-manifest.ts';
import { withContext } from './command-context.ts';

const FLAGS = {
  file: { type: 'string', short: 'f', multiple: true },
  recursive: { type: 'boolean', short: 'R' },
  'dry-run': { type: 'boolean' },
} as const;
const MANIFEST = /\.(ya?ml|json)$/;
const FILE_BYTES_MAX = 256 * 1024 * 1024;

export const apply: Subcommand = {
  help: () => `Usage: holdfast apply -f FILE|DIRECTORY|- [-R] [--dry-run] [--org UUID]

Creates and changes resources as manifests say, YAML or JSON. A file with any mistake is not applied at all, and all its
mistakes are listed as FILE:DOCUMENT: FIELD: REASON (VALUE).

  -f FILE    a manifest, a directory of them (.yaml, .yml, .json), or - for what comes in; may be repeated
  -R         also what is in directories inside
  --dry-run  says what would be done
  --org UUID the organization (00000000-0000-0000-0000-000000000000)

Exit code 1: something was refused.
`,
  async run(invocation) {
    const { workingDirectory, write } = invocation;
    return withContext(invocation, { flags: FLAGS, wordsMax: 0 }, async ({ pool, org, actor, flags }) => {
      const given = Array.isArray(flags.file) ? flags.file.map(String) : [];
      if (given.length === 0) throw new HoldfastError('CONFIG', 'apply: which manifest? say -f FILE');
      const dryRun = flags['dry-run'] === true;
      let refused = false;
      for await (const file of filesOf(given, workingDirectory, flags.recursive === true)) {
        const problems = await problemsOf(() =>
          readText(file, workingDirectory).then((text) =>
            applyManifest(pool, file, text, {
              org,
              actor,
              dryRun,
              applied: (name, outcome) => write(`${name} ${outcome}${dryRun ? ' (dry run)' : ''}\n`),
              remarked: (line) => write(`${line}\n`),
            }),
          ),
        );
        for (const line of problems) write(`${line}\n`);
        if (problems.length > 0) write(`${file}: nothing of it was applied\n`);
        refused ||= problems.length > 0;
      }
      return refused ? 1 : 0;
    });

    /** A file that cannot be read is a problem of that file. */
    async function problemsOf(run: () => Promise<readonly string[]>): Promise<readonly string[]> {
      try {
        return await run();
      } catch (error) {
        if (error instanceof UnreadableFile) return [error.message];
        throw error;
      }
    }
  },
};

class UnreadableFile extends Error {}

async function* filesOf(
  given: readonly string[],
  workingDirectory: string,
  recursive: boolean,
): AsyncGenerator<string> {
  for (const name of given) {
    if (name === '-') {
      yield name;
      continue;
    }
    const path = resolve(workingDirectory, name);
    const found = await stat(path).catch(() => undefined);
    if (found === undefined) throw new HoldfastError('CONFIG', `-f: there is no file ${path}`);
    if (!found.isDirectory()) {
      yield name;
      continue;
    }
    const entries = await readdir(path, { withFileTypes: true, recursive });
    const files = entries.filter((entry) => entry.isFile() && MANIFEST.test(entry.name));
    for (const file of files.map((entry) => join(entry.parentPath ?? entry.path, entry.name)).sort()) yield file;
  }
}

async function readText(file: string, workingDirectory: string): Promise<string> {
  try {
    if (file === '-') return decodeManifest(await buffer(process.stdin));
    const path = resolve(workingDirectory, file);
    const { size } = await stat(path);
    if (size > FILE_BYTES_MAX) throw new Error(`it has ${size} bytes, at most ${FILE_BYTES_MAX} are read`);
    return decodeManifest(await readFile(path));
  } catch (error) {
    throw new UnreadableFile(`${file}: document: ${messageOf(error)}`);
  }
}
