/** What speaks of clients, queued in a transaction and outside: as the server answers it, about Holdfast's clients. */
import { describe, expect, it } from 'vitest';
import type { IdentityProvider } from '../../src/proxy/session/identity.ts';
import { replyValue } from '../../src/resp/reply.ts';
import { connectRaw } from '../support/raw-client.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { front, until } from './through-proxy.ts';

/** Valkey 8.0 leaves out its reply to an AUTH that it refuses behind others, in EXEC's reply too. */
const REDIS_CASES: Readonly<Record<string, readonly string[]>> = {
  'AUTH of users that are not there': ['MULTI', 'AUTH nobody x', 'AUTH x', 'EXEC', 'ECHO end'],
};

const CASES: Readonly<Record<string, readonly string[]>> = {
  'AUTH of a user, and HELLO with one': [
    'ACL SETUSER someone on >pw ~* +@all',
    'MULTI',
    'AUTH someone pw',
    'ACL WHOAMI',
    'EXEC',
    'ACL WHOAMI',
    'MULTI',
    'HELLO 2 AUTH default x SETNAME n',
    'EXEC',
    'ACL WHOAMI',
    'CLIENT GETNAME',
  ],
  'HELLO with a name': ['MULTI', 'HELLO 3 SETNAME named', 'EXEC', 'CLIENT GETNAME', 'GET none'],
  MONITOR: ['MULTI', 'MONITOR', 'GET k', 'EXEC', 'ECHO end'],
  'CLIENT INFO and LIST': ['MULTI', 'CLIENT SETNAME n', 'CLIENT INFO', 'CLIENT LIST', 'EXEC', 'CLIENT INFO'],
  'CLIENT LIST by type and with mistakes': [
    'MULTI',
    'CLIENT LIST TYPE pubsub',
    'CLIENT LIST TYPE primary',
    'CLIENT LIST ID x',
    'EXEC',
    'ECHO end',
  ],
  'CLIENT KILL of nobody': [
    'MULTI',
    'CLIENT KILL TYPE pubsub',
    'CLIENT KILL 1.2.3.4:5',
    'CLIENT KILL ID x',
    'CLIENT KILL TYPE normal SKIPME yes',
    'GET k',
    'EXEC',
    'ECHO end',
  ],
  'CLIENT SETINFO': ['MULTI', 'CLIENT SETINFO LIB-NAME l', 'EXEC', 'CLIENT INFO'],
  'CLIENT TRACKING on': ['MULTI', 'CLIENT TRACKING ON', 'GET k', 'EXEC', 'SET k w', 'GET k', 'SET k x', 'ECHO end'],
  'CLIENT TRACKING on and off': [
    'MULTI',
    'CLIENT TRACKING ON',
    'EXEC',
    'GET k',
    'MULTI',
    'CLIENT TRACKING OFF',
    'EXEC',
    'SET k w',
    'CLIENT TRACKINGINFO',
    'CLIENT INFO',
  ],
  'watched keys, inside and outside': [
    'WATCH a b a',
    'WATCH c',
    'CLIENT INFO',
    'MULTI',
    'CLIENT INFO',
    'EXEC',
    'CLIENT INFO',
    'WATCH a',
    'CLIENT INFO',
    'UNWATCH',
    'CLIENT INFO',
  ],
};

/** Holdfast's users are known, and these are none of them. */
const identities: IdentityProvider = {
  confines: () => false,
  ofListener: () => undefined,
  requiresAuth: () => false,
  authenticate: async () => 'unknown',
};

const OWN_FIELDS =
  /(?<= )(?:qbuf|qbuf-free|argv-mem|multi-mem|rbs|rbp|obl|oll|omem|tot-mem|tot-net-in|tot-net-out|events)=\S+ ?/g;

/** Numbers, addresses and memory are each one's own. */
function comparable(answered: string): string {
  return answered
    .replace(/id=\d+ addr=\S+ laddr=\S+ fd=\d+/g, 'id')
    .replace(/age=\d+ idle=\d+/g, '')
    .replace(OWN_FIELDS, '')
    .replace(/\$2\r\nid\r\n:\d+/g, 'id')
    .replace(/([$=])\d+(?=\r\n(?:txt:)?id )/g, '$1');
}

describe.each(kvKinds)('on %s', async (kind) => {
  const direct = await startKv(kind);
  const kv = await startKv(kind);
  const { port } = await front(kv.port, { identities });

  it.each(
    Object.entries(kind === 'redis' ? { ...REDIS_CASES, ...CASES } : CASES).flatMap(([name, commands]) => [
      [name, 2, commands],
      [name, 3, commands],
    ]) as [string, number, readonly string[]][],
  )('%s, RESP%i', async (_, protocol, commands) => {
    const told = async (target: number): Promise<string> => {
      const asked = await connectRaw(target);
      await asked.send('SET', 'k', 'v');
      await asked.send('HELLO', String(protocol));
      let answered = '';
      for (const command of [...commands, 'RESET']) answered += (await asked.send(...command.split(' '))).raw;
      await asked.close();
      for (const push of asked.pushes) answered += push.raw;
      return comparable(answered);
    };
    const seen = await told(direct.port);
    expect(await told(port)).toBe(seen);
    expect(seen).toContain('RESET');
  });

  it('a client that is named in a transaction has the invalidations', async () => {
    const [tracking, receiving, writer] = [await connectRaw(port), await connectRaw(port), await connectRaw(port)];
    await receiving.send('HELLO', '3');
    const id = String(replyValue(await receiving.send('CLIENT', 'ID')));
    for (const command of ['MULTI', `CLIENT TRACKING ON REDIRECT ${id}`]) await tracking.send(...command.split(' '));
    expect(replyValue(await tracking.send('EXEC'))).toEqual(['OK']);
    expect(replyValue(await tracking.send('CLIENT', 'GETREDIR'))).toBe(Number(id));
    await tracking.send('GET', 'k');
    await writer.send('SET', 'k', 'z');
    await until(() => receiving.pushes.length > 0);
    expect(receiving.pushes.map(replyValue)).toEqual([['invalidate', ['k']]]);
    for (const each of [tracking, receiving, writer]) await each.close();
  });

  it('nobody waits behind a write that is paused, where a shorter pause came behind', async () => {
    const [pausing, writer, reader] = [await connectRaw(port), await connectRaw(port), await connectRaw(port)];
    for (const ms of ['60000', '1']) await pausing.send('CLIENT', 'PAUSE', ms, 'WRITE');
    await new Promise((resolve) => setTimeout(resolve, 100));
    const written = writer.send('SET', 'k', 'paused');
    expect((await reader.send('GET', 'k')).type).toBe('$');
    await pausing.send('CLIENT', 'UNPAUSE');
    expect(replyValue(await written)).toBe('OK');
    for (const each of [pausing, writer, reader]) await each.close();
  });

  it('a client that redirects its invalidations to itself has them', async () => {
    const seen: unknown[][] = [];
    for (const target of [direct.port, port]) {
      const itself = await connectRaw(target);
      await itself.send('HELLO', '3');
      const id = String(replyValue(await itself.send('CLIENT', 'ID')));
      await itself.send('SET', 'k', 'v');
      const replies = [await itself.send('CLIENT', 'TRACKING', 'ON', 'REDIRECT', id), await itself.send('GET', 'k')];
      replies.push(await itself.send('SET', 'k', 'y'), await itself.send('PING'));
      const redirected = replyValue(await itself.send('CLIENT', 'GETREDIR'));
      await itself.close();
      seen.push([replies.map(({ raw }) => raw.toString()), itself.pushes.map(replyValue), redirected === Number(id)]);
    }
    expect(seen[1]).toEqual(seen[0]);
  });
});
