/**
 * Keeps room for new connections of an HTTP server. Who asks for health must be answered, however many others have opened
 * connections and say nothing more: so the next connection is always taken, and an older one goes for it.
 *
 * That is one with no request that is being answered, where there is one; of the peer that has the most; its oldest. So a
 * peer that opens many pushes out its own.
 */
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';

interface Connection {
  readonly peer: string;
  /** Requests that are being answered. */
  answering: number;
}

export function keepRoom(server: Server, connectionsMax: number): void {
  /** Oldest first. */
  const open = new Map<Socket, Connection>();

  function leaving(): Socket | undefined {
    const idle = [...open].filter(([, { answering }]) => answering === 0);
    const candidates = idle.length > 0 ? idle : [...open];
    const counts = new Map<string, number>();
    for (const [, { peer }] of candidates) counts.set(peer, (counts.get(peer) ?? 0) + 1);
    const most = Math.max(...counts.values());
    return candidates.find(([, { peer }]) => counts.get(peer) === most)?.[0];
  }

  server.on('connection', (socket: Socket) => {
    if (open.size >= connectionsMax) {
      const socketLeaving = leaving();
      if (socketLeaving !== undefined) {
        open.delete(socketLeaving);
        socketLeaving.destroy();
      }
    }
    open.set(socket, { peer: socket.remoteAddress ?? '', answering: 0 });
    socket.once('close', () => open.delete(socket));
  });
  server.on('request', ({ socket }: IncomingMessage, response: ServerResponse) => {
    const connection = open.get(socket);
    if (connection === undefined) return;
    connection.answering += 1;
    response.once('close', () => {
      connection.answering -= 1;
    });
  });
}
