/** Holdfast's own names, and scopes that lie in one another: refused when they are made, whatever they are made of. */
import { createHash } from 'node:crypto';
import { describe, expect, it, test } from 'vitest';
import { createIdentities, type IdentityUser } from '../../src/scope/identities.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { asking, startScopedProxy } from './scoped-proxy.ts';

const sha1 = (text: string): string => createHash('sha1').update(text).digest('hex');

function start(users: Readonly<Record<string, Partial<IdentityUser>>>, listenerScopes: readonly string[] = []): void {
  createIdentities({
    users: new Map(
      Object.entries(users).map(([name, user]) => [
        name,
        { passwordHash: '0'.repeat(64), scope: undefined, may: [], shared: [], ...user },
      ]),
    ),
    listeners: listenerScopes.map((scope) => ({ scope })),
    upstream: undefined,
    fence: undefined,
  });
}

test.each(['holdfast:epoch', 'holdfast:epoch:', 'holdfast:epoch:scripts', 'holdfast:epochal:', 'holdfast:', 'h'])(
  'a scope called %s is refused, and as a shared key where it is a name of Holdfast',
  (name) => {
    expect(() => start({ a: { scope: name } })).toThrow(/reserved name holdfast:epoch/);
    expect(() => start({}, [name])).toThrow(/reserved name holdfast:epoch/);
    if (name.startsWith('holdfast:epoch')) {
      expect(() => start({ a: { scope: 'a:', shared: [name] } })).toThrow(/cannot be shared/);
    }
  },
);

test.each([
  ['acme:', '{orgId}:{fleet}:'],
  ['acme:x', '{orgId}:{fleet}:'],
  ['acme', '{orgId}:{fleet}:'],
  ['acme:fleet:deep:', '{orgId}:{fleet}:'],
  ['v1/acme/', 'v1/{orgId}/{fleet}/{templateVersion}/'],
  ['v1/acme/fl', 'v1/{orgId}/{fleet}/{templateVersion}/'],
  ['v1', 'v1/{orgId}/'],
])('a fixed scope %s beside the template %s is refused at start, in one clear line', (fixed, template) => {
  expect(() => start({ fixed: { scope: fixed }, chooser: { scope: template } })).toThrow(
    /^users\.(fixed: its scope lies inside that of users\.chooser|chooser: its scope lies inside that of users\.fixed)$/,
  );
});

test.each([
  ['acme/', '{orgId}:{fleet}:'],
  ['acme:fleet:', '{orgId}:{fleet}:'],
  ['v2/', 'v1/{orgId}/'],
  ['v1/a/b', 'v1/{orgId}:'],
])('a fixed scope %s beside the template %s is apart from it, or the same as one of it', (fixed, template) => {
  expect(() => start({ fixed: { scope: fixed, shared: ['common'] }, chooser: { scope: template } })).not.toThrow();
});

test('a shared key that a template could make is refused, and another is not', () => {
  const users = (key: string) => ({ a: { scope: 'a/', shared: [key] }, chooser: { scope: '{orgId}:{fleet}:' } });
  expect(() => start(users('acme:fleet:key'))).toThrow(/lies in the scope of users\.chooser/);
  expect(() => start(users('acme:fleet:'))).toThrow(/lies in the scope of users\.chooser/);
  expect(() => start(users('acme:key'))).not.toThrow();
});

describe.each(kvKinds)('on %s', async (kind) => {
  const kv = await startKv(kind);
  const users = {
    chooser: { scope: '{orgId}:{fleet}:', may: ['set-scope'] as const },
    b: { scope: 'b/' },
    c: { scope: 'c/' },
  };
  const proxy = await startScopedProxy(kv.port, { users });

  it('no template reaches the names of Holdfast, by any command', async () => {
    const chooser = asking(await proxy.login('chooser'));
    const direct = asking(await proxy.unscoped());
    await direct('SET', 'holdfast:epoch:scripts', 'mine');
    for (const [org, fleet] of [
      ['holdfast', 'epoch'],
      ['holdfast', 'epochal'],
    ] as const) {
      expect(await chooser('HOLDFAST', 'SCOPE', 'SET', org, fleet)).toMatch(/^!CONFIG .*reserved/);
      expect(await chooser('HOLDFAST', 'WITH', org, fleet, 'GET', 'scripts')).toMatch(/^!CONFIG .*reserved/);
      expect(await chooser('HOLDFAST', 'SCOPE', 'INVALIDATE', org, fleet)).toMatch(/^!CONFIG .*reserved/);
    }
    expect(await chooser('HOLDFAST', 'SCOPE', 'INVALIDATE', 'holdfast')).toMatch(/^!CONFIG .*reserved/);
    expect(await direct('GET', 'holdfast:epoch:scripts')).toBe('mine');
    await direct('DEL', 'holdfast:epoch:scripts');
  });

  it('a stored script is run under its own SHA1 only', async () => {
    const b = asking(await proxy.login('b'));
    const c = asking(await proxy.login('c'));
    const direct = asking(await proxy.unscoped());
    await direct('FLUSHALL');
    const honest = "return 'honest'";
    expect(await b('SCRIPT', 'LOAD', honest)).toBe(sha1(honest));
    const [field] = (await direct('HKEYS', 'holdfast:epoch:scripts')) as string[];
    const wanted = sha1("return 'not loaded here'");
    const foreign = "return 'put '..tostring(KEYS or '')..'there'";
    expect(await c('EVAL', foreign, 0)).toMatch(/^put .*there/);
    expect(await direct('HSET', 'holdfast:epoch:scripts', field!.replace(sha1(honest), wanted), foreign)).toBe(1);
    expect(await b('EVALSHA', wanted, 0)).toMatch(/^!NOSCRIPT/);
    expect(await b('SCRIPT', 'EXISTS', wanted)).toEqual([0]);
    expect(await b('SCRIPT', 'SHOW', wanted)).toMatch(/^!NOSCRIPT/);
  });
});
