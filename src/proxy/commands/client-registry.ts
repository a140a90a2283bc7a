/** The clients of this process, by Holdfast's own client ID. */
import type { Session } from '../session/session.ts';
import { Pin } from '../session/session-state.ts';

export class ClientRegistry {
  private readonly sessions = new Map<number, Session>();
  private nextId: number;
  private readonly idStep: number;

  /** IDs are unique over all processes of a sidecar: process `index` of `count` takes every count-th. */
  constructor(index: number, count: number) {
    this.nextId = index + 1;
    this.idStep = count;
  }

  get size(): number {
    return this.sessions.size;
  }

  allocateId(): number {
    const id = this.nextId;
    this.nextId += this.idStep;
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

  /**
   * The KV store's ID of a client's dedicated connection; 0 for none. `pin` gives it one to keep. With `scope` only a
   * client of that scope is known.
   */
  laneOf(id: number, pin: boolean, scope: string | undefined): Promise<number> {
    const session = this.sessions.get(id);
    if (session === undefined || (scope !== undefined && session.identity?.scopeName !== scope))
      return Promise.resolve(0);
    if (!pin) return Promise.resolve(session.blockedLaneId());
    return new Promise((resolve) => session.whenDedicated(Pin.redirectTarget, resolve));
  }

  /** In the order of their IDs. */
  all(): IterableIterator<Session> {
    return this.sessions.values();
  }
}
