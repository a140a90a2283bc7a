/** What a handler threw, whatever it was, as plain data that can be sent between threads. */
import { messageOf } from '../errors.ts';

export interface HandlerFailure {
  readonly message: string;
  readonly stack: string | undefined;
  /** The thrown value's `code`, if it has one. */
  readonly code: string | undefined;
}

export function failureOf(thrown: unknown): HandlerFailure {
  try {
    const code = typeof thrown === 'object' && thrown !== null && 'code' in thrown ? String(thrown.code) : undefined;
    if (thrown instanceof Error) return { message: String(thrown.message), stack: thrown.stack, code };
    const text = typeof thrown === 'object' && thrown !== null ? JSON.stringify(thrown) : messageOf(thrown);
    return { message: `not an error was thrown: ${text}`, stack: undefined, code };
  } catch {
    // Even looking at what was thrown may throw.
    return { message: 'something was thrown that cannot be looked at', stack: undefined, code: undefined };
  }
}
