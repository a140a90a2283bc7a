/** Entries may have 16 MB each: whatever recovery reads is bounded in bytes, so that a few large streams cannot take the whole down. */
import { describe, expect, test } from 'vitest';
import { agreed } from '../support/ledger-rows.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { eventually, looks, restored, startAnew } from '../support/sidecar.ts';

const STREAMS = 6;
const LARGE = Buffer.alloc(8 * 1024 * 1024, 'x');
const LOOKS = 6;

describe.each(kvKinds)('with %s', (kind) => {
  test(`${STREAMS} streams of 2 × 8 MB: a look asks for next to nothing of them, and all that is lost comes back`, async () => {
    const kv = await startKv(kind);
    const { sidecar, client, direct } = await startAnew(kv.port, { lookIntervalMs: 100 });
    const names = Array.from({ length: STREAMS }, (_, n) => `s${n}`);
    const ids: Record<string, string[]> = {};
    for (const name of names) {
      await client.xgroup('CREATE', name, 'g', '0', 'MKSTREAM');
      ids[name] = [(await client.xadd(name, '*', 'f', LARGE))!, (await client.xadd(name, '*', 'f', LARGE))!];
    }
    const sent = async () => Number(/total_net_output_bytes:(\d+)/.exec(await direct.info('stats'))![1]);
    const states = new Set<string>();
    const watching = setInterval(() => states.add(sidecar.recovery.gate.state), 5);
    await looks(sidecar, 2);
    const before = await sent();
    await looks(sidecar, LOOKS);
    expect((await sent()) - before).toBeLessThan(1024 * 1024);
    expect([...states]).toEqual(['open']);

    // One that is not read at each look is missed at the next one.
    await direct.del(names.at(-1)!);
    await restored(sidecar, 1);
    await direct.flushall();
    await restored(sidecar, 1 + STREAMS);
    for (const name of names) {
      const entries = await direct.xrangeBuffer(name, '-', '+');
      expect(entries.map(([id]) => id.toString())).toEqual(ids[name]);
      expect(entries.every(([, [, value]]) => value!.equals(LARGE))).toBe(true);
    }
    // Written by a client that goes past Holdfast.
    await direct.xadd(names[0]!, '*', 'f', LARGE);
    await eventually('taken in', () => sidecar.recovery.status().observedTotal === 1, 20_000);
    await agreed(sidecar, direct, names[0]!);
    clearInterval(watching);
    expect(states.has('down')).toBe(false);
  }, 120_000);
});
