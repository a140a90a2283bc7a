import { setTimeout as delay } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { freePort } from '../../src/embedded/free-port.ts';
import { answered, connectClient, dropClient } from './client-process.ts';

test('a request of a client that is ended while it waits to reconnect is over soon', async () => {
  const client = connectClient(await freePort(), 0);
  while (client.status !== 'reconnecting') await delay(1);
  const request = answered(client, client.call('XREADGROUP', 'GROUP', 'g', 'c', 'STREAMS', 's', '>'), 1000);
  dropClient(client);
  await expect(request).rejects.toThrow('Connection is closed.');
}, 10_000);
