import { setTimeout as sleep } from 'node:timers/promises';
import type pg from 'pg';
import pino from 'pino';
import { afterEach, describe, expect, test } from 'vitest';
import type { KvServerKind } from '../../src/embedded/kv-server.ts';
import { flightControlApp } from '../../src/flight-control/app.ts';
import { addEvents } from '../../src/flight-control/events/event.ts';
import { listEvents } from '../../src/flight-control/events/list-events.ts';
import { applyManifest } from '../../src/flight-control/resources/apply-manifest.ts';
import { openStore } from '../../src/flight-control/resources/store.ts';
import { TASKS } from '../../src/flight-control/routing/route-event.ts';
import { repositoryUpdate } from '../../src/flight-control/tasks/repository-update.ts';
import type { Task, TaskContext } from '../../src/flight-control/tasks/task.ts';
import { permanentFailure } from '../../src/worker/app.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { startSidecar } from '../support/sidecar.ts';
import { runWorker, until } from '../worker/worker-harness.ts';

const ORG = '00000000-0000-0000-0000-000000000000';
const log = pino({ level: 'silent' });
const pools: pg.Pool[] = [];

afterEach(async () => {
  await Promise.all(pools.splice(0).map((pool) => pool.end()));
});

async function setUp(kind: KvServerKind) {
  const kv = await startKv(kind);
  const { url } = await startTestPostgres();
  const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: url, lookIntervalMs: 100 });
  const pool = await openStore(url, 8);
  pools.push(pool);
  const client = sidecar.client();
  const work = (tasks: readonly Task[]) =>
    runWorker(flightControlApp({ pool, log, tasks }), { kv: `redis://127.0.0.1:${sidecar.port}`, database: url });
  const apply = async (text: string) => {
    const options = {
      org: ORG,
      actor: 'user:test',
      dryRun: false,
      applied: () => undefined,
      remarked: () => undefined,
    };
    expect(await applyManifest(pool, 'test', text, options)).toEqual([]);
  };
  return { kv, url, sidecar, pool, client, work, apply };
}

/** All five tasks, each saying what it was called for. */
function tasksThat(run: (name: string, context: TaskContext) => Promise<void> | void, timeoutMs?: number): Task[] {
  return TASKS.map((name) => ({
    name,
    ...(timeoutMs === undefined ? {} : { timeoutMs }),
    run: async (context) => run(name, context),
  }));
}

const DEVICE = (name: string, more = ''): string =>
  `apiVersion: v1beta1\nkind: Device\nmetadata: {name: ${name}${more}}\n`;

describe.each(kvKinds)('Flight Control as an app, with %s:', (kind) => {
  test('runs the tasks of what was applied, those of one resource one after the other', async () => {
    const { work, apply } = await setUp(kind);
    const calls: string[] = [];
    const running = new Set<string>();
    let overlaps = 0;
    await work(
      tasksThat(async (name, { event }) => {
        const resource = event.involvedObject.name;
        if (running.has(resource)) overlaps += 1;
        running.add(resource);
        await sleep(2);
        running.delete(resource);
        calls.push(`${resource} ${name}`);
      }),
    );
    for (let n = 0; n < 5; n += 1) {
      await apply([1, 2, 3].map((d) => DEVICE(`d${d}`, `, labels: {n: "${n}"}`)).join('---\n'));
    }
    await until('all has run', () => calls.length === 3 * (3 + 4 * 2));
    expect(overlaps).toBe(0);
    expect(calls.filter((call) => call.startsWith('d2 '))).toEqual([
      ...['fleetRollout', 'fleetSelectorMatching', 'deviceRender'].map((name) => `d2 ${name}`),
      ...Array.from({ length: 4 }, () => ['d2 fleetRollout', 'd2 fleetSelectorMatching']).flat(),
    ]);
  });

  test('names each failed task once, and a permanent failure once', async () => {
    const { work, apply, pool } = await setUp(kind);
    const attempts = new Map<string, number>();
    await work(
      tasksThat((name, { event }) => {
        const key = `${event.involvedObject.name} ${name}`;
        const attempt = (attempts.get(key) ?? 0) + 1;
        attempts.set(key, attempt);
        if (key === 'often fleetRollout' && attempt < 3) throw new Error(`attempt ${attempt}`);
        if (key === 'never fleetRollout') throw permanentFailure(new Error('will not work'));
        if (key === 'never deviceRender') throw new Error('fails beside it');
      }),
    );
    await apply(`${DEVICE('often')}---\n${DEVICE('never')}`);
    await until('it succeeds in the end', () => attempts.get('often fleetRollout') === 3);
    const eventsOf = async (reason: string) =>
      (await listEvents(pool, { org: ORG, reason })).map(
        ({ body }) => body as { involvedObject: unknown; details?: { taskType: string; errorMessage: string } },
      );
    await until('the report is there', async () => (await eventsOf('InternalTaskPermanentlyFailed')).length === 1);
    const failed = await eventsOf('InternalTaskFailed');
    expect(
      failed.map(({ involvedObject, details }) => [involvedObject, details!.taskType, details!.errorMessage]),
    ).toEqual(
      expect.arrayContaining([
        [{ kind: 'Device', name: 'often' }, 'fleetRollout', 'Error: attempt 1'],
        [{ kind: 'Device', name: 'never' }, 'fleetRollout', expect.stringContaining('will not work')],
        [{ kind: 'Device', name: 'never' }, 'deviceRender', 'Error: fails beside it'],
      ]),
    );
    expect(failed.length).toBe(3);
    const [report] = await eventsOf('InternalTaskPermanentlyFailed');
    expect(report).toMatchObject({
      involvedObject: { kind: 'System', name: 'queue' },
      type: 'Warning',
      details: {
        retryCount: 1,
        errorMessage: expect.stringMatching(/fleetRollout: [\s\S]*deviceRender: /),
        originalEvent: { reason: 'ResourceCreated', involvedObject: { kind: 'Device', name: 'never' } },
      },
    });
    expect((await listEvents(pool, { org: ORG, object: { kind: 'System', name: 'queue' } })).length).toBe(1);
  });

  test('names a task that ran out of time', async () => {
    const { work, apply, pool } = await setUp(kind);
    await work(
      tasksThat((name, { signal }) => {
        if (name !== 'deviceRender') return;
        return new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
      }, 100),
    );
    await apply(DEVICE('slow'));
    await until(
      'it is told',
      async () => (await listEvents(pool, { org: ORG, reason: 'InternalTaskFailed' })).length === 1,
    );
    const [event] = await listEvents(pool, { org: ORG, reason: 'InternalTaskFailed' });
    expect(event!.body.details).toMatchObject({ taskType: 'deviceRender', errorMessage: 'timed out after 100 ms' });
  });

  test('is not stopped by what is no event', async () => {
    const { work, client, pool } = await setUp(kind);
    const handled: string[] = [];
    const tasks = tasksThat((name, { event }) => void handled.push(`${event.involvedObject.name} ${name}`));
    await work(tasks.filter(({ name }) => name !== 'repositoryUpdate'));
    const bad = ['null', '[]', '{"orgId": "abc"}', '{"orgId":', 'x\0y', '['.repeat(200_000)];
    for (const body of bad) await client.xadd('task-queue', '*', 'body', body);
    // Events as such, but Postgres cannot hold all of them, and no task is there for them.
    const odd = { reason: 'ResourceCreated', involvedObject: { kind: 'Repository', name: 'r' } };
    for (const more of ['"\\u0000"', '"\\ud800 \\\\u0000"', '['.repeat(50_000) + ']'.repeat(50_000)]) {
      const body = JSON.stringify({ orgId: ORG, event: odd }).replace('"reason"', `"more":${more},"reason"`);
      bad.push(body);
      await client.xadd('task-queue', '*', 'body', body);
    }
    await client.xadd('task-queue', '*', 'other', 'field');
    await client.xadd('task-queue', '*', 'body', Buffer.from([0xff, 0xfe]));
    const event = {
      reason: 'ResourceUpdated',
      involvedObject: { kind: 'Device', name: 'd' },
      details: { updatedFields: ['spec'] },
    };
    await client.xadd('task-queue', '*', 'body', JSON.stringify({ orgId: ORG, event }));
    await until('the good one is handled', () => handled.length === 1);
    const failures = () => listEvents(pool, { org: ORG, object: { kind: 'System', name: 'queue' } });
    await until('all bad ones are told of', async () => (await failures()).length === bad.length + 2);
    expect(handled).toEqual(['d deviceRender']);
    await until('all are reported', async () => (await client.xlen('task-queue:dead')) === bad.length + 2);
  });

  test('tells users of a repository, once, however often the event comes', async () => {
    const { work, apply, pool, client } = await setUp(kind);
    const ref = (key: string) =>
      `config: [{name: c, ${key}: {repository: cfg, targetRevision: main, path: /p, filePath: /f}}]`;
    await apply(
      [
        `apiVersion: v1beta1\nkind: Repository\nmetadata: {name: cfg}\nspec: {type: git, url: x}\n`,
        `apiVersion: v1beta1\nkind: Fleet\nmetadata: {name: uses}\nspec: {template: {spec: {${ref('gitRef')}}}}\n`,
        `apiVersion: v1beta1\nkind: Fleet\nmetadata: {name: other}\nspec: {template: {spec: {}}}\n`,
        `${DEVICE('alone')}spec: {${ref('httpRef')}}\n`,
        `${DEVICE('owned')}spec: {${ref('gitRef')}}\n`,
        DEVICE('other'),
      ].join('---\n'),
    );
    await pool.query(`UPDATE flight_control.resource SET owner = 'Fleet/uses' WHERE name = 'owned'`);
    const quiet = tasksThat(() => undefined).filter(({ name }) => name !== 'repositoryUpdate');
    await work([...quiet, repositoryUpdate]);
    const told = async () =>
      (await listEvents(pool, { org: ORG, reason: 'ReferencedRepositoryUpdated' })).map(
        ({ body }) => body.involvedObject,
      );
    await until('both are told', async () => (await told()).length === 2);
    // The same event again, as after a restore.
    const [created] = await listEvents(pool, { org: ORG, object: { kind: 'Repository', name: 'cfg' } });
    const again = JSON.stringify({ orgId: ORG, event: created!.body });
    for (let n = 0; n < 3; n += 1) await client.xadd('task-queue', '*', 'body', again);
    const marker = { kind: 'Repository', name: 'cfg', reason: 'ResourceUpdated', message: 'm', actor: 'a' };
    await addEvents(pool, ORG, [{ ...marker, details: { updatedFields: ['spec'] } }]);
    await until('a change of its own tells anew', async () => (await told()).length === 4);
    expect(await told()).toEqual([
      { kind: 'Fleet', name: 'uses' },
      { kind: 'Device', name: 'alone' },
      { kind: 'Fleet', name: 'uses' },
      { kind: 'Device', name: 'alone' },
    ]);
  });
});
