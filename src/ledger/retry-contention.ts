import { isContention } from './sqlstate.ts';

const ATTEMPTS_MAX = 5;
const RETRY_MS = 20;

/** Runs a whole transaction again where another one stood in its way, a few times; then rejects with what it said. */
export async function retryContention<T>(run: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await run();
    } catch (thrown) {
      if (attempt >= ATTEMPTS_MAX || !isContention(thrown)) throw thrown;
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS * 2 ** attempt * Math.random()));
  }
}
