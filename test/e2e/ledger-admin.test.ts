/** What an operator asks of the ledger: `holdfast verify` and `replay`, and HOLDFAST CHECKPOINT, REPLAY, LEDGER and STATUS. */
import { afterEach, describe, expect, test } from 'vitest';
import { verify } from '../../src/recovery/verify.ts';
import { launch, serve } from '../support/program.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, startSidecar } from '../support/sidecar.ts';

describe.each(kvKinds)('verify, with %s', (kind) => {
  /** A sidecar whose recovery looks at its start only: what is planted afterwards is found by `verify` alone. */
  async function blindStack() {
    const [kv, database] = await Promise.all([startKv(kind), startTestPostgres()]);
    const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs: 600_000 });
    const look = () => verify(sidecar.ledger, { host: '127.0.0.1', port: kv.port }, () => Promise.resolve());
    return { kv, sidecar, client: sidecar.client(), direct: clientOf(kv.port), look };
  }

  test('finds nothing where all is well, acknowledged and deleted entries included', async () => {
    const { client, look } = await blindStack();
    await client.xgroup('CREATE', 'task-queue', 'workers', '0', 'MKSTREAM');
    const ids: string[] = [];
    for (let n = 0; n < 30; n += 1) ids.push((await client.xadd('task-queue', '*', 'n', String(n)))!);
    await client.xreadgroup('GROUP', 'workers', 'w', 'COUNT', 10, 'STREAMS', 'task-queue', '>');
    await client.xack('task-queue', 'workers', ...ids.slice(0, 5));
    await client.xdel('task-queue', ids[20]!);
    expect(await look()).toMatchObject({ streams: 1, findings: [], findingsTotal: 0, unsettled: [] });
  });

  test('names an entry, fields and a group that the KV store has not', async () => {
    const { client, direct, look } = await blindStack();
    await client.xgroup('CREATE', 'task-queue', 'workers', '0', 'MKSTREAM');
    await client.xadd('task-queue', '1-1', 'n', 'first');
    await client.xadd('task-queue', '2-1', 'n', 'second');
    await direct.del('task-queue');
    await direct.xadd('task-queue', '2-1', 'n', 'another');
    const report = await look();
    expect(report.findings.map(({ kind: of, what, stream }) => [of, what, stream])).toEqual([
      ['group', 'workers', 'task-queue'],
      ['missing', '1-1', 'task-queue'],
      ['different', '2-1', 'task-queue'],
    ]);
  });
});

describe('an operator', () => {
  const children: { kill(signal: NodeJS.Signals): void }[] = [];
  afterEach(() => {
    for (const child of children.splice(0)) child.kill('SIGTERM');
  });

  async function stack() {
    const [kv, database] = await Promise.all([startKv('redis'), startTestPostgres()]);
    const program = await serve(['--kv', kv.url, '--database', database.url]);
    children.push(program.child);
    const connect = ['--connect', `redis://127.0.0.1:${program.port}`];
    async function run(...args: string[]) {
      const told = launch([...args, ...connect]);
      const code = await told.exited;
      return { code, ...told.output };
    }
    return { kv, program, client: clientOf(program.port), run };
  }

  test('sees checkpoints, replays history for all groups, and has it all verified', async () => {
    const { client, run } = await stack();
    await client.xgroup('CREATE', 'task-queue', 'workers', '0', 'MKSTREAM');
    const ids: string[] = [];
    for (let n = 0; n < 5; n += 1) ids.push((await client.xadd('task-queue', '*', 'n', String(n)))!);
    await client.xreadgroup('GROUP', 'workers', 'w', 'STREAMS', 'task-queue', '>');
    await client.xack('task-queue', 'workers', ids[0]!, ids[2]!);
    const checkpoint = async () => {
      const [flat] = (await client.call('HOLDFAST', 'CHECKPOINT', 'task-queue')) as [unknown[]];
      return Object.fromEntries(Array.from({ length: flat.length / 2 }, (_, at) => [flat[at * 2], flat[at * 2 + 1]]));
    };
    await eventually(
      'the second entry holds the checkpoint',
      async () => (await checkpoint())['last-delivered-id'] === ids[4],
    );
    await eventually('four are behind', async () => (await checkpoint()).behind === 4);
    expect(await checkpoint()).toMatchObject({ name: 'workers', 'held-by': `${ids[1]} w` });

    expect(await client.call('HOLDFAST', 'REPLAY', 'task-queue', 'FROM', ids[1]!, 'TO', ids[3]!, 'DRYRUN')).toEqual([
      'entries',
      3,
      'first',
      ids[1],
      'last',
      ids[3],
    ]);
    expect(await client.xlen('task-queue')).toBe(5);
    const replayed = await run('replay', 'task-queue', '--since', ids[3]!.split('-')[0]!);
    expect([replayed.code, replayed.stderr]).toEqual([0, '']);
    // Entries of one millisecond are all since then.
    const since = ids.filter((id) => id.split('-')[0]! >= ids[3]!.split('-')[0]!).length;
    expect(replayed.stdout).toMatch(new RegExp(`^${since} entries added again, \\d+-\\d+ to \\d+-\\d+\\n$`));
    const again = (await client.xreadgroup('GROUP', 'workers', 'w', 'BLOCK', 20_000, 'STREAMS', 'task-queue', '>')) as [
      string,
      [string, string[]][],
    ][];
    expect(again[0]![1].map(([, fields]) => fields)).toEqual(
      Array.from({ length: since }, (_, at) => ['n', String(5 - since + at)]),
    );

    const verified = await run('verify', '--json');
    expect([verified.code, verified.stderr]).toEqual([0, '']);
    expect(JSON.parse(verified.stdout)).toMatchObject({ streams: 1, findings: [] });
    expect(JSON.parse((await client.call('HOLDFAST', 'LEDGER', 'SIZE')) as string)).toMatchObject({
      partitions: [{ part: 0 }, { part: 1 }],
    });
    expect(JSON.parse((await client.call('HOLDFAST', 'STATUS', 'JSON')) as string)).toHaveProperty(
      'kv.reachable',
      true,
    );
    expect(await client.call('HOLDFAST', 'STATUS')).toContain('KV store');
  });

  test('hears what is wrong with a request, and exits with 2', async () => {
    const { client, run } = await stack();
    await client.xadd('task-queue', '*', 'a', 'b');
    const refusal = async (...args: string[]) =>
      client.call('HOLDFAST', ...args).then(
        () => 'none',
        (thrown: Error) => thrown.message,
      );
    expect(await refusal('CHECKPOINT')).toMatch(/^ERR syntax/);
    expect(await refusal('CHECKPOINT', 'nothing')).toBe('ERR the ledger has no such stream in this database');
    expect(await refusal('REPLAY', 'nothing', 'FROM', '0-1')).toBe(
      'ERR the ledger has no such stream in this database',
    );
    expect(await refusal('REPLAY', 'task-queue', 'SINCE', 'yesterday')).toMatch(/^ERR SINCE wants/);
    expect(await refusal('REPLAY', 'task-queue', 'FROM', '12')).toMatch(/^ERR FROM wants/);
    expect(await refusal('REPLAY', 'task-queue', 'FROM', '0-1', 'TO')).toMatch(/^ERR syntax/);
    expect(await refusal('REPLAY', 'task-queue', 'DRYRUN')).toMatch(/^ERR syntax/);
    expect(await refusal('LEDGER', 'EAT')).toMatch(/^ERR syntax/);
    const told = await run('replay', 'task-queue');
    expect(told.code).toBe(2);
    expect(told.stderr).toMatch(/one of --since and --from/);
    const away = launch(['verify', '--connect', 'redis://127.0.0.1:1']);
    expect(await away.exited).toBe(2);
    expect(away.output.stderr).toMatch(/^holdfast: redis:\/\/127\.0\.0\.1:1: /);
  });
});
