/** RESP3 clients that hear of their own writes, and subscriptions that the server refuses: every reply stays its request's. */
import { describe, expect, it } from 'vitest';
import { type Reply, replyValue } from '../../src/resp/reply.ts';
import { asking, plain, startScopedProxy } from '../scope/scoped-proxy.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { front, until } from './through-proxy.ts';

const values = (pushes: readonly Reply[]) => pushes.map(replyValue);

describe.each(kvKinds)('a client of %s that hears of its own writes', async (kind) => {
  const kv = await startKv(kind);
  const { client } = await front(kv.port);
  const scoped = await startScopedProxy(kv.port, { users: { a: { scope: 'a:' } } });
  const admin = asking(await client());
  await admin('CONFIG', 'SET', 'notify-keyspace-events', 'KEA');

  it('gets transactions whole, its messages behind them, and the next replies in step', async () => {
    const one = await client();
    const ask = asking(one);
    await ask('HELLO', '3');
    one.socket.write('SUBSCRIBE c\r\nPSUBSCRIBE __keyevent@0__:incrby\r\n');
    await until(() => one.pushes.length === 2);
    for (let round = 1; round <= 5; round += 1) {
      one.pushes.length = 0;
      await ask('MULTI');
      await ask('PUBLISH', 'c', 'x');
      await ask('INCR', `n${kind}`);
      await ask('PUBLISH', 'c', 'y');
      expect(await ask('EXEC')).toEqual([1, round, 1]);
      expect(await ask('ECHO', `after ${round}`)).toBe(`after ${round}`);
      expect(values(one.pushes)).toEqual([
        ['message', 'c', 'x'],
        ['pmessage', '__keyevent@0__:incrby', '__keyevent@0__:incrby', `n${kind}`],
        ['message', 'c', 'y'],
      ]);
    }
  });

  it('in a scope sees none of it with a prefix', async () => {
    const one = await scoped.login('a', 3);
    const ask = asking(one);
    one.socket.write('SUBSCRIBE c\r\nPSUBSCRIBE __keyspace@0__:*\r\n');
    await until(() => one.pushes.length === 2);
    one.pushes.length = 0;
    await ask('MULTI');
    await ask('PUBLISH', 'c', 'x');
    await ask('SET', 'k', 'v');
    await ask('GET', 'k');
    expect(await ask('EXEC')).toEqual([1, 'OK', 'v']);
    expect(await ask('GET', 'k')).toBe('v');
    expect(values(one.pushes)).toEqual([
      ['message', 'c', 'x'],
      ['pmessage', '__keyspace@0__:*', '__keyspace@0__:k', 'set'],
    ]);
  });

  it.each([2, 3] as const)('stays in step where a subscription is refused, RESP%i', async (protocol) => {
    await admin('ACL', 'SETUSER', 'limited', 'reset', 'on', '>pw', '+@all', '~*', '&ok', '&fine');
    const one = await client();
    const ask = asking(one);
    await ask('HELLO', String(protocol), 'AUTH', 'limited', 'pw');
    const heard: unknown[] = [];
    const frames = 8;
    const pipeline = [
      'SUBSCRIBE ok forbidden',
      'ECHO a',
      'UNSUBSCRIBE',
      'ECHO b',
      'SUBSCRIBE ok',
      'SUBSCRIBE forbidden',
      'UNSUBSCRIBE ok',
      'ECHO c',
    ];
    one.socket.write(`${pipeline.join('\r\n')}\r\n`);
    const collect = async (): Promise<void> => {
      for (;;) heard.push(plain(await one.next(60_000)));
    };
    collect().catch(() => undefined);
    await until(() => heard.length + one.pushes.length >= frames);
    const refused = expect.stringMatching(/^!NOPERM/);
    // Valkey refuses an UNSUBSCRIBE without subscriptions.
    const none = kind === 'valkey' ? expect.stringMatching(/^!NOSUB/) : ['unsubscribe', null, 0];
    const confirmations = [
      ['subscribe', 'ok', 1],
      ['unsubscribe', 'ok', 0],
    ];
    if (protocol === 2)
      expect(heard).toEqual([refused, 'a', none, 'b', confirmations[0], refused, confirmations[1], 'c']);
    else {
      const pushedNone = kind === 'valkey' ? [] : [none];
      expect(values(one.pushes)).toEqual([...pushedNone, ...confirmations]);
      expect(heard).toEqual([refused, 'a', ...(kind === 'valkey' ? [none] : []), 'b', refused, 'c']);
    }
  });

  it('is subscribed again after a loss to what was confirmed, and hears of what was not', async () => {
    const one = await client();
    const ask = asking(one);
    await ask('HELLO', '3', 'AUTH', 'limited', 'pw');
    one.socket.write('SUBSCRIBE ok\r\n');
    await until(() => one.pushes.length === 1);
    // The server holds back what it is asked while its connections go.
    one.socket.write('SUBSCRIBE fine\r\n');
    await admin('CLIENT', 'LIST');
    const direct = await import('../support/raw-client.ts').then(({ connectRaw }) => connectRaw(kv.port));
    await direct.send('CLIENT', 'KILL', 'TYPE', 'pubsub');
    await until(() => one.pushes.length === 2);
    await until(
      async () => (await direct.send('PUBSUB', 'NUMSUB', 'ok', 'fine')).raw.toString().split(':1').length === 3,
    );
    expect(values(one.pushes)).toEqual([
      ['subscribe', 'ok', 1],
      ['subscribe', 'fine', 2],
    ]);
    await direct.close();
  });
});
