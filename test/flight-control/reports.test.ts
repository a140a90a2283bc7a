import type pg from 'pg';
import pino from 'pino';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { report } from '../../src/flight-control/commands/report-command.ts';
import { serveReports } from '../../src/flight-control/resources/report-server.ts';
import { createPlayer } from '../../src/flight-control/resources/simulate-devices.ts';
import { openStore } from '../../src/flight-control/resources/store.ts';
import { startTestPostgres } from '../support/servers.ts';

const ORG = '00000000-0000-0000-0000-000000000000';
let pool: pg.Pool;
let url: string;

beforeAll(async () => {
  ({ url } = await startTestPostgres());
  pool = await openStore(url, 4);
  await pool.query(
    `INSERT INTO flight_control.resource (org, kind, name, api_version, owner, annotations)
     SELECT $1, 'Device', 'd' || i, 'v1beta1', 'Fleet/f',
            CASE WHEN i <= 2000 THEN '{"device-controller/renderedVersion": "1"}'::jsonb ELSE '{}' END
       FROM generate_series(1, 2005) AS i`,
    [ORG],
  );
});
afterAll(() => pool.end());

async function statusOf(name: string): Promise<Record<string, unknown>> {
  const { rows } = await pool.query<{ status: Record<string, unknown> }>(
    'SELECT status FROM flight_control.resource WHERE name = $1',
    [name],
  );
  return rows[0]!.status;
}

test('reports are taken over HTTP, in batches, from who has the token', async () => {
  const log = pino({ level: 'silent' });
  const server = await serveReports({ database: pool, org: ORG, host: '127.0.0.1', port: 0, token: 'tell', log });
  const send = async (body: string, headers: Record<string, string> = { authorization: 'Bearer tell' }) => {
    const response = await fetch(`http://127.0.0.1:${server.port}/reports`, { method: 'POST', body, headers });
    return { status: response.status, body: (await response.json()) as Record<string, unknown> };
  };
  const batch = Array.from({ length: 1000 }, (_, i) => ({ name: `d${i + 1}`, renderedVersion: '1' }));
  expect(await send(JSON.stringify(batch))).toEqual({ status: 200, body: { reported: 1000, unknown: [] } });
  expect(await statusOf('d1000')).toMatchObject({ config: { renderedVersion: '1' }, summary: { status: 'Online' } });
  // The last one about a device counts.
  const twice = [
    { name: 'd1', renderedVersion: 2, state: 'Updating' },
    { name: 'd1', renderedVersion: 3, state: 'Error', message: 'no space', summary: 'Unknown' },
    { name: 'nobody', renderedVersion: 1 },
  ];
  expect(await send(JSON.stringify(twice))).toEqual({ status: 200, body: { reported: 1, unknown: ['nobody'] } });
  expect(await statusOf('d1')).toMatchObject({
    config: { renderedVersion: '3' },
    summary: { status: 'Unknown' },
    conditions: [{ type: 'Updating', status: 'False', reason: 'Error', message: 'no space' }],
  });
  expect((await send('[]', {})).status).toBe(401);
  expect((await send('[]', { authorization: 'Bearer tall' })).status).toBe(401);
  expect((await send(JSON.stringify([...batch, { name: 'x', renderedVersion: 1 }]))).status).toBe(413);
  expect((await send(`["${'x'.repeat(5_000_000)}"]`)).status).toBe(413);
  for (const body of [
    '',
    '{}',
    '[1]',
    '[{"name":"d1"}]',
    '[{"name":"d1","renderedVersion":1,"state":"Odd"}]',
    '[{"name":"d1","renderedVersion":1,"message":"\\u0000"}]',
  ]) {
    expect(await send(body), body).toMatchObject({ status: 400, body: { error: expect.any(String) } });
  }
  expect(
    (await fetch(`http://127.0.0.1:${server.port}/reports`, { headers: { authorization: 'Bearer tell' } })).status,
  ).toBe(405);
  await server.stop();
});

test('nobody is let in from outside without a token', async () => {
  const invocation = {
    args: ['--serve', '0.0.0.0:0', '--database', url],
    env: {},
    workingDirectory: '/',
    terminal: false,
    write: () => undefined,
    stopRequested: Promise.resolve(),
  };
  await expect(report.run(invocation)).rejects.toThrow(/--token-file/);
});

test('a fleet is played: each device reports what was rendered, after a while, and some fail', async () => {
  await pool.query(`UPDATE flight_control.resource SET status = '{}'`);
  let draws = 0;
  const random = () => ((draws += 1) % 10 === 0 ? 0 : 0.9);
  const player = createPlayer(pool, { org: ORG, fleet: 'f', failing: 0.5, delayMs: 100, random });
  expect(await player.step(0)).toBe(0);
  expect(await player.step(99)).toBe(0);
  expect(await player.step(100)).toBe(2000);
  expect(await player.step(1000)).toBe(0);
  const { rows } = await pool.query<{ reason: string; count: string }>(
    `SELECT status #>> '{conditions,0,reason}' AS reason, count(*) FROM flight_control.resource
      WHERE status <> '{}' GROUP BY 1 ORDER BY 1`,
  );
  expect(rows).toEqual([
    { reason: 'Error', count: '200' },
    { reason: 'Updated', count: '1800' },
  ]);
  await pool.query(
    `UPDATE flight_control.resource SET annotations = '{"device-controller/renderedVersion": "2"}' WHERE name = 'd7'`,
  );
  expect(await player.step(2000)).toBe(0);
  expect(await player.step(2100)).toBe(1);
});
