import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { until } from './process-control.ts';
import { startTcpProxy, type TcpProxy } from './tcp-proxy.ts';

let server: Server;
let proxy: TcpProxy;
let client: Socket;
/** What the server got and the client got, as text. */
let received = '';
let answered = '';
let atServer: Socket[] = [];

async function connectThrough(): Promise<Socket> {
  const socket = connect(proxy.port, '127.0.0.1');
  socket.on('error', () => {});
  socket.on('data', (chunk) => {
    answered += chunk;
  });
  await once(socket, 'connect');
  return socket;
}

beforeEach(async () => {
  [received, answered, atServer] = ['', '', []];
  server = createServer((socket) => {
    atServer.push(socket);
    socket.on('error', () => {});
    socket.on('data', (chunk) => {
      received += chunk;
      socket.write(`<${chunk}>`);
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  proxy = await startTcpProxy(() => port);
  client = await connectThrough();
});
afterEach(async () => {
  client.destroy();
  await proxy.close();
  for (const socket of atServer) socket.destroy();
  server.close();
});

const arrives = (text: string): Promise<void> => until(`'${text}' at the server`, 2000, () => received === text, 5);
const comesBack = (text: string): Promise<void> => until(`'${text}' at the client`, 2000, () => answered === text, 5);
const closeOf = (socket: Socket): Promise<void> => new Promise((resolve) => socket.once('close', () => resolve()));
const aWhile = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 60));

test('bytes pass in both directions, in order and whole', async () => {
  const blocks = Array.from({ length: 200 }, (_, i) => String.fromCharCode(97 + (i % 26)).repeat(50_000));
  for (const block of blocks) client.write(block);
  await until('all bytes', 5000, () => received.length === 10_000_000, 10);
  expect(received).toBe(blocks.join(''));
});

test('a held request arrives when the hold ends', async () => {
  proxy.hold(['toServer']);
  client.write('a');
  await aWhile();
  expect(received).toBe('');
  proxy.heal();
  await comesBack('<a>');
});

test('a held reply: the server has acted, the client does not know', async () => {
  proxy.hold(['toClient']);
  client.write('a');
  await arrives('a');
  await aWhile();
  expect(answered).toBe('');
  proxy.heal();
  await comesBack('<a>');
});

test('what a client wrote before it gave up reaches the server after the partition', async () => {
  proxy.hold(['toServer', 'toClient']);
  client.write('a');
  await aWhile();
  client.destroy();
  await aWhile();
  expect(received).toBe('');
  proxy.heal();
  await arrives('a');
});

test('a cut resets what is open and what is new, until it is healed', async () => {
  const closed = closeOf(client);
  proxy.cut();
  await closed;
  const refused = connect(proxy.port, '127.0.0.1');
  refused.on('error', () => {});
  await closeOf(refused);
  proxy.heal();
  client = await connectThrough();
  client.write('b');
  await comesBack('<b>');
});

test('late bytes land after the client was reset, while new connections are served', async () => {
  const closed = closeOf(client);
  proxy.deliverLate(300);
  client.write('late');
  await closed;
  client = await connectThrough();
  client.write('new');
  await arrives('new');
  await arrives('newlate');
});

test('late bytes do not land on a connection that the server has closed', async () => {
  const closed = closeOf(client);
  proxy.deliverLate(200);
  client.write('late');
  await closed;
  for (const socket of atServer) socket.destroy();
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(received).toBe('');
});

test('a delay keeps the order', async () => {
  proxy.delay(40);
  const sent = Date.now();
  client.write('a');
  await aWhile();
  client.write('b');
  await comesBack('<a><b>');
  expect(Date.now() - sent).toBeGreaterThanOrEqual(140);
});

test('the end of the server is the end of the client, after the last bytes', async () => {
  const closed = closeOf(client);
  client.write('a');
  await arrives('a');
  atServer[0]!.end('bye');
  await closed;
  expect(answered).toBe('<a>bye');
});

test('a reply whose server has gone is held, too, and reaches the client with the end', async () => {
  proxy.hold(['toClient']);
  client.write('x');
  await arrives('x');
  for (const socket of atServer) socket.end();
  await aWhile();
  expect(answered).toBe('');
  const closed = closeOf(client);
  proxy.heal();
  await comesBack('<x>');
  client.end();
  await closed;
  expect(proxy.connections).toBe(0);
});

test('connections that fell silent stay so, and new ones are served', async () => {
  proxy.silence();
  client.write('x');
  await aWhile();
  expect(received).toBe('');
  const other = await connectThrough();
  other.write('y');
  await comesBack('<y>');
  proxy.heal();
  await aWhile();
  expect(received).toBe('y');
  other.destroy();
});
