/** Commands that change what a client hears or is sent, queued in a transaction: byte for byte as the server answers them. */
import { describe, expect, it } from 'vitest';
import { request } from '../../src/resp/encode.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { exchangeBytes, front } from './through-proxy.ts';

const CASES: Readonly<Record<string, readonly string[]>> = {
  'SUBSCRIBE, its messages and UNSUBSCRIBE by name': [
    'MULTI',
    'SET k v',
    'SUBSCRIBE a b',
    'GET k',
    'UNSUBSCRIBE a',
    'EXEC',
    'PING',
  ],
  'PSUBSCRIBE and SSUBSCRIBE together': ['MULTI', 'PSUBSCRIBE p*', 'SSUBSCRIBE s', 'INCR n', 'EXEC', 'PING'],
  'a subscription alone, then one outside': [
    'MULTI',
    'SUBSCRIBE a',
    'EXEC',
    'SUBSCRIBE b',
    'UNSUBSCRIBE',
    'GET n',
    'ECHO end',
  ],
  'UNSUBSCRIBE without subscriptions': ['MULTI', 'UNSUBSCRIBE', 'UNSUBSCRIBE a b', 'EXEC', 'ECHO end'],
  'a subscription that DISCARD takes back': ['MULTI', 'SUBSCRIBE a', 'DISCARD', 'GET n', 'ECHO end'],
  'a subscription behind a refused command': ['MULTI', 'SUBSCRIBE a', 'NOSUCH', 'EXEC', 'GET n', 'ECHO end'],
  'CLIENT REPLY OFF': [
    'MULTI',
    'GET k',
    'CLIENT REPLY OFF',
    'GET k',
    'EXEC',
    'ECHO lost',
    'CLIENT REPLY ON',
    'ECHO end',
  ],
  'CLIENT REPLY OFF and ON': ['MULTI', 'CLIENT REPLY OFF', 'GET k', 'CLIENT REPLY ON', 'GET k', 'EXEC', 'ECHO end'],
  'CLIENT REPLY SKIP': ['MULTI', 'GET k', 'CLIENT REPLY SKIP', 'GET k', 'EXEC', 'ECHO skipped', 'ECHO end'],
  'EXEC and DISCARD outside, which leave what is watched': [
    'WATCH k',
    'SET k w',
    'EXEC',
    'SELECT 1',
    'DISCARD',
    'SELECT 0',
    'MULTI',
    'GET k',
    'EXEC',
  ],
  'UNWATCH outside': ['WATCH k', 'SET k w', 'UNWATCH', 'SELECT 1', 'SELECT 0', 'MULTI', 'GET k', 'EXEC'],
  'RESET behind SELECT of a database that nobody was in yet': ['MULTI', 'SELECT 7', 'RESET', 'ECHO hello', 'ECHO end'],
  'CLIENT REPLY ON, and one with a mistake': ['MULTI', 'CLIENT REPLY ON', 'CLIENT REPLY MAYBE', 'EXEC', 'ECHO end'],
};

describe.each(kvKinds)('in a transaction on %s', async (kind) => {
  const kv = await startKv(kind);
  const { port } = await front(kv.port);

  it.each(
    Object.entries(CASES).flatMap(([name, commands]) => [
      [name, 2, commands],
      [name, 3, commands],
    ]) as [string, number, readonly string[]][],
  )('%s, RESP%i', async (_, protocol, commands) => {
    const bytes = Buffer.concat([...commands, 'QUIT'].map((command) => request(command.split(' '))));
    const hello = request(['HELLO', String(protocol)]);
    const told = async (target: number): Promise<string> => {
      const all = Buffer.concat([request(['SET', 'k', 'v']), request(['DEL', 'n']), hello, bytes]);
      // QUIT ends it; a loaded server may take its time.
      const answered = (await exchangeBytes(target, all, 5_000)).toString();
      return answered.slice(answered.indexOf('modules'));
    };
    const direct = await told(kv.port);
    expect(await told(port)).toBe(direct);
    expect(direct).not.toBe('');
  });

  it('messages that the transaction itself publishes follow its reply', async () => {
    const commands = ['HELLO 3', 'MULTI', 'SUBSCRIBE a b', 'PUBLISH a x', 'INCR m', 'EXEC', 'ECHO end', 'QUIT'];
    const bytes = Buffer.concat(commands.map((command) => request(command.split(' '))));
    const answered = (await exchangeBytes(port, bytes, 5_000)).toString();
    expect(answered.slice(answered.indexOf('*3\r\n>3'))).toBe(
      '*3\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n:1\r\n:1\r\n' +
        '>3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n$3\r\nend\r\n+OK\r\n',
    );
  });
});
