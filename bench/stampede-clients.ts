/**
 * Clients of a stampede, as a process of their own: `stampede-clients.ts PORT COUNT`. Says `ready`, then does what each
 * line of its input says, and answers with a line of JSON:
 *
 *   get KEY FETCH_MS     all miss one key at once; who is told to fetch does so for so long. `storing` is said before.
 *   subscribe CHANNEL    all wait for one message; `subscribed` is said before. They are good for nothing else then.
 *
 * Values and messages are `SENT TOLD`: when they were sent and when the fetch had begun, ms since 1970.
 */
import { connect, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { request } from '../src/resp/encode.ts';
import type { ClientsReport } from './stampede.ts';

/** Before the value is sent. */
const ANNOUNCED_MS = 100;

interface Seen {
  fetches: number;
  errors: number;
  readonly behindMs: number[];
  readonly overMs: number[];
}

const [port, count] = process.argv.slice(2).map(Number);
const sockets: Socket[] = [];
for (let i = 0; i < count!; i += 1) {
  const socket = connect(port!, '127.0.0.1');
  await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject));
  sockets.push(socket);
}
say('ready');
for await (const line of createInterface({ input: process.stdin })) {
  const [what, name = '', fetchMs] = line.split(' ');
  const seen: Seen = { fetches: 0, errors: 0, behindMs: [], overMs: [] };
  if (what === 'get') await Promise.all(sockets.map((socket) => get(socket, name, Number(fetchMs), seen)));
  else await subscribe(name, seen);
  say(JSON.stringify(seen satisfies ClientsReport));
}
process.exit(0);

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

async function get(socket: Socket, key: string, fetchMs: number, seen: Seen): Promise<void> {
  const asked = Date.now();
  const reply = await exchange(socket, ['GET', key]);
  if (!reply.startsWith('$-1')) {
    note(reply, asked, seen);
    return;
  }
  seen.fetches += 1;
  const told = Date.now();
  await pause(fetchMs - ANNOUNCED_MS);
  say('storing');
  await pause(ANNOUNCED_MS);
  await exchange(socket, ['GETORSET', key, `${Date.now()} ${told}`]);
}

async function subscribe(channel: string, seen: Seen): Promise<void> {
  await Promise.all(sockets.map((socket) => exchange(socket, ['SUBSCRIBE', channel])));
  const messages = sockets.map(next);
  say('subscribed');
  await Promise.all(
    messages.map(async (message) => note((await message).split('\r\n').slice(5).join('\r\n'), 0, seen)),
  );
}

/** `reply` is a bulk string, or an error. */
function note(reply: string, asked: number, seen: Seen): void {
  const [sent, told] = (reply.split('\r\n')[1] ?? '').split(' ').map(Number);
  if (reply.startsWith('-') || sent === undefined || told === undefined) {
    seen.errors += 1;
    return;
  }
  const now = Date.now();
  seen.behindMs.push(now - sent);
  seen.overMs.push(now - asked - (sent - told));
}

function exchange(socket: Socket, args: readonly string[]): Promise<string> {
  const reply = next(socket);
  socket.write(request(args));
  return reply;
}

/** Replies are so short that they come whole. */
function next(socket: Socket): Promise<string> {
  return new Promise((resolve, reject) => {
    const closed = (): void => reject(new Error('the connection was closed'));
    socket.once('close', closed).once('data', (bytes) => {
      socket.off('close', closed);
      resolve(bytes.toString());
    });
  });
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
