/** What must be done right before EXEC goes out, for commands that wait in the transaction. */
import type { Exchange } from '../../interceptor.ts';

const STEPS = new WeakMap<Exchange, () => void | Promise<void>>();

/** Registers the one step of a queued command. It runs when EXEC is sent, not when the command is queued. */
export function beforeExec(member: Exchange, step: () => void | Promise<void>): void {
  STEPS.set(member, step);
}

export function stepBeforeExec(member: Exchange): (() => void | Promise<void>) | undefined {
  return STEPS.get(member);
}
