import { expect, test } from 'vitest';
import { defineApp } from '../../src/worker/app.ts';
import { dead } from '../../src/worker/dead-command.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { addAll, client, deadLettersOf, drained, runWorker, until } from './worker-harness.ts';

async function holdfastDead(url: string, ...args: string[]): Promise<string> {
  let output = '';
  const code = await dead.run({
    args: [...args, '--connect', url],
    env: {},
    workingDirectory: process.cwd(),
    terminal: false,
    write: (text) => {
      output += text;
    },
    stopRequested: new Promise(() => {}),
  });
  expect(code).toBe(0);
  return output;
}

test.each(kvKinds)('dead letters are listed, shown, retried byte for byte, and purged on %s', async (kind) => {
  const kv = await startKv(kind);
  const redis = client(kv.url);
  let broken = true;
  const app = defineApp({
    streams: 'orders',
    retry: { attempts: 1 },
    handlers: {
      charge: {
        run: 'in-process',
        handle() {
          if (broken) throw new Error('card declined');
        },
      },
    },
  });
  const blob = Buffer.from([0, 255, 10]);
  const [id, second] = await addAll(redis, 'orders', [{ amount: '12' }, { amount: '13' }]);
  const binary = String(await redis.call('XADD', 'orders', '*', 'blob', blob));
  const worker = await runWorker(app, { kv: kv.url });
  await until('three failed', async () => (await deadLettersOf(redis, 'orders')).length === 3);
  await worker.stop();

  const list = await holdfastDead(kv.url, 'list');
  expect(list.trim().split('\n')).toHaveLength(3);
  expect(list).toContain(`orders ${id}  charge  1 attempts  charge: Error: card declined`);
  const shown = await holdfastDead(kv.url, 'show', id!);
  expect(shown).toContain('  amount: 12');
  expect(JSON.parse(await holdfastDead(kv.url, 'show', id!, '--json'))).toMatchObject({
    deadLetters: 'orders:dead',
    fields: { id, stream: 'orders', attempts: '1' },
  });
  await expect(holdfastDead(kv.url, 'show', '1-1')).rejects.toThrow('there is no dead letter 1-1');

  expect(await holdfastDead(kv.url, 'retry', binary)).toMatch(
    new RegExp(`^orders ${binary} -> \\d+-\\d+\n1 retried\n$`),
  );
  const again = (await redis.callBuffer('XREVRANGE', 'orders', '+', '-', 'COUNT', 1)) as [Buffer, Buffer[]][];
  expect(again[0]?.[1]).toEqual([Buffer.from('blob'), blob]);
  expect(await holdfastDead(kv.url, 'retry', '--all')).toMatch(/2 retried\n$/);
  expect(await deadLettersOf(redis, 'orders')).toEqual([]);
  broken = false;
  await runWorker(app, { kv: kv.url });
  await until('all handled', () => drained(redis, 'orders'));
  expect(await deadLettersOf(redis, 'orders')).toEqual([]);

  for (const n of ['1', '2', '3']) await redis.xadd('orders:dead', '*', 'id', `${n}-0`, 'stream', 'orders');
  expect(await holdfastDead(kv.url, 'purge', '2-0')).toBe('1 purged\n');
  expect(await holdfastDead(kv.url, 'purge', '--before', '1h')).toBe('0 purged\n');
  expect(await holdfastDead(kv.url, 'purge', '--all')).toBe('2 purged\n');
  expect(await redis.xlen('orders:dead')).toBe(0);
  expect(second).toBeDefined();
});

test('a dead letter is retried once, however many ask', async () => {
  const kv = await startKv(kvKinds[0]!);
  const redis = client(kv.url);
  const id = String(
    await redis.call(
      'XADD',
      'orders:dead',
      '*',
      'id',
      '1-0',
      'stream',
      'orders',
      'original',
      JSON.stringify(['a', 'b']),
    ),
  );
  await Promise.allSettled(Array.from({ length: 5 }, () => holdfastDead(kv.url, 'retry', id)));
  expect(await redis.xlen('orders')).toBe(1);
});

test('what cannot be done is said in one line', async () => {
  const kv = await startKv(kvKinds[0]!);
  await expect(holdfastDead(kv.url)).rejects.toMatchObject({ code: 'CONFIG' });
  await expect(holdfastDead(kv.url, 'retry')).rejects.toThrow('which one');
  await expect(holdfastDead(kv.url, 'purge', '--before', 'soon')).rejects.toThrow('--before');
  await expect(holdfastDead(kv.url, 'list', '--count', '0')).rejects.toThrow('--count');
});
