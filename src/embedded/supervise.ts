/**
 * Keeps a child server running: one that ends unasked is started again at once, and with growing pauses when it does not
 * stay up.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { messageOf } from '../errors.ts';
import type { EmbeddedServer } from './server-process.ts';

const PAUSE_MS_MIN = 100;
const PAUSE_MS_MAX = 5000;
/** A server that served this long does not die of its start: it has earned a restart without a pause. */
const STEADY_MS = 500;

export interface Supervision {
  /** How often the server was started again. */
  readonly restarts: number;
  /** From now on an end is an end. */
  stop(): void;
}

export function supervise(server: EmbeddedServer, name: string, log: Logger): Supervision {
  const ending = new AbortController();
  let restarts = 0;
  let failures = 0;
  let readyAt = Date.now();

  async function bringBack(): Promise<void> {
    if (Date.now() - readyAt > STEADY_MS) failures = 0;
    while (!ending.signal.aborted) {
      if (failures > 0) {
        const pauseMs = Math.min(PAUSE_MS_MIN * 2 ** (failures - 1), PAUSE_MS_MAX);
        await delay(pauseMs, undefined, { signal: ending.signal }).catch(() => {});
        if (ending.signal.aborted) return;
      }
      failures += 1;
      try {
        const startedAt = Date.now();
        await server.restart();
        restarts += 1;
        readyAt = Date.now();
        log.warn({ server: name, pid: server.pid, downMs: readyAt - startedAt }, `${name} was started again`);
        return;
      } catch (error) {
        log.error({ server: name, reason: messageOf(error) }, `${name} cannot be started again yet`);
      }
    }
  }

  const removeListener = server.onExit((exit) => {
    if (exit.expected || ending.signal.aborted) return;
    log.error({ server: name, code: exit.code, signal: exit.signal, output: exit.output }, `${name} ended unasked`);
    void bringBack();
  });
  return {
    get restarts() {
      return restarts;
    },
    stop() {
      ending.abort();
      removeListener();
    },
  };
}
