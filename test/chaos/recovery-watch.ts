/**
 * How long after a moment every stream is written to and every group with a backlog is given something again.
 */
import type { Checker } from './checker.ts';
import { STREAMS } from './workload.ts';

interface Waiting {
  readonly what: string;
  readonly isDone: () => boolean;
}

export interface RecoveryWatch {
  /** Looks again. True when nothing is waited for any more. */
  look(): boolean;
  /** From the moment until the slowest stream took an XADD; `undefined` while one has not. */
  readonly writesMs: number | undefined;
  /** From the moment until the slowest group with a backlog got an entry; `undefined` while one has not. */
  readonly readsMs: number | undefined;
  /** What is still waited for. */
  readonly waiting: readonly string[];
}

export function watchRecovery(checker: Checker, now: () => number): RecoveryWatch {
  const sinceMs = now();
  let writes: Waiting[] = [];
  let reads: Waiting[] = [];
  let writesMs: number | undefined;
  let readsMs: number | undefined;
  STREAMS.forEach(({ name, groups }, stream) => {
    const before = checker.acknowledgedIn(stream);
    writes.push({ what: `XADD ${name}`, isDone: () => checker.acknowledgedIn(stream) > before });
    groups.forEach((group, index) => {
      const { backlog, deliveries, handled } = checker.progress(stream, index);
      if (backlog === 0) return;
      reads.push({
        what: `XREADGROUP ${group} ${name}`,
        isDone: () => {
          const progress = checker.progress(stream, index);
          return progress.deliveries > deliveries || progress.handled > handled;
        },
      });
    });
  });
  return {
    look() {
      writes = writes.filter((waiting) => !waiting.isDone());
      reads = reads.filter((waiting) => !waiting.isDone());
      if (writes.length === 0) writesMs ??= now() - sinceMs;
      if (reads.length === 0) readsMs ??= now() - sinceMs;
      return writes.length === 0 && reads.length === 0;
    },
    get writesMs() {
      return writesMs;
    },
    get readsMs() {
      return readsMs;
    },
    get waiting() {
      return [...writes, ...reads].map((waiting) => waiting.what);
    },
  };
}
