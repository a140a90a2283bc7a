/** What clients in scopes are told when something is refused or fails: never a physical name, never a user of the fence. */
import { describe, expect, it } from 'vitest';
import { HoldfastError } from '../../src/errors.ts';
import { hideOwnKeysInterceptor } from '../../src/intercept/hide-own-keys.ts';
import type { Interceptor } from '../../src/interceptor.ts';
import { startKv } from '../support/servers.ts';
import { type Ask, asking, startScopedProxy } from './scoped-proxy.ts';

/** Fails as interceptors of streams do, naming what they know. */
const failing: Interceptor = {
  name: 'failing',
  handles: (command) => command?.name === 'xlen' || command?.name === 'strlen',
  request(exchange) {
    const fail = (): never => {
      throw new HoldfastError('RECOVERING', `the stream ${exchange.args[1]} is being restored`);
    };
    if (exchange.command!.name === 'strlen') fail();
    exchange.onReply(async () => fail());
  },
};

describe.each(['redis', 'valkey'] as const)('errors in a scope on %s', (server) => {
  it('have logical names when an interceptor fails, before the command or after it', async () => {
    const kv = await startKv(server);
    const proxy = await startScopedProxy(kv.port, { users: { a: { scope: 'tenant:' } }, interceptors: [failing] });
    const a = asking(await proxy.login('a'));
    const restored = '!RECOVERING the stream s is being restored';
    expect(await a('XLEN', 's')).toBe(restored);
    expect(await a('STRLEN', 's')).toBe(restored);
    await a('MULTI');
    await a('XLEN', 's');
    expect(await a('EXEC')).toEqual([restored]);
  });

  it('never come from the second fence', async () => {
    const kv = await startKv(server);
    const proxy = await startScopedProxy(kv.port, {
      users: { a: { scope: 'tenant:' } },
      interceptors: [hideOwnKeysInterceptor()],
    });
    const direct = asking(await proxy.unscoped());
    const a = asking(await proxy.login('a'));
    await a('SET', 'k', 'v');
    await a('MULTI');
    for (const command of ['DBSIZE', 'RANDOMKEY']) await a(command);
    expect(await a('EXEC')).toEqual([1, 'k']);
    const watchInside = async (ask: Ask): Promise<unknown[]> => {
      const seen: unknown[] = [];
      for (const args of [['SET', 'k', 'v'], ['MULTI'], ['WATCH', 'k', 'other'], ['GET', 'k'], ['EXEC']]) {
        seen.push(await ask(...(args as [string])));
      }
      return seen;
    };
    expect(await watchInside(a)).toEqual(await watchInside(direct));
    const sha = '0'.repeat(40);
    if (server === 'valkey') expect(await a('SCRIPT', 'SHOW', sha)).toBe(await direct('SCRIPT', 'SHOW', sha));
    for (const more of [[], [sha, sha]]) {
      expect(await a('SCRIPT', 'SHOW', ...more)).toMatch(/^!ERR (wrong number of arguments|unknown subcommand)/i);
    }
    expect(await direct('ACL', 'LOG')).toEqual([]);
  });
});
