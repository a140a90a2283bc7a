import { describe, expect, it } from 'vitest';
import { request } from '../../src/resp/encode.ts';
import { replyValue } from '../../src/resp/reply.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { front } from './through-proxy.ts';

const CLIENTS = 60;
const ROUNDS = 20;
const ADD_USER = ['ACL', 'SETUSER', 'user', 'on', '>right', '~*', '&*', '+@all'] as const;

describe.each(kvKinds)('logins judged by %s', async (kind) => {
  const kv = await startKv(kind);
  const { client } = await front(kv.port);
  const admin = await client();
  await admin.send(...ADD_USER);

  it('get each its own verdict, however many come at once', async () => {
    const clients = await Promise.all(Array.from({ length: CLIENTS }, () => client()));
    for (let round = 0; round < ROUNDS; round += 1) {
      const verdicts = await Promise.all(
        clients.map(async (each, index) => {
          const right = (index + round) % 3 === 0;
          const reply = await each.send('AUTH', 'user', right ? 'right' : 'wrong');
          return right === (String(replyValue(reply)) === 'OK') && (right || /^WRONGPASS/.test(reply.bytes.toString()));
        }),
      );
      expect(verdicts.filter((own) => !own)).toEqual([]);
    }
  });

  it('refuse a user who is gone on a lane in another database, instead of waiting', async () => {
    const leaver = await client();
    await leaver.send('AUTH', 'user', 'right');
    await admin.send('ACL', 'SETUSER', 'user', 'resetpass', '>other');
    leaver.socket.write(request(['SELECT', '3']));
    expect((await leaver.next(4_000)).bytes.toString()).toMatch(/^WRONGPASS/);
    await admin.send(...ADD_USER);
  });

  it('are answered among a flood of pushes', async () => {
    const tracking = await client();
    await tracking.send('HELLO', '3');
    await tracking.send('CLIENT', 'TRACKING', 'ON', 'BCAST');
    let flooding = true;
    const flood = (async () => {
      for (let i = 0; flooding; i += 1) {
        await Promise.all(Array.from({ length: 50 }, (_, key) => admin.send('SET', `key:${key}`, String(i))));
      }
    })();
    try {
      for (let i = 0; i < 100; i += 1) {
        expect((await tracking.send('AUTH', 'user', 'wrong')).bytes.toString()).toMatch(/^WRONGPASS/);
        expect(replyValue(await tracking.send('PING', String(i)))).toBe(String(i));
      }
      expect(replyValue(await tracking.send('AUTH', 'user', 'right'))).toBe('OK');
      expect(replyValue(await tracking.send('ACL', 'WHOAMI'))).toBe('user');
    } finally {
      flooding = false;
      await flood;
    }
    expect(tracking.pushes.length).toBeGreaterThan(0);
  });
});
