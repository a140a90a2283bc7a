/** The KV store does one thing at a time: whatever recovery asks of it is little, however much there is to ask for. */
import { describe, expect, test } from 'vitest';
import { kvKinds, startKv } from '../support/servers.ts';
import { looks, restored, startAnew } from '../support/sidecar.ts';

const ENTRIES = 20_000;
const AT_ONCE_MAX = 5000;
/** Where the count stands in a command that can ask for a part. */
const COUNT_AT: Readonly<Record<string, (args: readonly string[]) => string | undefined>> = {
  xrange: (args) => (args[4]?.toLowerCase() === 'count' ? args[5] : undefined),
  xrevrange: (args) => (args[4]?.toLowerCase() === 'count' ? args[5] : undefined),
  // Without a range it is a summary, which costs the number of consumers.
  xpending: (args) => (args.length === 3 ? '1' : args.at(-1)),
  scan: (args) => {
    const at = args.findIndex((word) => word.toLowerCase() === 'count');
    return at < 0 ? '10' : args[at + 1];
  },
};
/** What a script that only reads asks for is among the commands itself, and counted as one by the step. */
const WALKS = new Set(['keys', 'eval', 'evalsha', 'fcall', 'smembers', 'hgetall', 'sort']);

describe.each(kvKinds)('with %s', (kind) => {
  test(`no command of a look or a restore goes through more than ${AT_ONCE_MAX} of ${ENTRIES} entries`, async () => {
    const kv = await startKv(kind);
    const { sidecar, client, direct } = await startAnew(kv.port, { lookIntervalMs: 50 });
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    for (let n = 0; n < ENTRIES; n += 1000) {
      const adding = client.pipeline();
      for (let i = n; i < n + 1000; i += 1) adding.xadd('s', '*', 'n', String(i));
      await adding.exec();
    }
    await client.call('XREADGROUP', 'GROUP', 'g', 'c', 'COUNT', ENTRIES, 'STREAMS', 's', '>');
    // Every other one, so that all pages of what is pending have to be looked at.
    const ids = (await direct.xrange('s', '-', '+')).map(([id]) => id).filter((_, at) => at % 2 === 1);
    await client.xack('s', 'g', ...ids);
    const asked: string[][] = [];
    const watching = await direct.monitor();
    watching.on('monitor', (_time: string, args: string[]) => asked.push(args));
    await looks(sidecar, 3);
    await direct.flushall();
    await restored(sidecar);
    expect(await direct.xlen('s')).toBe(ENTRIES / 2);
    await looks(sidecar, 3);
    watching.disconnect();

    expect(asked.filter(([name]) => name!.toLowerCase() === 'xadd')).toHaveLength(ENTRIES / 2);
    const large = asked.filter((args) => {
      const name = args[0]!.toLowerCase();
      if (WALKS.has(name)) return true;
      const count = COUNT_AT[name];
      return count !== undefined && !(Number(count(args)) <= AT_ONCE_MAX);
    });
    expect(large.map((args) => args.join(' ').slice(0, 200))).toEqual([]);
    expect(asked.some(([name]) => name!.toLowerCase() === 'xpending')).toBe(true);
  });
});
