/**
 * What the worker remembers outside of the KV store, so that a restore does not forget it: attempts and takeovers of
 * entries that failed before, and one report for each entry that failed for good.
 */
import type { PermanentFailure } from '../app.ts';

export interface KnownEntry {
  /** Failed attempts so far. */
  readonly failed: number;
  readonly takeovers: number;
  /** It failed for good. Not published: its report was begun, and may or may not have got among the dead letters. */
  readonly failure:
    | {
        readonly published: boolean;
        readonly task: string;
        readonly attempts: number;
        readonly errorMessage: string;
      }
    | undefined;
}

/** What was failed for good, and may be published by the one who holds it. */
export interface Reportable {
  readonly id: string;
  /** Begun by somebody who may have published it just before dying: look among the dead letters first. */
  readonly doubtful: boolean;
  /** Not after this time, by the database's clock, did somebody begin to report it. Unix milliseconds. */
  readonly begunAtMs: number;
}

export interface WorkerStore {
  /** Entries that are not known are not in the map. */
  lookUp(stream: string, ids: readonly string[]): Promise<ReadonlyMap<string, KnownEntry>>;
  /** Counts never go backwards. */
  record(stream: string, items: readonly { id: string; failed: number; takeovers: number }[]): Promise<void>;
  forget(stream: string, ids: readonly string[]): Promise<void>;
  /**
   * Reports entries as failed for good, each once, whoever else tries: `publish` is called, under a lock on these
   * reports, with those that are not published yet; they count as published when it resolves.
   */
  report(
    stream: string,
    failures: readonly PermanentFailure[],
    publish: (items: readonly Reportable[]) => Promise<void>,
  ): Promise<void>;
  close(): Promise<void>;
}
