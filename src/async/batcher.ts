/**
 * Calls of one kind gathered into one: while a batch is in flight the next gathers. For what is too frequent to be a
 * statement each and needs none of the commit writer's care: a batch fails as one, and nothing is repeated.
 */
import { HoldfastError } from '../errors.ts';

const BATCH_MAX = 2000;
const WAITING_MAX = 100_000;

interface Waiting<Call, Answer> {
  readonly call: Call;
  readonly resolve: (answer: Answer) => void;
  readonly reject: (thrown: unknown) => void;
}

/** `run` answers each call in its place. The result rejects with LEDGERDOWN when too many wait. */
export function batched<Call, Answer>(
  run: (calls: readonly Call[]) => Promise<readonly Answer[]>,
): (call: Call) => Promise<Answer> {
  let waiting: Waiting<Call, Answer>[] = [];
  let running = false;

  async function drain(): Promise<void> {
    while (waiting.length > 0) {
      const batch = waiting.slice(0, BATCH_MAX);
      waiting = waiting.slice(batch.length);
      try {
        const answers = await run(batch.map(({ call }) => call));
        batch.forEach(({ resolve }, at) => {
          resolve(answers[at]!);
        });
      } catch (thrown) {
        for (const { reject } of batch) reject(thrown);
      }
    }
    running = false;
  }

  return (call) =>
    new Promise((resolve, reject) => {
      if (waiting.length >= WAITING_MAX) {
        reject(new HoldfastError('LEDGERDOWN', 'the ledger is too slow, its queue is full; nothing was done'));
        return;
      }
      waiting.push({ call, resolve, reject });
      if (running) return;
      running = true;
      setImmediate(() => void drain());
    });
}
