/** What holds a sidecar still, so that a case begins in the state that it is about. */
import { until } from '../chaos/process-control.ts';
import type { BoundaryProxy } from './boundary-proxy.ts';
import type { Message } from './frames.ts';
import type { MatrixSidecar } from './lane.ts';

export interface Hold {
  /** How many requests wait. */
  readonly held: number;
  release(): void;
}

const HELD_MS_MAX = 5000;

/** Holds the first such request of each of these proxies. */
function holdFirst(proxies: readonly BoundaryProxy[], matches: (request: Message) => boolean): Hold {
  let held = 0;
  let release: () => void = () => undefined;
  const released = new Promise<void>((resolve) => {
    release = resolve;
  });
  const removals = proxies.map((proxy) =>
    proxy.place({
      moment: 'before',
      matches,
      async act() {
        held += 1;
        await released;
        return 'pass';
      },
    }),
  );
  return {
    get held() {
      return held;
    },
    release() {
      for (const remove of removals) remove();
      release();
    },
  };
}

/** Resolves when each sidecar is about to compare; none does before `release`. */
export async function holdLooks(sidecars: readonly MatrixSidecar[]): Promise<Hold> {
  const hold = holdFirst(
    sidecars.map(({ kvProxy }) => kvProxy),
    ({ words }) => words.length === 1 && words[0]!.toUpperCase() === 'INFO',
  );
  await until('a look', HELD_MS_MAX, () => hold.held === sidecars.length, 2);
  return hold;
}

const BUILDS = new Set(['XADD', 'RESTORE', 'RENAME', 'XSETID', 'EVAL', 'EVALSHA']);

/** Holds the first request with which a stream is built again. */
export function holdRestore(sidecars: readonly MatrixSidecar[]): Hold {
  return holdFirst(
    sidecars.map(({ kvProxy }) => kvProxy),
    ({ words }) => BUILDS.has(words[0]?.toUpperCase() ?? ''),
  );
}
