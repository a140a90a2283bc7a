/**
 * Clients that miss one key at once, as a process of their own: `lease-clients.ts PORT COUNT KEY FETCH_MS`. Says `ready`,
 * waits for a line, then prints as JSON how many were told to fetch, how many got an error, and how far behind the moment
 * at which the value was sent the others got it.
 */
import { connect, type Socket } from 'node:net';
import { request } from '../src/resp/encode.ts';

const [port, count, key, fetchMs] = process.argv.slice(2);
const behindMs: number[] = [];
let fetches = 0;
let errors = 0;
const sockets: Socket[] = [];
for (let i = 0; i < Number(count); i += 1) {
  const socket = connect(Number(port), '127.0.0.1');
  await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject));
  sockets.push(socket);
}
process.stdout.write('ready\n');
await new Promise((resolve) => process.stdin.once('data', resolve));
await Promise.all(sockets.map(missed));
process.stdout.write(`${JSON.stringify({ fetches, errors, behindMs })}\n`, () => process.exit(0));

/** The value is the time at which it was sent. */
function missed(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    socket.once('close', () => resolve());
    socket.once('data', (reply) => {
      const text = reply.toString();
      if (text.startsWith('$-1')) {
        fetches += 1;
        setTimeout(() => {
          socket.once('data', () => resolve());
          socket.write(request(['GETORSET', key!, String(Date.now())]));
        }, Number(fetchMs));
        return;
      }
      if (text.startsWith('-')) errors += 1;
      else behindMs.push(Date.now() - Number(text.split('\r\n')[1]));
      resolve();
    });
    socket.write(request(['GET', key!]));
  });
}
