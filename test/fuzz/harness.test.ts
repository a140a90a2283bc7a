/** The fuzz tests themselves: silent where nothing is wrong, and not silent where something is. */
import { connect, createServer, type Server, type Socket } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { connectRaw } from '../support/raw-client.ts';
import { seed } from '../support/seed.ts';
import { describeCommandMismatch, fuzzCommands } from './command-differential.ts';
import { readCommandDocs } from './command-generator.ts';
import { runCrossTalk } from './cross-talk.ts';
import { describeMismatch, fuzzFrames } from './differential.ts';
import { startTwins, type Twins } from './twins.ts';

let twins: Twins;
const fronts: Server[] = [];

beforeAll(async () => {
  twins = await startTwins({ server: 'redis-server', front: 'none', pooling: 'transaction' });
});

afterAll(async () => {
  for (const front of fronts) front.close();
  await twins.stop();
});

/** A front with a defect: `onReply` gets each chunk that comes back, with the client it is for and all the clients. */
function startFront(onReply: (chunk: Buffer, client: Socket, clients: readonly Socket[]) => void): Promise<number> {
  return new Promise((resolve) => {
    const clients: Socket[] = [];
    const front = createServer({ allowHalfOpen: true }, (client) => {
      const upstream = connect({ port: twins.throughPort, host: '127.0.0.1', allowHalfOpen: true });
      clients.push(client);
      client.on('data', (chunk) => upstream.write(chunk));
      client.on('end', () => upstream.end());
      client.on('close', () => upstream.destroy());
      client.on('error', () => {});
      upstream.on('data', (chunk) => onReply(chunk, client, clients));
      upstream.on('close', () => {
        clients.splice(clients.indexOf(client), 1);
        client.end();
      });
      upstream.on('error', () => {});
    });
    fronts.push(front);
    front.listen(0, '127.0.0.1', () => {
      const address = front.address();
      resolve(typeof address === 'object' && address !== null ? address.port : 0);
    });
  });
}

test('two servers answer the same frames with the same bytes', async () => {
  const report = await fuzzFrames({ ...twins, seed, frames: 5000, concurrency: 8, mismatchesMax: 3 });
  expect(report.mismatches.map(describeMismatch)).toEqual([]);
  expect(report.frames).toBeGreaterThanOrEqual(5000);
});

test('a front that changes one kind of error is found by frames', async () => {
  const port = await startFront((chunk, client) => {
    client.write(chunk.toString('latin1').replace('-ERR Protocol error', '-ERR protocol error'), 'latin1');
  });
  const options = { ...twins, throughPort: port, seed, frames: 5000, concurrency: 8, mismatchesMax: 1 };
  expect((await fuzzFrames(options)).mismatches.length).toBeGreaterThan(0);
});

test('two servers answer the same commands alike', async () => {
  const client = await connectRaw(twins.directPort);
  const commands = await readCommandDocs(client);
  await client.close();
  const report = await fuzzCommands({ ...twins, seed, requests: 3000, commands, mismatchesMax: 3 });
  expect(report.mismatches.map(describeCommandMismatch)).toEqual([]);
  expect(report.commands).toBeGreaterThan(250);
});

test('a front that hands replies to other clients is found by cross-talk', async () => {
  let replies = 0;
  const port = await startFront((chunk, client, clients) => {
    replies += 1;
    const receiver = replies % 50 === 0 ? (clients[0] ?? client) : client;
    receiver.write(chunk);
  });
  const report = await runCrossTalk({ port, clients: 10, seconds: 2, seed });
  expect(report.violations.length).toBeGreaterThan(0);
});
