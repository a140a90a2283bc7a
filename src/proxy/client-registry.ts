/** The clients of this process, by Holdfast's own client ID. */
import type { Session } from './session.ts';

export class ClientRegistry {
  private readonly sessions = new Map<number, Session>();
  private nextId = 1;

  get size(): number {
    return this.sessions.size;
  }

  allocateId(): number {
    const id = this.nextId;
    this.nextId += 1;
    return id;
  }

  add(session: Session): void {
    this.sessions.set(session.id, session);
  }

  remove(session: Session): void {
    this.sessions.delete(session.id);
  }

  get(id: number): Session | undefined {
    return this.sessions.get(id);
  }

  /** In the order of their IDs. */
  all(): IterableIterator<Session> {
    return this.sessions.values();
  }
}
