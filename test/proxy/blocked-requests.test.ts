/** A client that is blocked does not notice that the KV store was lost: it is asked again, and nothing comes twice. */
import { describe, expect, it } from 'vitest';
import type { Interceptor } from '../../src/interceptor.ts';
import { replyValue } from '../../src/resp/reply.ts';
import type { RawClient } from '../support/raw-client.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { front, until } from './through-proxy.ts';

/** What blocks, what ends it, and what it gives. */
const BLOCKED: readonly (readonly [string, string, unknown])[] = [
  ['BLPOP none list 0', 'RPUSH list a', ['list', 'a']],
  ['BRPOP list 0', 'RPUSH list a', ['list', 'a']],
  ['BRPOPLPUSH list taken 0', 'RPUSH list a', 'a'],
  ['BLMOVE list taken LEFT RIGHT 30', 'RPUSH list a', 'a'],
  ['BLMPOP 0 2 none list LEFT COUNT 2', 'RPUSH list a b', ['list', ['a', 'b']]],
  ['BZPOPMIN set 0', 'ZADD set 1 a', ['set', 'a', '1']],
  ['BZPOPMAX set 30.5', 'ZADD set 1 a', ['set', 'a', '1']],
  ['BZMPOP 30 1 set MIN', 'ZADD set 1 a', ['set', [['a', '1']]]],
  ['XREAD BLOCK 0 STREAMS stream $', 'XADD stream 1-1 a b', [['stream', [['1-1', ['a', 'b']]]]]],
  ['XREAD COUNT 1 BLOCK 30000 STREAMS stream 0', 'XADD stream 1-1 a b', [['stream', [['1-1', ['a', 'b']]]]]],
];

const looking: Interceptor = {
  name: 'looking',
  handles: (command) => command?.name !== 'info',
  request: () => undefined,
};

async function blockedClients(watcher: RawClient): Promise<string | undefined> {
  return /blocked_clients:(\d+)/.exec(String(replyValue(await watcher.send('INFO', 'clients'))))?.[1];
}

describe.each(kvKinds)('the KV store (%s) is lost while a client is blocked', (kind) => {
  describe.each([
    ['transaction', []],
    ['session', []],
    ['transaction', [looking]],
  ] as const)('pooling %s, interceptors %j', (pooling, interceptors) => {
    const options = { pooling, interceptors: [...interceptors] };

    it('asks each again on the next connection, in order with what stands behind it', async () => {
      const kv = await startKv(kind);
      const { client } = await front(kv.port, options);
      const watcher = await client();
      const all = await Promise.all(
        BLOCKED.map(async ([blocking, ending, gives], database) => {
          const blocked = await client();
          const other = await client();
          for (const each of [blocked, other]) await each.send('SELECT', String(database));
          const popped = blocked.send(...blocking.split(' '));
          return { blocked, other, popped, ending, gives, blocking };
        }),
      );
      await until(async () => (await blockedClients(watcher)) === String(BLOCKED.length));
      await kv.kill9();
      // Behind it in the pipeline, and sent while there is no connection.
      const behind = all.map(({ blocked }) => blocked.send('DBSIZE'));
      await kv.restart();
      await until(async () => (await blockedClients(watcher)) === String(BLOCKED.length));
      for (const [index, { other, popped, ending, gives, blocking }] of all.entries()) {
        await other.send(...ending.split(' '));
        expect([blocking, replyValue(await popped)]).toEqual([blocking, gives]);
        expect((await behind[index]!).type).toBe(':');
      }
      expect(await blockedClients(watcher)).toBe('0');
    });

    it('answers as at a timeout, when what is left of it is over', async () => {
      const kv = await startKv(kind);
      const { client } = await front(kv.port, options);
      const watcher = await client();
      const waiting = ['BLPOP list 1.5', 'BLMOVE list taken LEFT LEFT 1.5', 'XREAD BLOCK 1500 STREAMS stream 0'];
      const direct = await Promise.all(
        waiting.map(async (command) => (await (await client()).send(...command.split(' '))).raw.toString()),
      );
      const started = Date.now();
      const replies = waiting.map(async (command) => (await client()).send(...command.split(' ')));
      await until(async () => (await blockedClients(watcher)) === '3');
      await kv.kill9();
      expect((await Promise.all(replies)).map(({ raw }) => raw.toString())).toEqual(direct);
      expect(Date.now() - started).toBeGreaterThan(1400);
      // One that comes while there is no connection finds nothing either.
      expect((await watcher.send('BRPOP', 'list', '0.2')).isNull).toBe(true);
    });
  });

  it('gives no element to a client that went away meanwhile', async () => {
    const kv = await startKv(kind);
    const { client } = await front(kv.port);
    const gone = await client();
    const leaving = await client();
    const watcher = await client();
    gone.send('BLPOP', 'list', '0').catch(() => undefined);
    leaving.send('BLPOP', 'list', '0').catch(() => undefined);
    await until(async () => (await blockedClients(watcher)) === '2');
    await kv.kill9();
    gone.socket.end();
    await new Promise((resolve) => gone.socket.once('close', resolve));
    await kv.restart();
    await until(async () => (await blockedClients(watcher)) === '1');
    leaving.socket.end();
    await until(async () => (await blockedClients(watcher)) === '0');
    await watcher.send('RPUSH', 'list', 'a');
    expect(replyValue(await watcher.send('LLEN', 'list'))).toBe(1);
  });

  it('blocks on a lane of its own whatever the group is called', async () => {
    const kv = await startKv(kind);
    const { client } = await front(kv.port);
    const blocked = await client();
    const other = await client();
    for (const group of ['STREAMS', 'BLOCK']) {
      await other.send('XGROUP', 'CREATE', 'stream', group, '$', 'MKSTREAM');
      const read = blocked.send('XREADGROUP', 'GROUP', group, '5', 'BLOCK', '0', 'STREAMS', 'stream', '>');
      await until(async () => (await blockedClients(other)) === '1');
      await other.send('XADD', 'stream', '*', 'a', 'b');
      expect((await read).items).toHaveLength(1);
    }
  });
});
