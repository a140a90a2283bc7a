/** SCAN in a scope tells nothing of how many keys others have, and gives all of its own. */
import { describe, expect, it, test } from 'vitest';
import type { ReplyValue } from '../../src/resp/reply.ts';
import { scanCursors } from '../../src/scope/scan-cursor.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { type Ask, asking, startScopedProxy } from './scoped-proxy.ts';

const OTHERS = 20_000;
const OWN = 120;

interface Walk {
  readonly keys: string[];
  readonly pages: number;
  readonly emptyPages: number;
  readonly cursors: number[];
}

async function walk(ask: Ask, ...options: (string | number)[]): Promise<Walk> {
  const keys: string[] = [];
  const cursors: number[] = [];
  let emptyPages = 0;
  let cursor = '0';
  do {
    const [next, page] = (await ask('SCAN', cursor, ...options)) as [string, string[]];
    keys.push(...page);
    cursor = next;
    // The last one is, where the one before was just full.
    if (page.length === 0 && cursor !== '0') emptyPages += 1;
    cursors.push(Number(cursor));
  } while (cursor !== '0');
  return { keys, pages: cursors.length, emptyPages, cursors: cursors.slice(0, -1) };
}

async function fill(ask: Ask, count: number, value = 'v'): Promise<void> {
  for (let at = 0; at < count; at += 1000) {
    const size = Math.min(1000, count - at);
    await ask(
      'MSET',
      ...Array.from({ length: size * 2 }, (_, index) => (index % 2 === 0 ? `k${at + index / 2}` : value)),
    );
  }
}

const names = Array.from({ length: OWN }, (_, at) => `k${at}`).sort();

describe.each(kvKinds)('SCAN in a scope on %s', async (kind) => {
  const kv = await startKv(kind);
  const proxy = await startScopedProxy(kv.port, {
    users: { a: { scope: 'a:' }, b: { scope: 'b:' }, chooser: { scope: 'v1/{orgId}/', may: ['set-scope'] } },
  });
  const direct = asking(await proxy.unscoped());
  const b = asking(await proxy.login('b'));

  it.each([2, 3] as const)(
    'has no more pages, and none that is empty, whatever others keep, in RESP%i',
    async (protocol) => {
      await direct('FLUSHALL');
      const a = asking(await proxy.login('a', protocol));
      await fill(a, OWN);
      const alone = await walk(a);
      await fill(b, OTHERS);
      for (const options of [[], ['COUNT', 3], ['COUNT', 50, 'MATCH', 'k*'], ['TYPE', 'string']]) {
        const among = await walk(a, ...options);
        expect([...new Set(among.keys)].sort(), options.join()).toEqual(names);
        expect(among.emptyPages).toBe(0);
        expect(among.pages).toBeLessThanOrEqual(options.includes(3) ? OWN / 3 + 1 : alone.pages + 1);
      }
      expect(await a('SCAN', 0, 'COUNT', '100000000000000000')).toEqual(['0', expect.any(Array)]);
      expect((await walk(a, 'MATCH', 'nothing*')).pages).toBe(1);
      expect((await walk(a, 'TYPE', 'list')).pages).toBe(1);
    },
  );

  it('gives cursors whose size tells nothing, and that every sidecar takes', async () => {
    await direct('FLUSHALL');
    const a = asking(await proxy.login('a'));
    await fill(a, 1000);
    const { cursors } = await walk(a, 'COUNT', 5);
    expect(cursors.length).toBeGreaterThan(50);
    // Of 1000 keys the server's own cursors are below 2048.
    expect(cursors.filter((cursor) => cursor < 2 ** 40).length).toBeLessThan(cursors.length / 10);
    const other = await startScopedProxy(kv.port, { users: { a: { scope: 'a:' }, b: { scope: 'b:' } } });
    const [cursor, first] = (await a('SCAN', 0, 'COUNT', 5)) as [string, string[]];
    const elsewhere = asking(await other.login('a'));
    const rest = new Set(first);
    let next = cursor;
    while (next !== '0') {
      const [after, page] = (await elsewhere('SCAN', next, 'COUNT', 100)) as [string, string[]];
      for (const key of page) rest.add(key);
      next = after;
    }
    expect(rest.size).toBe(1000);
  });

  it('is one page of all in transactions and in scripts', async () => {
    await direct('FLUSHALL');
    const a = asking(await proxy.login('a', 3));
    await fill(a, OWN);
    await a('RPUSH', 'list', 1);
    await fill(b, OTHERS);
    const inTransaction = async (...args: (string | number)[]): Promise<ReplyValue> => {
      await a('MULTI');
      await a('SCAN', ...args);
      return ((await a('EXEC')) as ReplyValue[])[0]!;
    };
    const inScript = async (...args: (string | number)[]): Promise<ReplyValue> =>
      a('EVAL', "return redis.call('SCAN',unpack(ARGV))", 0, ...args);
    for (const ask of [inTransaction, inScript]) {
      for (const [args, keys] of [
        [[0], [...names, 'list']],
        [
          [17, 'COUNT', 2],
          [...names, 'list'],
        ],
        [[0, 'MATCH', 'k1?', 'TYPE', 'STRING'], names.filter((name) => /^k1.$/.test(name))],
        [[0, 'TYPE', 'list'], ['list']],
      ] as [(string | number)[], string[]][]) {
        const [cursor, page] = (await ask(...args)) as [string, string[]];
        expect(cursor).toBe('0');
        expect([...page].sort(), args.join(' ')).toEqual([...keys].sort());
      }
    }
    for (const args of [['x'], [0, 'COUNT', 'x'], [0, 'COUNT', 0], [0, 'MATCH'], [0, 'NOSUCH', 1]]) {
      const expected = (await direct('SCAN', ...args)) as string;
      expect(await inTransaction(...args), args.join(' ')).toBe(expected);
      expect(await a('SCAN', ...args), args.join(' ')).toBe(expected);
      expect(await inScript(...args)).toContain(expected);
    }
  });

  it('asks for a scope where none is chosen, and takes one for a single command', async () => {
    await direct('FLUSHALL');
    const chooser = asking(await proxy.login('chooser'));
    expect(await chooser('SCAN', 0)).toMatch(/^!NOPERM this session has no scope/);
    await chooser('HOLDFAST', 'WITH', 'o', 'SET', 'k', 'v');
    expect(await chooser('HOLDFAST', 'WITH', 'o', 'SCAN', 0)).toEqual(['0', ['k']]);
    expect(await chooser('HOLDFAST', 'WITH', 'other', 'SCAN', 0)).toEqual(['0', []]);
  });
});

test('cursors go there and back, and those of two scopes differ', () => {
  const one = scanCursors(Buffer.from('secret'), 'a:');
  const same = scanCursors(Buffer.from('secret'), 'a:');
  const other = scanCursors(Buffer.from('secret'), 'b:');
  const seen = new Set<string>();
  for (const cursor of ['1', '2', '1024', '65535', '1048575', String(2 ** 51), String(2 ** 52 - 1)]) {
    const logical = one.logical(cursor);
    expect(same.physical(logical)).toBe(cursor);
    expect(other.logical(cursor)).not.toBe(logical);
    seen.add(logical);
  }
  expect(seen.size).toBe(7);
  for (const kept of ['0', 'x', '', '01', String(2 ** 52), '18446744073709551615']) {
    expect(one.logical(kept)).toBe(kept);
    expect(one.physical(kept)).toBe(kept);
  }
});
