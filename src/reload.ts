/**
 * Reads the configuration again while clients stay: HOLDFAST RELOAD and SIGHUP. Everything is read and judged before
 * anything is changed, so that a mistake changes nothing. What cannot change in a running process is named.
 */
import type { Logger } from 'pino';
import { changedSettings } from './config/changed-settings.ts';
import type { Config } from './config/config.ts';

/** What one process made of it, in lines for a person. */
export type ReloadReport = readonly string[];

/** A setting, by its dotted name or the first part of it, that a running process can take. */
export interface Reloadable {
  readonly setting: string;
  /** Reads and judges what `config` says, and gives how to take it. Throws `CONFIG`. */
  prepare(config: Config): Promise<() => void>;
}

export interface ReloaderOptions {
  readonly config: Config;
  /** The configuration as it is written now. Throws `CONFIG`. */
  readonly reread: () => Config;
  readonly parts: readonly Reloadable[];
  readonly log: Logger;
}

export function createReloader({ config, reread, parts, log }: ReloaderOptions): () => Promise<ReloadReport> {
  /** What this process runs with: settings that need a restart stay as they were. */
  let current = config;
  let running: Promise<ReloadReport> | undefined;

  async function reload(): Promise<ReloadReport> {
    const next = reread();
    const changed = changedSettings(current, next);
    const takes = (name: string): boolean =>
      parts.some(({ setting }) => name === setting || name.startsWith(`${setting}.`));
    const steps = await Promise.all(parts.map((part) => part.prepare(next)));
    for (const step of steps) step();
    current = { ...current, log: next.log, ...(takes('users') ? { users: next.users } : {}) };
    const taken = changed.filter(takes);
    const waiting = changed.filter((name) => !takes(name));
    const report = [
      `read again: ${parts.map(({ setting }) => setting).join(', ')}`,
      `changed: ${taken.length === 0 ? 'nothing but, maybe, certificates' : taken.join(', ')}`,
      ...(waiting.length === 0 ? [] : [`needs a restart: ${waiting.join(', ')}`]),
    ];
    log.info({ report }, 'the configuration was read again');
    return report;
  }

  return () => {
    running ??= reload().finally(() => {
      running = undefined;
    });
    return running;
  };
}
