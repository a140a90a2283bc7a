/**
 * Proof of the checker: copies of Holdfast with one safeguard taken out each, and a plan of faults under which the
 * checker must find what it guards against. A mutation is a small replacement in a copied source tree; it fails loudly
 * when the place it names is gone.
 */
import { cp, mkdtemp, readFile, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { NemesisName } from './nemeses.ts';
import type { Fault, Phase } from './schedule.ts';

interface Edit {
  readonly file: string;
  /** Must stand in the file exactly once. */
  readonly search: string;
  readonly replace: string;
}

export interface Mutation {
  readonly name: string;
  /** What is taken out. */
  readonly without: string;
  readonly edits: readonly Edit[];
  readonly sidecars: number;
  readonly plan: readonly Phase[];
  /** What one of the violations must say. */
  readonly caughtBy: RegExp;
}

const QUIET_MS = 6500;

function fault(nemesis: NemesisName, atMs: number, durationMs: number, options: Partial<Fault> = {}): Fault {
  return { nemesis, atMs, durationMs, index: 0, fraction: 0.3, ...options };
}

function repeated(times: number, faults: readonly Fault[]): Phase[] {
  return Array.from({ length: times }, () => ({ faults, quietMs: QUIET_MS }));
}

export const MUTATIONS: readonly Mutation[] = [
  {
    name: 'no-ledger-wait',
    without: 'the wait of an XADD for its commit',
    edits: [
      {
        file: 'src/intercept/ledger-xadd.ts',
        search: '    return ledger.writer\n      .commit({',
        replace: '    return Promise.resolve(reply);\n    return ledger.writer\n      .commit({',
      },
    ],
    sidecars: 1,
    plan: repeated(1, [fault('kv-empty-restart', 1000, 100)]),
    caughtBy: /acknowledged events lost/,
  },
  {
    name: 'no-acknowledgement-filter',
    without: 'leaving out of replies what is acknowledged already',
    edits: [
      {
        file: 'src/intercept/ledger-read.ts',
        search: 'if (set.has(id)) done.push(idText);',
        replace: 'if (false) done.push(idText);',
      },
    ],
    sidecars: 1,
    // While a stopped consumer holds old entries, the others go on: the checkpoint stays behind.
    plan: repeated(2, [fault('consumer-pause', 500, 5000, { index: 1 }), fault('kv-empty-restart', 4000, 100)]),
    caughtBy: /deliveries after a recorded acknowledgement|redeliveries above the bound/,
  },
  {
    name: 'no-epoch-of-commits',
    without: 'the comparison of epochs when an entry commits',
    edits: [
      {
        file: 'src/ledger/sql/001-ledger.sql',
        search: 'WHERE stream.epoch IS DISTINCT FROM named.epoch OR stream.ended_at IS NOT NULL;',
        replace: 'WHERE stream.ended_at IS NOT NULL;',
      },
    ],
    sidecars: 2,
    // The second sidecar has IDs from the KV store that it cannot commit; the first one restores without them.
    plan: repeated(2, [
      fault('ledger-link-held', 1000, 5000, { index: 1, fraction: 0.5 }),
      fault('kv-empty-restart', 2500, 50),
    ]),
    caughtBy: /acknowledged events lost/,
  },
];

export function mutationNamed(name: string): Mutation {
  const mutation = MUTATIONS.find((candidate) => candidate.name === name);
  if (mutation === undefined) throw new Error(`no mutation is called ${name}`);
  return mutation;
}

/** A copy of what a sidecar runs from, with the mutation in it. Gives its directory. */
export async function mutatedTree(root: string, mutation: Mutation): Promise<string> {
  const tree = await mkdtemp(join(tmpdir(), `holdfast-without-${mutation.name}-`));
  await cp(join(root, 'src'), join(tree, 'src'), { recursive: true });
  for (const file of ['package.json', 'tsconfig.json']) await cp(join(root, file), join(tree, file));
  await symlink(join(root, 'node_modules'), join(tree, 'node_modules'));
  for (const { file, search, replace } of mutation.edits) {
    const path = join(tree, file);
    const parts = (await readFile(path, 'utf8')).split(search);
    if (parts.length !== 2) throw new Error(`${mutation.name}: found ${parts.length - 1} times in ${file}: ${search}`);
    await writeFile(path, parts.join(replace));
  }
  return tree;
}
