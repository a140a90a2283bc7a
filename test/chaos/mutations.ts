/**
 * Proof of the checker: copies of Holdfast with one safeguard taken out each, and a plan of faults under which the
 * checker must find what it guards against. A mutation is a small replacement in a copied source tree; it fails loudly
 * when the place it names is gone.
 */
import { cp, mkdtemp, readFile, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ChaosResult } from './chaos-run.ts';
import type { NemesisName } from './nemeses.ts';
import type { Fault, Phase } from './schedule.ts';

export interface Edit {
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
  /** A pause that Holdfast takes in both runs where the plan aims at: it makes a short window long, and changes nothing else. */
  readonly widened?: readonly Edit[];
  readonly sidecars: number;
  readonly plan: readonly Phase[];
  /** What one of the violations must say, or what else is true of the mutated run and of no other. */
  readonly caughtBy: RegExp | ((result: ChaosResult) => boolean);
}

const QUIET_MS = 6500;
function fault(nemesis: NemesisName, atMs: number, durationMs: number, options: Partial<Fault> = {}): Fault {
  return { nemesis, atMs, durationMs, index: 0, fraction: 0.3, ...options };
}

function repeated(times: number, faults: readonly Fault[]): Phase[] {
  return Array.from({ length: times }, () => ({ faults, quietMs: QUIET_MS }));
}

/** The sidecar that starts first leads. */
const LEADER = { index: 0 };
/** The consumer process with the only consumers of `chaos:observed`. */
const OBSERVER = { index: 1 };
/** The producer process that writes to `chaos:observed`, and the sidecar that it does so through. */
const OTHER = { index: 1 };
/** Holds what goes to the server, and lets all of it through at the end. */
const HELD_TO_SERVER = { fraction: 0.6 };
/** The same, but what was held is lost with its connection. */
const HELD_THEN_RESET = { fraction: 0.5 };
/** One look after the other, so that a look is always under way. */
const LOOK_ALWAYS: Edit = {
  file: 'src/recovery/recovery.ts',
  search: 'const LOOK_INTERVAL_MS_MAX = 5_000;',
  replace: 'const LOOK_INTERVAL_MS_MAX = 200;',
};
const READ_SNAPSHOT = '  const [witness, server, replication, time, ...streams] = (await connection.command(0, [';
const SNAPSHOT_READ = '  const { replicationId, role } = parseServerIdentity(String(replication));';

export const MUTATIONS: readonly Mutation[] = [
  {
    name: 'no-ledger-wait',
    without: 'the wait of an XADD for its commit',
    edits: [
      {
        file: 'src/intercept/ledger/xadd.ts',
        search: '    return ledger.writer\n      .commit({',
        replace: `    if (attempt > 0) {
      const { args, parsed } = xadd;
      ledger.writer.commit({ stream, id, epoch, args, firstField: parsed.idAt + 1, maxlen: parsed.maxlen }).catch(() => {});
      return Promise.resolve(reply);
    }
    return ledger.writer
      .commit({`,
      },
    ],
    sidecars: 1,
    // What was on its way to the ledger goes with the sidecar, and then the KV store loses it as well.
    plan: repeated(2, [
      fault('ledger-link-held', 1000, 2500, HELD_THEN_RESET),
      fault('sidecar-kill', 1600, 500),
      fault('kv-empty-restart', 1700, 100),
    ]),
    caughtBy: /acknowledged events lost/,
  },
  {
    name: 'no-witness',
    without:
      "the check of the witness, a leader's fence, before a restored stream takes its name, and the comparison with what stands there, which holds back most of those that were replaced as well",
    edits: [
      {
        file: 'src/recovery/kv/epoch-key.ts',
        search: 'if (Buffer.isBuffer(witness) && witness.toString() === fence) return fence;',
        replace: 'if (!Buffer.isBuffer(witness) || witness.length > 0) return fence;',
      },
      {
        file: 'src/recovery/restore/restore-stream.ts',
        search: 'if (now !== undefined && (before === undefined || !sameEntries(now, before))) {',
        replace: 'if (now !== undefined && before !== undefined && !sameEntries(now, before)) {',
      },
    ],
    widened: [
      {
        file: 'src/recovery/restore/restore-stream.ts',
        search: '      const swapped = await swapIn(',
        replace: '      await new Promise((go) => setTimeout(go, 2500));\n      const swapped = await swapIn(',
      },
    ],
    sidecars: 2,
    // The leader is stopped between building a stream and naming it, and wakes up long after another one has restored it.
    plan: repeated(1, [fault('kv-empty-restart', 1000, 100), fault('sidecar-pause', 2300, 18_000, LEADER)]),
    caughtBy: /deliveries after a recorded acknowledgement|deliveries of deleted entries|acknowledged events lost/,
  },
  {
    name: 'no-reconciler',
    without: 'the taking in of entries that did not pass through Holdfast',
    edits: [
      {
        file: 'src/recovery/reconcile/reconciler.ts',
        search: 'if (missing[at] === 0) {',
        replace: 'if (missing[at]! >= 0) {',
      },
    ],
    sidecars: 1,
    // They wait for a stopped consumer when the KV store restarts empty.
    plan: repeated(1, [fault('consumer-pause', 500, 9000, OBSERVER), fault('kv-empty-restart', 7500, 100)]),
    caughtBy: /observed events lost/,
  },
  {
    name: 'no-acknowledgement-filter',
    without: 'leaving out of replies what is acknowledged already',
    edits: [
      {
        file: 'src/intercept/ledger/read.ts',
        search: 'if (set.has(id)) done.push(idText);',
        replace: 'if (false) done.push(idText);',
      },
    ],
    sidecars: 1,
    // `audit` of `chaos:orders` stands still and wants everything; `billing` goes on in the other process, its checkpoint held back by what
    // the stopped one has in hand, until that is taken over (2 to 3.5 s).
    plan: repeated(3, [fault('consumer-pause', 500, 5000), fault('kv-empty-restart', 2600, 100)]),
    caughtBy: /deliveries after a recorded acknowledgement|redeliveries above the bound/,
  },
  {
    name: 'no-epoch-of-commits',
    without: 'the comparison of epochs when an entry commits [1]',
    edits: [
      {
        file: 'src/ledger/sql/001-ledger.sql',
        search: 'WHERE stream.epoch IS DISTINCT FROM named.epoch OR stream.ended_at IS NOT NULL;',
        replace: 'WHERE stream.ended_at IS NOT NULL;',
      },
    ],
    sidecars: 2,
    // The second sidecar has an ID from the KV store that it cannot commit; the first one restores without the entry.
    plan: repeated(2, [
      fault('ledger-link-held', 1000, 5000, { ...OTHER, ...HELD_TO_SERVER }),
      fault('kv-empty-restart', 2500, 50),
    ]),
    // Counting finds the loss and brings the entry back, after its client was told that all was well: a second loss, of no fault's making.
    caughtBy: ({ recoveries }) =>
      recoveries.some(({ stream, cause }) => stream !== 'chaos:observed' && /fewer entries/.test(cause)),
  },
  {
    name: 'no-snapshot',
    without: 'reading what a checkpoint is made of in one transaction, of one KV store [2]',
    widened: [LOOK_ALWAYS],
    edits: [
      {
        file: 'src/recovery/kv/snapshot.ts',
        search: SNAPSHOT_READ,
        // Asks anew for what is pending, with the loss before it of one group where one comes within 6 s.
        replace: `  for (const [i, reply] of streams.entries()) {
    for (const group of Array.isArray(reply) ? (reply[8] as KvReply[][]) : []) {
      for (let n = 0; String(group[0]) === 'audit' && n < 300; n += 1) {
        if ((await connection.command(0, ['EXISTS', WITNESS_KEY])) !== 1) break;
        await new Promise((go) => setTimeout(go, 20));
      }
      const { database, name } = requests[i]!;
      const pending = await connection.command(database, ['XPENDING', name, group[0] as Buffer]).catch(() => []);
      [group[2], group[3]] = (pending as KvReply[]).slice(0, 2) as [KvReply, KvReply];
    }
  }
${SNAPSHOT_READ}`,
      },
    ],
    sidecars: 1,
    // A worker hangs with entries in hand, and is killed after the KV store has forgotten that it had them.
    plan: repeated(3, [fault('consumer-hung', 500, 13_000), fault('kv-flushall', 11_000, 0)]),
    caughtBy: /acknowledged events lost/,
  },
  {
    name: 'no-order-of-checkpoint',
    without: "reading a group's last-delivered-id no later than what is pending [5]",
    widened: [LOOK_ALWAYS],
    edits: [
      {
        file: 'src/recovery/kv/snapshot.ts',
        search: READ_SNAPSHOT,
        // What is pending first, then, where a worker hangs within 6 s, all else after it was given something.
        replace: `  const isAimedAt = requests.some(({ name }) => String(name) === 'chaos:transactions');
  const aim = async (...range: string[]) =>
    ((await connection.command(0, ['XPENDING', 'chaos:transactions', 'c', ...range, '-', '+', '1']).catch(() => [])) as []).length > 0;
  for (let i = 0; isAimedAt && i < 100 && (await aim()); i += 1) await new Promise((go) => setTimeout(go, 10));
  const early = isAimedAt ? await connection.command(0, ['XPENDING', 'chaos:transactions', 'c']).catch(() => undefined) : undefined;
  for (let i = 0; isAimedAt && i < 120 && !(await aim('IDLE', '500')); i += 1) await new Promise((go) => setTimeout(go, 50));
${READ_SNAPSHOT}`,
      },
      {
        file: 'src/recovery/kv/snapshot.ts',
        search: SNAPSHOT_READ,
        replace: `  for (const [i, reply] of streams.entries()) {
    if (!Array.isArray(reply) || !Array.isArray(early) || String(requests[i]!.name) !== 'chaos:transactions') continue;
    for (const group of reply[8] as KvReply[][]) if (String(group[0]) === 'c') [group[2], group[3]] = early as [KvReply, KvReply];
  }
${SNAPSHOT_READ}`,
      },
    ],
    sidecars: 1,
    plan: repeated(3, [fault('consumer-hung', 2000, 7000, OBSERVER), fault('kv-empty-restart', 6000, 100)]),
    caughtBy: /acknowledged events lost/,
  },
  {
    name: 'no-connection-kill',
    without: 'the closing of broken connections before looking for what was in flight on them [9]',
    edits: [
      {
        file: 'src/recovery/kv/kill-connections.ts',
        search: 'if (broken.length === 0) return;',
        replace: 'if (broken.length >= 0) return;',
      },
    ],
    sidecars: 1,
    // The connection breaks for the sidecar; what it had sent arrives a second later, when the entry is published already.
    plan: repeated(2, [
      fault('kv-link-late', 1000, 0, { fraction: 0.4 }),
      fault('kv-link-late', 4000, 0, { fraction: 0.4 }),
      fault('kv-link-late', 7000, 0, { fraction: 0.4 }),
    ]),
    // Doubtful entries are counted in both runs; only here do they come twice.
    caughtBy: (result) => result.verdict.doubled > 0,
  },
];

export function mutationNamed(name: string): Mutation {
  const mutation = MUTATIONS.find((candidate) => candidate.name === name);
  if (mutation === undefined) throw new Error(`no mutation is called ${name}`);
  return mutation;
}

export function isCaught({ caughtBy }: Mutation, result: ChaosResult): boolean {
  if (typeof caughtBy === 'function') return caughtBy(result);
  return result.violations.some((violation) => caughtBy.test(violation));
}

/** A copy of what a sidecar runs from, with `edits` in it. Gives its directory. */
export async function editedTree(root: string, mutation: Mutation, edits: readonly Edit[]): Promise<string> {
  const tree = await mkdtemp(join(tmpdir(), `holdfast-without-${mutation.name}-`));
  await cp(join(root, 'src'), join(tree, 'src'), { recursive: true });
  for (const file of ['package.json', 'tsconfig.json']) await cp(join(root, file), join(tree, file));
  await symlink(join(root, 'node_modules'), join(tree, 'node_modules'));
  for (const { file, search, replace } of edits) {
    const path = join(tree, file);
    const parts = (await readFile(path, 'utf8')).split(search);
    if (parts.length !== 2) throw new Error(`${mutation.name}: found ${parts.length - 1} times in ${file}: ${search}`);
    await writeFile(path, parts.join(replace));
  }
  return tree;
}
