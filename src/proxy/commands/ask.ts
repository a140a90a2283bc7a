/** Requests of a session's own, whose reply decides what the session does. */
import { messageOf } from '../../errors.ts';
import * as encode from '../../resp/encode.ts';
import type { Session } from '../session/session.ts';
import { Hold, LOST_TEXT } from '../session/session-state.ts';

export const LOST = encode.error(`KVDOWN ${LOST_TEXT}`);

/** Runs `work` when everything before was answered; requests behind it wait until it is done. */
export function exclusively(session: Session, work: () => Promise<void>): void {
  session.hold(Hold.request);
  session.whenQuiet(() => {
    work()
      .catch((thrown) => session.answer(encode.error(`KVDOWN ${messageOf(thrown)}`)))
      .finally(() => session.lift(Hold.request));
  });
}

/**
 * Sends a request of the session's own and gives its reply, or the error that there is none. `changes`: what it does to
 * its connection nobody else may find there.
 */
export function ask(
  session: Session,
  pin: number,
  args: readonly (Buffer | string)[],
  changes: boolean,
): Promise<Buffer> {
  return new Promise((resolve) => {
    const send = (): void => {
      if (changes) session.laneDirty = true;
      session.sendIgnored(args, (reply) => resolve(reply ?? LOST));
    };
    session.onLane(pin, send, resolve);
  });
}
