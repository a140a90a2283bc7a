/** An error stops a restore; it is shown and tried again, never passed over. */
import { describe, expect, test } from 'vitest';
import { kvKinds, startKv } from '../support/servers.ts';
import { eventually, idsIn, restored, startAnew } from '../support/sidecar.ts';

describe.each(kvKinds)('a restore that %s refuses', (kind) => {
  test.each(['xadd', 'xgroup', 'rename'])(
    'at %s says so, keeps who reads waiting, and is done when it may',
    async (command) => {
      const kv = await startKv(kind);
      const { sidecar, client, direct } = await startAnew(kv.port, { lookIntervalMs: 50 });
      await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
      const ids: string[] = [];
      for (let n = 0; n < 3; n += 1) ids.push((await client.xadd('s', '*', 'n', String(n)))!);
      await direct.call('ACL', 'SETUSER', 'default', `-${command}`);
      await direct.del('s');
      const read = client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 30_000, 'STREAMS', 's', '>');
      let answered = false;
      void read.finally(() => {
        answered = true;
      });
      await eventually('it is shown', () => sidecar.recovery.status().lastError?.includes(command) === true);
      const { rows } = await sidecar.ledger.pool.query('SELECT completed_at FROM holdfast.recovery');
      expect(rows).toEqual([{ completed_at: null }]);
      expect(answered).toBe(false);
      expect(sidecar.recovery.status()).toMatchObject({ restoresTotal: 0, troubled: [{}] });
      await direct.call('ACL', 'SETUSER', 'default', `+${command}`);
      await restored(sidecar);
      expect(idsIn(await read)).toEqual(ids);
      expect((await direct.xrange('s', '-', '+')).map(([id]) => id)).toEqual(ids);
    },
  );
});
