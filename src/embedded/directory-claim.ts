/**
 * One process at a time may run a server in a data directory. The claim is a file that names its holder by process ID
 * and start time, so that a holder that was killed leaves a claim that the next start recognises as stale.
 */
import { link, mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { HoldfastError } from '../errors.ts';
import { startTimeOf } from './process-facts.ts';

export interface DirectoryClaim {
  release(): Promise<void>;
}

let claims = 0;

async function isAlive(holder: string): Promise<boolean> {
  const [pid, startTime] = holder.trim().split(' ', 2);
  const current = await startTimeOf(Number(pid));
  return current !== undefined && current.replaceAll(' ', '_') === startTime;
}

async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

/** Creates `directory` where needed. Throws `INUSE` when a living process holds it, this one included. */
export async function claimDirectory(directory: string): Promise<DirectoryClaim> {
  await mkdir(directory, { recursive: true });
  const path = join(directory, 'holder');
  claims += 1;
  const own = `${path}.${process.pid}.${claims}`;
  const startTime = (await startTimeOf(process.pid)) ?? 'unknown';
  await writeFile(own, `${process.pid} ${startTime.replaceAll(' ', '_')} ${claims}\n`);
  try {
    for (;;) {
      try {
        await link(own, path);
        return { release: () => rm(path, { force: true }) };
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      }
      const holder = await readIfThere(path);
      if (holder === undefined) continue;
      const inUse = new HoldfastError('INUSE', `${directory} is in use by process ${holder.split(' ', 1)[0]}`);
      if (await isAlive(holder)) throw inUse;
      // Two starts may find the same stale claim: whoever moved away a fresh one puts it back.
      const moved = `${own}.stale`;
      await rename(path, moved).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'ENOENT') throw error;
      });
      const taken = await readIfThere(moved);
      if (taken !== undefined && taken !== holder) {
        await link(moved, path).catch(() => {});
        await rm(moved, { force: true });
        throw inUse;
      }
      await rm(moved, { force: true });
    }
  } finally {
    await rm(own, { force: true });
  }
}
