/** Case 7: what a scoped subscriber hears, on both reference servers and in both protocols. */
import { describe, expect, it } from 'vitest';
import { request } from '../../src/resp/encode.ts';
import type { ReplyValue } from '../../src/resp/reply.ts';
import { until } from '../proxy/through-proxy.ts';
import type { RawClient } from '../support/raw-client.ts';
import { startKv } from '../support/servers.ts';
import { asking, plain, type ScopedProxy, startScopedProxy } from './scoped-proxy.ts';

const USERS = {
  a: { scope: 'a:' },
  b: { scope: 'b:' },
  star: { scope: 'a*:' },
  worker: { scope: 'v1/{orgId}/{fleet}/{templateVersion}/', may: ['set-scope'] as const, shared: ['task-queue'] },
};
const proxies: Record<string, ScopedProxy> = {
  redis: await startScopedProxy((await startKv('redis')).port, { users: USERS }),
  valkey: await startScopedProxy((await startKv('valkey')).port, { users: USERS }),
};

describe.each([
  ['redis', 2],
  ['redis', 3],
  ['valkey', 2],
  ['valkey', 3],
] as const)('a scoped subscriber on %s, RESP%i', (server, protocol) => {
  const proxy = proxies[server]!;

  /** A client that collects all that is not a reply to what it asked. */
  async function listener(user: string) {
    const client = await proxy.login(user, protocol);
    const heard: ReplyValue[] = [];
    const collect = async (): Promise<void> => {
      for (;;) heard.push(plain(await client.next(60_000)));
    };
    if (protocol === 2) collect().catch(() => undefined);
    return {
      client,
      say: (...args: string[]) => void client.socket.write(request(args)),
      all: (): ReplyValue[] => (protocol === 2 ? heard : client.pushes.map(plain)),
      async hears(...expected: ReplyValue[]): Promise<void> {
        await until(() => this.all().length >= expected.length).catch(() => undefined);
        expect(this.all()).toEqual(expected);
        heard.length = 0;
        client.pushes.length = 0;
      },
    };
  }
  const others = async () => ({
    direct: asking(await proxy.unscoped()),
    a: asking(await proxy.login('a')),
    b: asking(await proxy.login('b')),
  });

  it('hears channels of its scope only, and confirmations count its own', async () => {
    const { direct, a, b } = await others();
    const one = await listener('a');
    one.say('SUBSCRIBE', 'c', 'a:d', '');
    await one.hears(['subscribe', 'c', 1], ['subscribe', 'a:d', 2], ['subscribe', '', 3]);
    await direct('PUBLISH', 'c', 'foreign');
    await b('PUBLISH', 'c', 'foreign');
    expect(await a('PUBLISH', 'c', 'own')).toBe(1);
    expect(await a('PUBLISH', 'a:d', 'prefixed')).toBe(1);
    await one.hears(['message', 'c', 'own'], ['message', 'a:d', 'prefixed']);
    expect(await a('PUBSUB', 'CHANNELS')).toHaveLength(3);
    expect(await a('PUBSUB', 'CHANNELS', 'c*')).toEqual(['c']);
    expect(await b('PUBSUB', 'CHANNELS')).toEqual([]);
    expect(await a('PUBSUB', 'NUMSUB', 'c', 'none')).toEqual(['c', 1, 'none', 0]);
    expect(await b('PUBSUB', 'NUMSUB', 'c')).toEqual(['c', 0]);
    one.say('UNSUBSCRIBE', 'c', 'never');
    await one.hears(['unsubscribe', 'c', 2], ['unsubscribe', 'never', 2]);
    one.say('UNSUBSCRIBE');
    await until(() => one.all().length === 2);
    expect(one.all().map((push) => (push as ReplyValue[])[2])).toEqual([1, 0]);
    one.client.socket.destroy();
  });

  it('matches its own patterns, glob characters in the name of the scope or not', async () => {
    const { a, b, direct } = await others();
    const star = asking(await proxy.login('star'));
    const one = await listener('a');
    const glob = await listener('star');
    one.say('PSUBSCRIBE', 'n?ws.*', '*.x');
    glob.say('PSUBSCRIBE', '*');
    await one.hears(['psubscribe', 'n?ws.*', 1], ['psubscribe', '*.x', 2]);
    await glob.hears(['psubscribe', '*', 1]);
    await direct('PUBLISH', 'ab:news.x', 'foreign');
    await b('PUBLISH', 'news.x', 'foreign');
    await a('PUBLISH', 'news.x', 'both');
    await a('PUBLISH', 'other', 'none');
    await star('PUBLISH', 'news.x', 'starred');
    await one.hears(['pmessage', 'n?ws.*', 'news.x', 'both'], ['pmessage', '*.x', 'news.x', 'both']);
    await glob.hears(['pmessage', '*', 'news.x', 'starred']);
    expect(await a('PUBSUB', 'NUMPAT')).toBe(2);
    expect(await b('PUBSUB', 'NUMPAT')).toBe(0);
    one.say('PUNSUBSCRIBE', '*.x');
    await one.hears(['punsubscribe', '*.x', 1]);
    await a('PUBLISH', 'nAws.x', 'one');
    await one.hears(['pmessage', 'n?ws.*', 'nAws.x', 'one']);
    one.say('SUBSCRIBE', 'nbws.y');
    await one.hears(['subscribe', 'nbws.y', 2]);
    one.say('PUNSUBSCRIBE');
    await one.hears(['punsubscribe', 'n?ws.*', 1]);
    await a('PUBLISH', 'nbws.y', 'left');
    await one.hears(['message', 'nbws.y', 'left']);
    one.say('PUNSUBSCRIBE', 'never');
    await one.hears(['punsubscribe', 'never', 1]);
    one.client.socket.destroy();
    glob.client.socket.destroy();
  });

  it('hears of shard channels', async () => {
    const { a, b } = await others();
    const one = await listener('a');
    one.say('SSUBSCRIBE', 's');
    await one.hears(['ssubscribe', 's', 1]);
    await b('SPUBLISH', 's', 'foreign');
    expect(await a('SPUBLISH', 's', 'own')).toBe(1);
    await one.hears(['smessage', 's', 'own']);
    expect(await a('PUBSUB', 'SHARDCHANNELS')).toEqual(['s']);
    expect(await b('PUBSUB', 'SHARDCHANNELS', '*')).toEqual([]);
    expect(await a('PUBSUB', 'SHARDNUMSUB', 's')).toEqual(['s', 1]);
    one.say('SUNSUBSCRIBE');
    await one.hears(['sunsubscribe', 's', 0]);
    one.client.socket.destroy();
  });

  it('is notified of its own keys only, by key and by event', async () => {
    const { a, b, direct } = await others();
    await direct('FLUSHALL');
    await direct('CONFIG', 'SET', 'notify-keyspace-events', 'KEA');
    const exact = await listener('a');
    const all = await listener('a');
    exact.say('SUBSCRIBE', '__keyspace@0__:k', '__keyevent@0__:set');
    await exact.hears(['subscribe', '__keyspace@0__:k', 1], ['subscribe', '__keyevent@0__:set', 2]);
    all.say('PSUBSCRIBE', '__key*__:*');
    await all.hears(['psubscribe', '__key*__:*', 1]);
    await direct('SET', 'k', 'foreign');
    await b('SET', 'k', 'foreign');
    await a('SET', 'k', 'own');
    await a('SET', 'other', 'own');
    await exact.hears(
      ['message', '__keyspace@0__:k', 'set'],
      ['message', '__keyevent@0__:set', 'k'],
      ['message', '__keyevent@0__:set', 'other'],
    );
    await all.hears(
      ['pmessage', '__key*__:*', '__keyspace@0__:k', 'set'],
      ['pmessage', '__key*__:*', '__keyevent@0__:set', 'k'],
      ['pmessage', '__key*__:*', '__keyspace@0__:other', 'set'],
      ['pmessage', '__key*__:*', '__keyevent@0__:set', 'other'],
    );
    // A forged notification reaches nobody else.
    await b('PUBLISH', '__keyevent@0__:set', 'a:forged');
    await b('PUBLISH', '__keyspace@0__:k', 'forged');
    await a('DEL', 'other');
    await all.hears(
      ['pmessage', '__key*__:*', '__keyspace@0__:other', 'del'],
      ['pmessage', '__key*__:*', '__keyevent@0__:del', 'other'],
    );
    await exact.hears();
    exact.client.socket.destroy();
    all.client.socket.destroy();
  });

  it('chooses its scope, and hears what is there', async () => {
    const { direct } = await others();
    const one = await listener('worker');
    const two = asking(await proxy.login('worker'));
    one.say('HOLDFAST', 'SCOPE', 'SET', 'o', 'f', '1');
    await two('HOLDFAST', 'SCOPE', 'SET', 'o', 'f', '2');
    one.say('PSUBSCRIBE', '*');
    await until(() => JSON.stringify(one.all()).includes('psubscribe'));
    one.client.pushes.length = 0;
    one.all().length = 0;
    await two('PUBLISH', 'c', 'elsewhere');
    await direct('PUBLISH', 'v1/o/f/1/c', 'here');
    await until(() => JSON.stringify(one.all()).includes('here'));
    expect(JSON.stringify(one.all())).toBe('[["pmessage","*","c","here"]]');
    one.client.socket.destroy();
  });

  it('may not ask for keys behind a refused SUBSCRIBE', async () => {
    const { direct } = await others();
    await direct('SET', 'secret', 'x');
    const client: RawClient = await proxy.login('a', protocol);
    client.socket.write(
      Buffer.concat([request(['SUBSCRIBE']), request(['SUBSCRIBE', 'c']), request(['GET', 'secret'])]),
    );
    const seen = [plain(await client.next())];
    if (protocol === 2) seen.push(plain(await client.next()));
    seen.push(plain(await client.next()));
    expect(JSON.stringify(seen)).not.toContain('"x"');
    client.socket.destroy();
  });
});

describe.each(['redis', 'valkey'] as const)('CLIENT TRACKING in a scope on %s', (server) => {
  const proxy = proxies[server]!;

  async function tracked(...options: string[]) {
    const client = await proxy.login('a', 3);
    const ask = asking(client);
    expect(await ask('CLIENT', 'TRACKING', 'ON', ...options)).toBe('OK');
    return { client, ask };
  }
  const others = async () => ({
    direct: asking(await proxy.unscoped()),
    a: asking(await proxy.login('a')),
    b: asking(await proxy.login('b')),
  });

  it('invalidates the keys that the client read, by their logical names', async () => {
    const { a, b } = await others();
    const { client, ask } = await tracked();
    await ask('GET', 'k');
    await b('SET', 'k', 1);
    await a('SET', 'k', 1);
    await until(() => client.pushes.length > 0);
    expect(client.pushes.map(plain)).toEqual([['invalidate', ['k']]]);
  });

  it('BCAST without PREFIX means the scope, with PREFIX a part of it', async () => {
    const { a, b, direct } = await others();
    const all = await tracked('BCAST');
    const some = await tracked('BCAST', 'PREFIX', 'us', 'PREFIX', 'a:');
    for (const write of [b, direct]) {
      await write('SET', 'user', 1);
      await write('SET', 'k', 1);
    }
    await a('SET', 'k', 1);
    await a('SET', 'user', 1);
    await a('SET', 'a:x', 1);
    await until(() => all.client.pushes.length === 3 && some.client.pushes.length === 2);
    expect(all.client.pushes.map(plain)).toEqual([
      ['invalidate', ['k']],
      ['invalidate', ['user']],
      ['invalidate', ['a:x']],
    ]);
    expect(some.client.pushes.map(plain)).toEqual([
      ['invalidate', ['user']],
      ['invalidate', ['a:x']],
    ]);
    expect(JSON.stringify(await some.ask('CLIENT', 'TRACKINGINFO'))).toContain('["a:","us"]');
    expect(JSON.stringify(await all.ask('CLIENT', 'TRACKINGINFO'))).toContain('[""]');
    expect(await some.ask('CLIENT', 'TRACKING', 'ON', 'BCAST', 'PREFIX', 'u')).toMatch(
      /^!ERR Prefix 'u' overlaps with an existing prefix 'us'/,
    );
  });

  it('redirects to a RESP2 client of the scope', async () => {
    const { a, b } = await others();
    const target = await proxy.login('a');
    const id = plain(await target.send('CLIENT', 'ID'));
    expect(plain(await target.send('SUBSCRIBE', '__redis__:invalidate'))).toEqual([
      'subscribe',
      '__redis__:invalidate',
      1,
    ]);
    const reader = asking(await proxy.login('a'));
    expect(await reader('CLIENT', 'TRACKING', 'ON', 'REDIRECT', String(id), 'BCAST')).toBe('OK');
    await b('SET', 'k', 2);
    await a('SET', 'k', 2);
    expect(plain(await target.next())).toEqual(['message', '__redis__:invalidate', ['k']]);
    target.socket.destroy();
  });
});
