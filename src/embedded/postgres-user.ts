/**
 * As whom Postgres runs. It refuses to run as root, so root drops to a user that exists. That user must still reach the
 * binaries and the data directory, which below a home of mode 0700 it cannot: then the one capability to pass
 * directories is kept (and nothing else), where setpriv and the kernel allow it.
 */
import { readFile, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { HoldfastError } from '../errors.ts';
import { setprivWorks } from './server-process.ts';

export interface PostgresUser {
  /** `undefined`: as whom Holdfast runs. */
  readonly owner: { readonly uid: number; readonly gid: number } | undefined;
  /** Options of setpriv; `undefined` when spawn's own uid and gid do. */
  readonly privileges: readonly string[] | undefined;
}

const CANDIDATES = ['postgres', 'nobody'];
const SEARCH_BY_OTHERS = 0o001;
const SEARCH_BY_GROUP = 0o010;
const SEARCH_BY_OWNER = 0o100;
/** Either lets a process pass any directory; a container may have only the second. Numbers of capabilities(7). */
const PASSING_CAPABILITIES = [
  { name: 'dac_read_search', number: 2n },
  { name: 'dac_override', number: 1n },
];

async function findOwner(): Promise<{ uid: number; gid: number }> {
  const lines = (await readFile('/etc/passwd', 'utf8')).split('\n').map((line) => line.split(':'));
  for (const name of CANDIDATES) {
    const entry = lines.find((fields) => fields[0] === name);
    const uid = Number(entry?.[2]);
    const gid = Number(entry?.[3]);
    if (uid > 0 && gid > 0) return { uid, gid };
  }
  throw new HoldfastError(
    'STARTUP',
    `Postgres refuses to run as root and there is no user ${CANDIDATES.join(' or ')} to run it as: start Holdfast as an ordinary user`,
  );
}

/** The first directory on the way to `path` that the user may not pass. */
async function firstClosedDirectory(path: string, owner: { uid: number; gid: number }): Promise<string | undefined> {
  const parent = dirname(path);
  if (parent === path) return undefined;
  const closed = await firstClosedDirectory(parent, owner);
  if (closed !== undefined) return closed;
  const { mode, uid, gid } = await stat(parent);
  const bit = uid === owner.uid ? SEARCH_BY_OWNER : gid === owner.gid ? SEARCH_BY_GROUP : SEARCH_BY_OTHERS;
  return (mode & bit) === 0 ? parent : undefined;
}

async function passingCapability(): Promise<string | undefined> {
  const status = await readFile('/proc/self/status', 'utf8').catch(() => '');
  const held = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'}`);
  return PASSING_CAPABILITIES.find(({ number }) => (held >> number) & 1n)?.name;
}

/** `paths`: existing absolute paths that Postgres must reach. Throws `STARTUP` with the remedy when it cannot. */
export async function choosePostgresUser(paths: readonly string[]): Promise<PostgresUser> {
  if (process.getuid?.() !== 0) return { owner: undefined, privileges: undefined };
  const owner = await findOwner();
  let closed: string | undefined;
  for (const path of paths) closed ??= await firstClosedDirectory(path, owner);
  const canSetpriv = await setprivWorks();
  const identity = [`--reuid=${owner.uid}`, `--regid=${owner.gid}`, '--clear-groups'];
  if (closed === undefined) return { owner, privileges: canSetpriv ? identity : undefined };
  const capability = canSetpriv ? await passingCapability() : undefined;
  if (capability === undefined) {
    throw new HoldfastError(
      'STARTUP',
      `Postgres cannot run as root, and as user ${owner.uid} it cannot pass ${closed}: choose another --data-dir and install place, or start Holdfast as an ordinary user`,
    );
  }
  return {
    owner,
    privileges: [
      ...identity,
      `--inh-caps=-all,+${capability}`,
      `--ambient-caps=-all,+${capability}`,
      `--bounding-set=-all,+${capability}`,
      // Postgres asks access(2) for its own binaries, which minds capabilities of another user only with this bit.
      '--securebits=+no_setuid_fixup',
    ],
  };
}
