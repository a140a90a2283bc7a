/** How what was started ends: the last first, in bounded time. */
import type { Logger } from 'pino';
import { messageOf } from '../errors.ts';

/** One part that does not end must not keep the others, and all of them together not who waits for the process. */
const STOP_MS = 20_000;
const STEP_MS_MIN = 1_000;

export interface Steps {
  onStop(name: string, step: () => void | Promise<void>): void;
  stop(): Promise<void>;
}

export function stopSteps(log: Logger): Steps {
  const steps: { name: string; step: () => void | Promise<void> }[] = [];
  let stopping: Promise<void> | undefined;

  async function runAll(): Promise<void> {
    const deadline = Date.now() + STOP_MS;
    for (const { name, step } of steps.reverse()) {
      let timer: NodeJS.Timeout | undefined;
      const limit = new Promise<never>((_, reject) => {
        const stepMs = Math.max(STEP_MS_MIN, deadline - Date.now());
        timer = setTimeout(() => reject(new Error(`took more than ${stepMs} ms`)), stepMs);
      });
      try {
        await Promise.race([step(), limit]);
      } catch (error) {
        log.error({ part: name, reason: messageOf(error) }, 'a part did not end as it should');
      } finally {
        clearTimeout(timer);
      }
    }
  }
  return {
    onStop: (name, step) => void steps.push({ name, step }),
    stop: () => (stopping ??= runAll()),
  };
}
