import { describe, expect, test } from 'vitest';
import { parseEntryId } from '../../src/ledger/encoding/entry-id.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, startSidecar } from '../support/sidecar.ts';

describe.each(kvKinds)("recovery's connection to %s", (kind) => {
  test('is one, though many ask for it at the moment in which it is made anew', async () => {
    const kv = await startKv(kind);
    const { url: databaseUrl } = await startTestPostgres();
    const { recovery, ledger, client } = await startSidecar({ kvPort: kv.port, databaseUrl, lookIntervalMs: 600_000 });
    const id = (await client().xadd('s', '*', 'n', '1'))!;
    const stream = ledger.streams.find(0, Buffer.from('s'))!;
    const direct = clientOf(kv.port);
    const kept = async (): Promise<string[]> => {
      const list = (await direct.call('CLIENT', 'LIST')) as string;
      return [...list.matchAll(/^id=(\d+) .* name=holdfast:control /gm)].map(([, number]) => number!);
    };
    const before = await kept();
    expect(before).toHaveLength(1);

    const { era } = recovery;
    await direct.call('CLIENT', 'KILL', 'ID', before[0]!);
    // At the very moment in which that is noticed, a look begins by itself.
    while (recovery.era === era) await new Promise((resolve) => setImmediate(resolve));
    const args = ['XADD', 's', '*', 'n', '1'].map((word) => Buffer.from(word));
    const has = (): Promise<boolean> => recovery.hasEntry(stream, parseEntryId(Buffer.from(id))!, args, 3);
    const answers = await Promise.all([has(), recovery.look(), has(), has()]);
    expect(answers).toEqual([true, undefined, true, true]);
    expect(recovery.gate.state).toBe('open');
    expect(await kept()).toHaveLength(1);
  });
});
