/** What a session sets on its connection does not take its later commands past the ledger. */
import { beforeAll, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { ledgerRows } from '../support/ledger-rows.ts';
import { connectRaw } from '../support/raw-client.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { startAnew } from '../support/sidecar.ts';

const NEVER_MS = 600_000;

describe.each(kvKinds)('an XADD is durable, with %s, behind', (kind) => {
  let kv: KvServer;

  beforeAll(async () => {
    kv = await startKv(kind);
  });

  test.each([
    ['SCRIPT DEBUG NO', [['SCRIPT', 'DEBUG', 'NO']]],
    ['SCRIPT DEBUG YES', [['SCRIPT', 'DEBUG', 'YES']]],
    ['SCRIPT DEBUG SYNC', [['SCRIPT', 'DEBUG', 'SYNC']]],
    [
      'SCRIPT DEBUG SYNC and NO',
      [
        ['SCRIPT', 'DEBUG', 'SYNC'],
        ['SCRIPT', 'DEBUG', 'NO'],
        ['EVAL', 'return {ok="OK"}', '0'],
      ],
    ],
    ['SCRIPT DEBUG with a mistake', [['SCRIPT', 'DEBUG', 'MAYBE']]],
    [
      'REPLCONF',
      [
        ['REPLCONF', 'listening-port', '1'],
        ['REPLCONF', 'capa', 'eof', 'capa', 'psync2'],
      ],
    ],
    ['REPLCONF without options', [['REPLCONF']]],
  ])('%s', async (_, commands) => {
    const { sidecar, direct } = await startAnew(kv.port, { lookIntervalMs: NEVER_MS });
    const client = await connectRaw(sidecar.port);
    const plain = await connectRaw(kv.port);
    try {
      for (const command of commands) {
        expect((await client.send(...command)).raw.toString()).toBe((await plain.send(...command)).raw.toString());
      }
      expect((await client.send('XADD', 's', '1-1', 'n', '1')).bytes.toString()).toBe('1-1');
      expect(await ledgerRows(sidecar, 's')).toEqual([['1-1', ['n', '1']]]);
      expect(await direct.xlen('s')).toBe(1);
    } finally {
      await Promise.all([client.close(), plain.close()]);
    }
  });

  test('REPLCONF ACK, which nobody answers', async () => {
    const { sidecar } = await startAnew(kv.port, { lookIntervalMs: NEVER_MS });
    const client = await connectRaw(sidecar.port);
    try {
      client.socket.write('REPLCONF ACK 0\r\nREPLCONF GETACK *\r\nXADD s 1-1 n 1\r\n');
      expect((await client.next()).bytes.toString()).toBe('1-1');
      expect(await ledgerRows(sidecar, 's')).toEqual([['1-1', ['n', '1']]]);
    } finally {
      await client.close();
    }
  });

  test('a script that is debugged ends with its connection, and not before', async () => {
    const { sidecar } = await startAnew(kv.port, { lookIntervalMs: NEVER_MS });
    const client = await connectRaw(sidecar.port);
    await client.send('SCRIPT', 'DEBUG', 'SYNC');
    const ended = new Promise((resolve) => client.socket.once('close', resolve));
    expect((await client.send('EVAL', "local a = 1 redis.call('set', 'k', a) return 5", '0')).raw.toString()).toContain(
      'Stopped at 1',
    );
    client.socket.write('*1\r\n$8\r\ncontinue\r\n');
    await ended;
    expect(await sidecar.client().get('k')).toBe('1');
  });
});
