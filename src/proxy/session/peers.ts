/**
 * The other processes of one sidecar (`processes: N` behind one port). Each knows its own clients only; what speaks of
 * clients is asked of all. Processes that are gone do not answer and are not waited for.
 */
import type { ClientQuery } from '../commands/client-query.ts';

export interface Peers {
  /** This process's number, from 0, and how many there are: client IDs of process i are i + 1, i + 1 + count, … */
  readonly index: number;
  readonly count: number;
  /** Clients of the other processes, as last heard (every 50 ms while it changes). */
  readonly clientsElsewhere: number;
  /** CLIENT LIST lines, one list for each process. */
  list(query: ClientQuery): Promise<string[][]>;
  /** How many clients each process ended. */
  kill(query: ClientQuery): Promise<number[]>;
  /**
   * The KV store's ID of the connection that a client of another process is on; 0 where nobody knows the client or it has no
   * connection of its own. `pin`: it is given one to keep, for it is to receive invalidations.
   */
  laneOf(clientId: number, pin: boolean, scope: string | undefined): Promise<number>;
}

/** What a process answers for its own clients. */
export interface PeerService {
  list(query: ClientQuery): string[];
  kill(query: ClientQuery): number;
  laneOf(clientId: number, pin: boolean, scope: string | undefined): Promise<number>;
  clients(): number;
}
