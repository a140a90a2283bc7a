/** One client's fault is that client's: nobody else notices. */
import { pino } from 'pino';
import { describe, expect, it } from 'vitest';
import type { Interceptor } from '../../src/interceptor.ts';
import type { IdentityProvider, SessionIdentity } from '../../src/proxy/session/identity.ts';
import { request } from '../../src/resp/encode.ts';
import { replyValue } from '../../src/resp/reply.ts';
import { connectRaw } from '../support/raw-client.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { exchangeBytes, front } from './through-proxy.ts';

const DEEP = 'local t={1} for i=1,tonumber(ARGV[1]) do t={t} end return t';

/** Looks into every reply, as scopes do. */
const looker: Interceptor = {
  name: 'looker',
  handles: (command) => command?.name === 'eval' || command?.name === 'exec',
  request: (exchange) => exchange.onReply((reply) => reply),
};

describe.each(kvKinds)('behind %s', async (kind) => {
  const kv = await startKv(kind);

  it('a reply nested 7,900 levels deep passes through EXEC, byte for byte', async () => {
    const { port } = await front(kv.port, { interceptors: [looker] });
    const bytes = Buffer.concat(
      [['MULTI'], ['EVAL', DEEP, '0', '7900'], ['EXEC'], ['PING'], ['QUIT']].map((args) => request(args)),
    );
    const direct = await exchangeBytes(kv.port, bytes, 5_000);
    expect((await exchangeBytes(port, bytes, 5_000)).equals(direct)).toBe(true);
    expect(direct.length).toBeGreaterThan(7_900 * 4);
  });

  it('a fault ends the session whose it is, with a line in the log, wherever it happens', async () => {
    const lines: string[] = [];
    const log = pino({ level: 'error' }, { write: (line: string) => void lines.push(line) });
    const boom = (where: string): never => {
      throw new TypeError(`fault in ${where}`);
    };
    const glances: Interceptor = {
      name: 'glances',
      handles: (command) => command?.name === 'getdel',
      request: () => undefined,
      glance: { look: () => 1, answered: () => boom('a glance'), late: () => boom('a late glance') },
    };
    const identity: SessionIdentity = {
      user: 'watched',
      administers: false,
      authenticated: true,
      scope: undefined,
      credentials: undefined,
      keyPrefix: undefined,
      scopeName: undefined,
      confine: (command) => (command?.name === 'echo' ? boom('a request') : undefined),
      rewriteReply: () => boom('a reply'),
      rewritePush: () => boom('a push'),
    };
    const identities: IdentityProvider = {
      confines: () => false,
      requiresAuth: () => false,
      ofListener: (index) => (index === 1 ? identity : undefined),
      authenticate: async () => 'unknown',
    };
    const { proxy, client } = await front(kv.port, {
      listen: [{ port: 0 }, { port: 0 }],
      interceptors: [glances],
      identities,
      log,
    });
    const neighbour = await client();
    await neighbour.send('SET', 'full', 'x');
    const attacks: readonly (readonly [string, number, readonly (readonly string[])[]])[] = [
      ['a request', 1, [['ECHO', 'x']]],
      ['a reply', 1, [['CLIENT', 'NO-EVICT', 'ON']]],
      ['a push', 1, [['SUBSCRIBE', 'channel']]],
      ['a late glance', 0, [['PING'], ['GETDEL', 'absent']]],
      ['a glance', 0, [['PING'], ['GETDEL', 'full']]],
    ];
    for (const [where, listener, commands] of attacks) {
      // The neighbour's requests stand before and behind those of the one who fails, on one connection.
      const replies = [neighbour.send('PING', 'before'), neighbour.send('SET', 'full', 'x')];
      const raw = await connectRaw(proxy.addresses[listener]!.port!);
      const closed = new Promise<void>((resolve) => raw.socket.once('close', () => resolve()));
      raw.socket.resume();
      raw.socket.write(Buffer.concat(commands.map((args) => request(args))));
      replies.push(neighbour.send('PING', 'behind'));
      await closed;
      replies.push(neighbour.send('PING', 'afterwards'));
      expect((await Promise.all(replies)).map(replyValue), where).toEqual(['before', 'OK', 'behind', 'afterwards']);
    }
    const told = lines.map((line) => (JSON.parse(line) as { err: { message: string } }).err.message);
    expect(told).toEqual(attacks.map(([where]) => `fault in ${where}`));
    expect(proxy.status().faults).toBe(attacks.length);
  });
});
