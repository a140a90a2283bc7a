/** A sidecar is killed between the replies of XACK and XDEL and what it would have written down of them next. */
import { describe, expect, test } from 'vitest';
import { serve } from '../support/program.ts';
import { kvKinds, startKv, startTestPostgres, temporaryDirectory } from '../support/servers.ts';
import { clientOf, eventually, idsIn } from '../support/sidecar.ts';

describe.each(kvKinds)('a sidecar that is killed, with %s,', (kind) => {
  test('takes neither acknowledgements nor deletions with it', { timeout: 120_000 }, async () => {
    const kv = await startKv(kind);
    const { url } = await startTestPostgres();
    const start = async () =>
      serve(['--kv', `redis://127.0.0.1:${kv.port}`, '--database', url, '--data-dir', await temporaryDirectory()]);
    const [killed, other] = [await start(), await start()];
    const direct = clientOf(kv.port);
    let client = clientOf(killed.port);
    const read = async (): Promise<string[]> =>
      idsIn(await client.call('XREADGROUP', 'GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 's', '>'));
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const ids: string[] = [];
    for (let n = 0; n < 5; n += 1) ids.push((await client.xadd('s', '*', 'n', String(n)))!);
    expect(await read()).toEqual(ids);
    // The first stays pending, so that no checkpoint tells the rest.
    const done = client.pipeline().xack('s', 'g', ids[1]!, ids[2]!).xdel('s', ids[3]!).exec();
    expect(await done).toEqual([
      [null, 2],
      [null, 1],
    ]);
    killed.child.kill('SIGKILL');
    await eventually('the other one leads', async () => (await other.status()).ledger.leads, 20_000);
    // It looks twice: what is not pending any more has been acknowledged.
    await new Promise((resolve) => setTimeout(resolve, 5000));
    await direct.flushall();
    client = clientOf(other.port);
    expect(await read()).toEqual([ids[0], ids[4]]);
    expect((await direct.xrange('s', '-', '+')).map(([id]) => id)).toEqual([ids[0], ids[4]]);
  });
});
