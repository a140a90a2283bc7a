import { describe, expect, it } from 'vitest';
import { HoldfastError } from '../../src/errors.ts';
import type { Exchange, Interceptor } from '../../src/interceptor.ts';
import * as encode from '../../src/resp/encode.ts';
import { request } from '../../src/resp/encode.ts';
import { replyValue } from '../../src/resp/reply.ts';
import { startKv } from '../support/servers.ts';
import { front, until } from './through-proxy.ts';

function interceptor(commands: readonly string[], see: (exchange: Exchange) => void | Promise<void>): Interceptor {
  return { name: 'test', handles: (command) => commands.includes(command?.name ?? ''), request: see };
}

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

describe.each(['transaction', 'session'] as const)('interceptors, pooling %s', async (pooling) => {
  const kv = await startKv('redis');
  const fronted = (interceptors: Interceptor[]) => front(kv.port, { pooling, interceptors });

  it('keeps the order of replies while one of them is held, and forwards those behind it', async () => {
    let release: (() => void) | undefined;
    const held = interceptor(['incr'], (exchange) => {
      exchange.onReply(async (reply) => {
        await new Promise<void>((resolve) => {
          release = resolve;
        });
        return reply;
      });
    });
    const { client } = await fronted([held]);
    const one = await client();
    const other = await client();
    await one.send('DEL', 'n', 'after');
    one.socket.write(Buffer.concat([request(['INCR', 'n']), request(['SET', 'after', '1']), request(['PING'])]));
    await until(async () => replyValue(await other.send('EXISTS', 'after')) === 1);
    release!();
    expect([replyValue(await one.next()), replyValue(await one.next()), replyValue(await one.next())]).toEqual([
      1,
      'OK',
      'PONG',
    ]);
  });

  it('keeps later requests back while an interceptor decides', async () => {
    const slow = interceptor(['set'], async () => sleep(100));
    const { client } = await fronted([slow]);
    const one = await client();
    await one.send('DEL', 'k');
    one.socket.write(Buffer.concat([request(['SET', 'k', 'v']), request(['GET', 'k'])]));
    expect([replyValue(await one.next()), replyValue(await one.next())]).toEqual(['OK', 'v']);
  });

  it('rewrites requests inward and replies outward, in the order of the registry', async () => {
    const mark = (name: string): Interceptor =>
      interceptor(['echo'], (exchange) => {
        exchange.args = [exchange.args[0]!, Buffer.from(`${exchange.args[1]}>${name}`)];
        exchange.onReply((reply) => encode.bulk(`${replyValue(readBulk(reply))}<${name}`));
      });
    const { client } = await fronted([mark('a'), mark('b')]);
    expect(replyValue(await (await client()).send('ECHO', 'x'))).toBe('x>a>b<b<a');
  });

  it('answers here, in turn, and outer interceptors still see the answer', async () => {
    const outer = interceptor(['getset'], (exchange) =>
      exchange.onReply((reply) => Buffer.concat([encode.simple('seen').subarray(0, 5), reply.subarray(1)])),
    );
    const inner = interceptor(['getset'], (exchange) => exchange.respond(encode.simple('mine')));
    const { client } = await fronted([outer, inner]);
    const one = await client();
    one.socket.write(Buffer.concat([request(['PING']), request(['GETSET', 'a', 'b']), request(['PING'])]));
    expect([replyValue(await one.next()), replyValue(await one.next()), replyValue(await one.next())]).toEqual([
      'PONG',
      'seenmine',
      'PONG',
    ]);
  });

  it('turns a rejection into an error reply and goes on', async () => {
    const failing = interceptor(['set', 'get'], (exchange) => {
      if (exchange.command!.name === 'set') throw new HoldfastError('LEDGERDOWN', 'no\r\nledger');
      exchange.onReply(() => Promise.reject(new Error('broken')));
    });
    const { client } = await fronted([failing]);
    const one = await client();
    expect((await one.send('SET', 'a', 'b')).bytes.toString()).toBe('LEDGERDOWN no ledger');
    expect((await one.send('GET', 'a')).bytes.toString()).toMatch(/^ERR Holdfast failed internally/);
    expect(replyValue(await one.send('PING'))).toBe('PONG');
  });

  it('gives queued commands their member of EXEC, and tells them when they are discarded', async () => {
    const seen: string[] = [];
    const watch = interceptor(['incr', 'exec'], (exchange) => {
      if (exchange.command!.name === 'exec') {
        seen.push(`exec of ${exchange.transaction.length}`);
        return;
      }
      exchange.onReply(async (reply) => {
        await sleep(5);
        seen.push(`${exchange.args[1]} ${reply.toString().trim()}`);
        return encode.integer(100 + Number(reply.toString().slice(1)));
      });
      exchange.onDiscard(() => seen.push(`${exchange.args[1]} discarded`));
    });
    const { client } = await fronted([watch]);
    const one = await client();
    await one.send('DEL', 'q1', 'q2');
    one.socket.write(
      Buffer.concat(
        [['MULTI'], ['INCR', 'q1'], ['PING'], ['INCR', 'q2'], ['EXEC'], ['ECHO', 'behind']].map((args) =>
          request(args),
        ),
      ),
    );
    const replies = [];
    for (let i = 0; i < 6; i += 1) replies.push(replyValue(await one.next()));
    expect(replies).toEqual(['OK', 'QUEUED', 'QUEUED', 'QUEUED', [101, 'PONG', 101], 'behind']);
    expect(seen).toEqual(['exec of 2', 'q1 :1', 'q2 :1']);

    for (const args of [['MULTI'], ['INCR', 'q1'], ['DISCARD']]) await one.send(...args);
    for (const args of [['MULTI'], ['INCR', 'q1'], ['NOSUCH'], ['EXEC']]) await one.send(...args);
    await one.send('MULTI');
    await one.send('INCR', 'q1');
    one.socket.destroy();
    await until(() => seen.filter((line) => line === 'q1 discarded').length === 3);
  });

  it('fails EXEC when an interceptor refused a queued command', async () => {
    const refusing = interceptor(['set'], () => {
      throw new HoldfastError('NOPERM', 'not here');
    });
    const { client } = await fronted([refusing]);
    const one = await client();
    await one.send('DEL', 'r');
    await one.send('MULTI');
    await one.send('INCR', 'r');
    expect((await one.send('SET', 'r', '1')).bytes.toString()).toMatch(/^NOPERM/);
    expect((await one.send('EXEC')).bytes.toString()).toMatch(/^EXECABORT/);
    expect(replyValue(await one.send('EXISTS', 'r'))).toBe(0);
    expect(replyValue(await one.send('PING'))).toBe('PONG');
  });

  it('lets an interceptor answer when the connection broke, with a request sent again', async () => {
    const own = await startKv('redis');
    const recovering = interceptor(['blpop'], (exchange) => {
      exchange.onLost(async () => {
        await exchange.resend([Buffer.from('RPUSH'), Buffer.from('l'), Buffer.from('after')]);
        return exchange.resend();
      });
    });
    const { client } = await front(own.port, { pooling, interceptors: [recovering] });
    const one = await client();
    const popped = one.send('BLPOP', 'l', '0');
    await sleep(50);
    await own.kill9();
    await own.restart();
    expect(replyValue(await popped)).toEqual(['l', 'after']);
    expect(replyValue(await one.send('PING'))).toBe('PONG');
  });

  it('drops answers to CLIENT REPLY OFF, held ones too', async () => {
    const held = interceptor(['set'], (exchange) => exchange.onReply(async (reply) => sleep(20).then(() => reply)));
    const { client } = await fronted([held]);
    const one = await client();
    for (const args of [
      ['CLIENT', 'REPLY', 'OFF'],
      ['SET', 'a', 'b'],
      ['GET', 'a'],
      ['CLIENT', 'REPLY', 'ON'],
    ]) {
      one.socket.write(request(args));
    }
    expect(replyValue(await one.next())).toBe('OK');
    expect(replyValue(await one.send('ECHO', 'x'))).toBe('x');
  });

  it('prefixes keys of scoped sessions on the fast path', async () => {
    const scope = { name: 'tenant' };
    const through = await front(kv.port, {
      pooling,
      identities: {
        confines: () => true,
        requiresAuth: () => false,
        ofListener: () => ({
          user: 'tenant',
          administers: false,
          authenticated: true,
          scope,
          scopeName: 't:',
          credentials: undefined,
          keyPrefix: Buffer.from('t:'),
        }),
        authenticate: async () => 'unknown',
      },
      prefixedKeys: (command) => {
        if (command.name === 'mset') return { first: 1, last: -1, step: 2 };
        return ['get', 'set'].includes(command.name) ? { first: 1, last: 1, step: 1 } : undefined;
      },
    });
    const tenant = await through.client();
    const direct = await (await front(kv.port)).client();
    await direct.send('FLUSHALL');
    tenant.socket.write(
      Buffer.concat(
        [
          ['SET', 'a', '1'],
          ['MSET', 'b', '2', '', '3', 'x'.repeat(99), '4'],
          ['GET', 'b'],
        ].map((args) => request(args)),
      ),
    );
    expect([replyValue(await tenant.next()), replyValue(await tenant.next()), replyValue(await tenant.next())]).toEqual(
      ['OK', 'OK', '2'],
    );
    const keys = replyValue(await direct.send('KEYS', '*')) as string[];
    expect(keys.sort()).toEqual(['t:', 't:a', 't:b', `t:${'x'.repeat(99)}`]);
  });
});

function readBulk(frame: Buffer) {
  return {
    type: '$' as const,
    bytes: frame.subarray(frame.indexOf('\n') + 1, -2),
    items: undefined,
    isNull: false,
    raw: frame,
  };
}
