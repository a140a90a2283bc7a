/** Behind somebody's endless script the server answers -BUSY, and Holdfast's clients hear it when a direct client would. */
import { describe, expect, it } from 'vitest';
import type { Interceptor } from '../../src/interceptor.ts';
import { request } from '../../src/resp/encode.ts';
import { replyValue } from '../../src/resp/reply.ts';
import { startScopedProxy } from '../scope/scoped-proxy.ts';
import { connectRaw, type RawClient } from '../support/raw-client.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { front } from './through-proxy.ts';

const ENDLESS = 'while true do end';
/** Looks into scripts, as the cache does. */
const looker: Interceptor = {
  name: 'looker',
  handles: (command) => command?.name === 'eval',
  request: (exchange) => exchange.onReply((reply) => reply),
};

describe.each(kvKinds)('behind %s', async (kind) => {
  const kv = await startKv(kind);
  const direct = await connectRaw(kv.port);
  await direct.send('CONFIG', 'SET', 'busy-reply-threshold', '50');

  /** Everybody asks while the script has just been sent, and once more. */
  async function expectBusy(runner: RawClient, script: readonly string[], others: readonly RawClient[]): Promise<void> {
    // All are on one lane, with nothing in flight.
    for (const each of [runner, ...others]) expect(replyValue(await each.send('ECHO', 'x'))).toBe('x');
    const ran = runner.send(...script);
    ran.catch(() => undefined);
    const asked = others.map((other, n) =>
      n % 2 === 0 ? other.send('GET', 'k') : other.send('EVAL', 'return 1', '0'),
    );
    // A pipeline that goes on.
    others[0]!.socket.write(Buffer.concat([request(['SET', 'k', 'v']), request(['GET', 'k'])]));
    asked.push(others[0]!.next(), others[0]!.next());
    for (const reply of await Promise.all(asked)) expect(reply.bytes.toString()).toMatch(/^BUSY/);
    expect(replyValue(await others[0]!.send('SCRIPT', 'KILL'))).toBe('OK');
    expect((await ran).bytes.toString()).toMatch(/kill/i);
    for (const each of [runner, ...others]) expect(replyValue(await each.send('ECHO', 'again'))).toBe('again');
  }

  it.each([
    ['forwarded', []],
    ['looked into', [looker]],
  ])('a script that is %s keeps nobody waiting, from its first moment on', async (_, interceptors) => {
    const { client } = await front(kv.port, { interceptors });
    const [runner, ...others] = await Promise.all(Array.from({ length: 4 }, () => client()));
    await expectBusy(runner!, ['EVAL', ENDLESS, '0'], others);
  });

  it('nor does a script of a scope that is known', async () => {
    const { login } = await startScopedProxy(kv.port, { users: { acme: { scope: 'acme:' } } });
    const [runner, ...others] = await Promise.all(Array.from({ length: 4 }, () => login('acme')));
    const script = `if ARGV[1]=='on' then ${ENDLESS} end return 0`;
    for (const each of [runner!, ...others]) expect(replyValue(await each.send('EVAL', script, '0', 'off'))).toBe(0);
    await Promise.all(others.map((each) => each.send('EVAL', 'return 1', '0')));
    const ran = runner!.send('EVAL', script, '0', 'on');
    const asked = others.map((other) => other.send('GET', 'k'));
    for (const reply of await Promise.all(asked)) expect(reply.bytes.toString()).toMatch(/^BUSY/);
    expect(replyValue(await direct.send('SCRIPT', 'KILL'))).toBe('OK');
    await ran;
  });

  it('more scripts at once than there are shared lanes are all answered, in order', async () => {
    const { client, proxy } = await front(kv.port);
    const clients = await Promise.all(Array.from({ length: 40 }, () => client()));
    for (let round = 0; round < 5; round += 1) {
      const replies = await Promise.all(
        clients.flatMap((each, n) => [each.send('EVAL', 'return ARGV[1]', '0', `${n}`), each.send('ECHO', `${n}!`)]),
      );
      expect(replies.map(replyValue)).toEqual(clients.flatMap((_, n) => [`${n}`, `${n}!`]));
    }
    expect(proxy.status().lanes).toBeLessThanOrEqual(17);
  });
});
