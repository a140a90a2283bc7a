/** A client's name: what may be one, and who must know of a new one. */
import type { Session } from '../session/session.ts';
import { Pin } from '../session/session-state.ts';

export const BAD_NAME = 'ERR Client names cannot contain spaces, newlines or special characters.';

export function isClientName(name: Buffer): boolean {
  return name.every((byte) => byte >= 33 && byte <= 126);
}

/** What the session's lane is called, which it may be called again without a change. */
export function laneName(session: Session): string | Buffer {
  return session.dedicated && session.pins & Pin.pooling ? Buffer.from(session.name, 'latin1') : 'holdfast';
}

/** With a connection for each client the server may know the name as well (SLOWLOG shows it). */
export function rename(session: Session, name: Buffer): void {
  session.name = name.toString('latin1');
  if (!session.dedicated || (session.pins & Pin.pooling) === 0) return;
  session.laneDirty = true;
  session.sendIgnored(['CLIENT', 'SETNAME', name]);
}
