import { describe, expect, it } from 'vitest';
import { hideOwnKeysInterceptor } from '../../src/intercept/hide-own-keys.ts';
import { infoInterceptor } from '../../src/intercept/info.ts';
import { replyValue } from '../../src/resp/reply.ts';
import { front } from '../proxy/through-proxy.ts';
import { kvKinds, startKv } from '../support/servers.ts';

describe.each(kvKinds)("Holdfast's own keys on %s", async (kind) => {
  const kv = await startKv(kind);
  const direct = await (await front(kv.port)).client();
  const through = await (
    await front(kv.port, {
      interceptors: [hideOwnKeysInterceptor(), infoInterceptor(() => ({ holdfast_version: '1.2.3' }))],
    })
  ).client();

  it('are hidden from KEYS, SCAN, DBSIZE and RANDOMKEY, in RESP2 and RESP3', async () => {
    await direct.send('FLUSHALL');
    await direct.send('SET', 'holdfast:epoch', 'x');
    for (const protocol of ['2', '3']) {
      await through.send('HELLO', protocol);
      expect(replyValue(await through.send('DBSIZE'))).toBe(0);
      expect((await through.send('RANDOMKEY')).isNull).toBe(true);
      await through.send('SET', 'mine', '1');
      for (let i = 0; i < 20; i += 1) expect(replyValue(await through.send('RANDOMKEY'))).toBe('mine');
      expect(replyValue(await through.send('DBSIZE'))).toBe(1);
      expect(replyValue(await through.send('KEYS', '*'))).toEqual(['mine']);
      expect(replyValue(await through.send('SCAN', '0', 'COUNT', '100'))).toEqual(['0', ['mine']]);
      await through.send('MULTI');
      await through.send('KEYS', '*');
      await through.send('DBSIZE');
      expect(replyValue(await through.send('EXEC'))).toEqual([['mine'], 1]);
      await through.send('DEL', 'mine');
    }
  });

  it('leaves errors as they are', async () => {
    expect((await through.send('SCAN', 'x')).bytes.toString()).toBe('ERR invalid cursor');
  });

  it("shows a section of Holdfast's in INFO, where all sections are asked for or this one", async () => {
    await through.send('HELLO', '2');
    expect(replyValue(await through.send('INFO'))).toMatch(
      /# Server\r\n[\s\S]*\r\n# Holdfast\r\nholdfast_version:1.2.3\r\n$/,
    );
    expect(replyValue(await through.send('INFO', 'holdfast'))).toBe('# Holdfast\r\nholdfast_version:1.2.3\r\n');
    expect(replyValue(await through.send('INFO', 'server'))).not.toContain('Holdfast');
  });
});
