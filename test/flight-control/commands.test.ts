import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { apply } from '../../src/flight-control/commands/apply-command.ts';
import { remove } from '../../src/flight-control/commands/delete-command.ts';
import { describe as describeCommand } from '../../src/flight-control/commands/describe-command.ts';
import { events } from '../../src/flight-control/commands/events-command.ts';
import { get } from '../../src/flight-control/commands/get-command.ts';
import { report } from '../../src/flight-control/commands/report-command.ts';
import { readManifest } from '../../src/flight-control/manifest/read-manifest.ts';
import { pageStatement } from '../../src/flight-control/resources/query-resources.ts';
import type { Subcommand } from '../../src/subcommand.ts';
import { startTestPostgres } from '../support/servers.ts';

let url: string;
let directory: string;
let sql: pg.Client;

beforeAll(async () => {
  ({ url } = await startTestPostgres());
  directory = await mkdtemp(join(tmpdir(), 'holdfast-apply-'));
  sql = new pg.Client(url);
  await sql.connect();
  await run(get, ['devices']);
});
afterAll(async () => {
  await sql.end();
  await rm(directory, { recursive: true, force: true });
});
beforeEach(async () => {
  await sql.query(`TRUNCATE flight_control.resource, flight_control.event, flight_control.template_version,
    holdfast.outbox, holdfast.outbox_transaction`);
});

async function run(command: Subcommand, args: readonly string[]): Promise<{ code: number; output: string }> {
  let output = '';
  const code = await command.run({
    args: [...args, '--database', url],
    env: {},
    workingDirectory: directory,
    terminal: false,
    write: (text) => (output += text),
    stopRequested: new Promise(() => undefined),
  });
  return { code, output };
}

async function applyText(text: string, ...args: string[]): Promise<{ code: number; output: string }> {
  await writeFile(join(directory, 'm.yaml'), text);
  return run(apply, ['-f', 'm.yaml', ...args]);
}

function device(name: string, more = ''): string {
  return `apiVersion: flightctl.io/v1beta1\nkind: Device\nmetadata:\n  name: ${name}\n${more}`;
}

const REPOSITORY = `apiVersion: flightctl.io/v1beta1
kind: Repository
metadata: {name: cfg}
spec:
  type: git
  url: https://git.example/cfg.git
  httpConfig: {username: anna, password: hunter2-secret}
`;

async function queued(): Promise<{ reason: string; name: string; details: unknown }[]> {
  const { rows } = await sql.query<{ fields: string[] }>('SELECT fields FROM holdfast.outbox ORDER BY entry_number');
  return rows.map(({ fields }) => {
    const { event } = JSON.parse(fields[1]!) as { event: Record<string, unknown> };
    const { name } = event.involvedObject as { name: string };
    return { reason: String(event.reason), name, details: event.details };
  });
}

describe('apply', () => {
  test('creates, changes, and leaves alone what stays the same', async () => {
    expect(await applyText(device('d1', '  labels: {site: a}\nspec: {os: {image: q/a:1}}\n'))).toEqual({
      code: 0,
      output: 'Device/d1 created\n',
    });
    // Another order of keys, and labels left out: the same.
    expect(
      (await applyText('kind: Device\napiVersion: v1beta1\nmetadata: {name: d1}\nspec: {os: {image: q/a:1}}')).output,
    ).toBe('Device/d1 unchanged\n');
    expect((await applyText(device('d1', '  labels: {site: b}\n'))).output).toBe('Device/d1 configured\n');
    expect((await applyText(device('d1', 'spec: {os: {image: q/a:2}}\n'))).output).toBe('Device/d1 configured\n');
    const { rows } = await sql.query('SELECT labels, spec, generation, resource_version FROM flight_control.resource');
    expect(rows).toEqual([
      { labels: { site: 'b' }, spec: { os: { image: 'q/a:2' } }, generation: '2', resource_version: '3' },
    ]);
    expect(await queued()).toEqual([
      { reason: 'ResourceCreated', name: 'd1', details: undefined },
      { reason: 'ResourceUpdated', name: 'd1', details: { detailType: 'ResourceUpdated', updatedFields: ['labels'] } },
      { reason: 'ResourceUpdated', name: 'd1', details: { detailType: 'ResourceUpdated', updatedFields: ['spec'] } },
    ]);
  });

  test('lists all that is wrong with a file and applies nothing of it', async () => {
    const { code, output } = await applyText(
      `${device('good')}---\n${device('A', '  labels: {x: yes}\n')}---\na: [\n---\n${device('d', 'spec: {os: {image: "a b"}}\n')}`,
    );
    expect(code).toBe(1);
    const lines = output.trimEnd().split('\n');
    expect(lines).toEqual([
      expect.stringMatching(/^m\.yaml:2: metadata\.name: .* \("A"\)$/),
      'm.yaml:2: metadata.labels.x: must be text (quote it in YAML) (true)',
      expect.stringMatching(/^m\.yaml:3: document: /),
      expect.stringMatching(/^m\.yaml:4: spec\.os\.image: .* \("a b"\)$/),
      'm.yaml: nothing of it was applied',
    ]);
    expect((await sql.query('SELECT FROM flight_control.resource')).rows.length).toBe(0);
  });

  test('applies nothing where one document meets a conflict, nor in a dry run', async () => {
    await applyText(device('d1', 'spec: {os: {image: q/a:1}}\n'));
    await sql.query(`UPDATE flight_control.resource SET owner = 'Fleet/f'; TRUNCATE holdfast.outbox`);
    const { code, output } = await applyText(`${device('new')}---\n${device('d1', 'spec: {os: {image: q/a:2}}\n')}`);
    expect(code).toBe(1);
    expect(output).toContain('m.yaml:2: spec: belongs to Fleet/f');
    expect((await applyText(device('d1', '  labels: {a: b}\n'), '--dry-run')).output).toBe(
      'Device/d1 configured (dry run)\n',
    );
    expect(await queued()).toEqual([]);
    expect((await sql.query('SELECT FROM flight_control.resource')).rows.length).toBe(1);
    expect((await applyText(device('d1', '  labels: {a: b}\nspec: {os: {image: q/a:1}}\n'))).code).toBe(0);
  });

  test('needs the resource version that is stored, where one is given', async () => {
    await applyText(device('d1', '  labels: {a: "1"}\n'));
    await applyText(device('d1', '  labels: {a: "2"}\n'));
    expect((await applyText(device('d1', '  resourceVersion: "1"\n  labels: {a: "3"}\n'))).output).toMatch(
      /^m\.yaml:1: metadata\.resourceVersion: it is 2 by now.* \("1"\)$/m,
    );
    expect((await applyText(device('d1', '  resourceVersion: "2"\n  labels: {a: "3"}\n'))).code).toBe(0);
    expect((await applyText(device('d2', '  resourceVersion: "1"\n'))).output).toContain('there is no such resource');
  });

  test('names kinds that are not stored, and stores those that are', async () => {
    const one = (kind: string) =>
      `apiVersion: flightctl.io/v1beta1\nkind: ${kind}\nmetadata: {name: x}\nspec: {a: 1}\n---\n`;
    const { code, output } = await applyText(
      ['ImageBuild', 'TemplateVersion', 'ResourceSync', 'Catalog'].map(one).join(''),
    );
    expect(code).toBe(0);
    expect(output.match(/is not stored/g)?.length).toBe(2);
    expect(output).toContain('ResourceSync/x created\nCatalog/x created\n');
  });

  test('takes whole directories', async () => {
    const path = join(directory, 'sub');
    const { mkdir } = await import('node:fs/promises');
    await mkdir(join(path, 'deeper'), { recursive: true });
    await writeFile(join(path, 'b.yaml'), device('b'));
    await writeFile(
      join(path, 'a.json'),
      JSON.stringify({ apiVersion: 'v1beta1', kind: 'Device', metadata: { name: 'a' } }),
    );
    await writeFile(join(path, 'ignored.txt'), 'x: [');
    await writeFile(join(path, 'deeper', 'c.yml'), `\ufeff${device('c').replaceAll('\n', '\r\n')}`);
    expect((await run(apply, ['-f', 'sub'])).output).toBe('Device/a created\nDevice/b created\n');
    expect((await run(apply, ['-f', 'sub', '-R'])).output).toContain('Device/c created\n');
    await writeFile(join(path, 'latin1.yaml'), Buffer.from([0x61, 0x3a, 0xe9]));
    expect(await run(apply, ['-f', join(path, 'latin1.yaml')])).toMatchObject({
      code: 1,
      output: expect.stringContaining('the file is not UTF-8'),
    });
  });

  test('lets two who apply the same wait for each other', async () => {
    const text = Array.from({ length: 60 }, (_, i) => device(`d${i}`, `  labels: {n: "${i}"}\n`)).join('---\n');
    await Promise.all([1, 2, 3].map((n) => writeFile(join(directory, `same${n}.yaml`), text)));
    const runs = await Promise.all([1, 2, 3].map((n) => run(apply, ['-f', `same${n}.yaml`])));
    expect(runs.map(({ code }) => code)).toEqual([0, 0, 0]);
    expect((await queued()).length).toBe(60);
  });
});

describe('get', () => {
  test('gives what applied again changes nothing, for every kind', async () => {
    const text = [
      REPOSITORY,
      device(
        'd1',
        '  labels: {a: "no", b: "0644", c: "1e3", "y": "08"}\nspec:\n  config:\n  - name: c\n    inline:\n    - {path: /a, content: "x\\n y: ~\\n", mode: 0644}\n    - {path: /b, content: "null"}\n    - {path: /c, content: "tab\\there ✓ \\e"}\n',
      ),
      'apiVersion: v1beta1\nkind: Fleet\nmetadata: {name: f}\nspec: {selector: {matchLabels: {a: b}}, template: {spec: {os: {image: "q/a:{{ .metadata.name }}"}}}}\n',
      ...['ResourceSync', 'EnrollmentRequest', 'CertificateSigningRequest', 'AuthProvider', 'CatalogItem'].map(
        (kind) =>
          `apiVersion: v1beta1\nkind: ${kind}\nmetadata: {name: x}\nspec: {a: [1, "2", .5, null], clientSecret: s3cret-x}\n`,
      ),
    ].join('---\n');
    expect((await applyText(text)).code).toBe(0);
    const before = (await sql.query('SELECT * FROM flight_control.resource ORDER BY kind')).rows;
    for (const { kind, name } of before) {
      const { output } = await run(get, [`${kind}/${name}`, '-o', 'yaml']);
      const applied = await applyText(output);
      expect(applied.output, output).toBe(`${kind}/${name} unchanged\n`);
      const json = await run(get, [kind, name, '-o', 'json']);
      expect((await applyText(json.output)).output).toBe(`${kind}/${name} unchanged\n`);
    }
    expect((await sql.query('SELECT * FROM flight_control.resource ORDER BY kind')).rows).toEqual(before);
  });

  test('shows no secret, and keeps it where its mask is applied', async () => {
    await applyText(REPOSITORY);
    const shown = [
      await run(get, ['repositories', '-o', 'yaml']),
      await run(get, ['repository/cfg', '-o', 'json']),
      await run(get, ['repo']),
      await run(describeCommand, ['repository', 'cfg']),
      await run(events, ['-o', 'json']),
      await applyText(REPOSITORY.replace('password', 'passwort')),
    ].map(({ output }) => output);
    expect(shown.join('\n')).not.toContain('hunter2');
    expect(shown[0]).toContain('*****');
    await applyText(REPOSITORY.replace('hunter2-secret', '"*****"').replace('cfg.git', 'other.git'));
    const { rows } = await sql.query(
      `SELECT spec #>> '{httpConfig,password}' AS password, spec ->> 'url' AS url FROM flight_control.resource`,
    );
    expect(rows).toEqual([{ password: 'hunter2-secret', url: 'https://git.example/other.git' }]);
    expect((await applyText(REPOSITORY.replace('cfg}', 'new}').replace('hunter2-secret', '"*****"'))).output).toContain(
      'm.yaml:1: spec.httpConfig.password: no secret is stored',
    );
    expect(JSON.stringify((await sql.query('SELECT body FROM flight_control.event')).rows)).not.toContain('hunter2');
    expect(JSON.stringify(await queued())).not.toContain('hunter2');
  });

  test('shows no password of a URL, and keeps it where its mask is applied', async () => {
    const repository = (url: string, name = 'r') =>
      `apiVersion: v1beta1\nkind: Repository\nmetadata: {name: ${name}}\nspec: {type: git, url: "${url}"}\n`;
    await applyText(repository('https://anna:hunter2@git.example/a.git'));
    const yaml = (await run(get, ['repo/r', '-o', 'yaml'])).output;
    const shown = [yaml, (await run(get, ['repo'])).output, (await run(describeCommand, ['repo', 'r'])).output];
    expect(shown.join('\n')).not.toContain('hunter2');
    expect(yaml).toContain('https://anna:*****@git.example/a.git');
    expect((await applyText(yaml)).output).toBe('Repository/r unchanged\n');
    await applyText(repository('https://anna:*****@git.example/b.git'));
    const { rows } = await sql.query(`SELECT spec ->> 'url' AS url FROM flight_control.resource`);
    expect(rows).toEqual([{ url: 'https://anna:hunter2@git.example/b.git' }]);
    // Towards its own server and no other.
    expect((await applyText(repository('https://anna:*****@evil.example/b.git'))).output).toContain(
      'for another server',
    );
    expect((await applyText(repository('https://anna:*****@git.example/b.git', 'new'))).output).toContain(
      'm.yaml:1: spec.url: no secret is stored',
    );
  });

  test('selects by labels, in pages', async () => {
    const text = Array.from({ length: 1203 }, (_, i) =>
      device(`d${String(i).padStart(4, '0')}`, `  labels: {site: s${i % 3}${i % 2 === 0 ? ', even: "yes"' : ''}}\n`),
    ).join('---\n');
    await applyText(text);
    const names = async (...args: string[]) =>
      (await run(get, ['devices', '-o', 'name', ...args])).output.split('\n').filter((line) => line !== '');
    expect((await names()).length).toBe(1203);
    expect((await names('--limit', '7')).at(-1)).toBe('device/d0006');
    expect((await names('-l', 'site=s1')).length).toBe(401);
    expect((await names('-l', 'site!=s1')).length).toBe(802);
    expect((await names('-l', 'site in (s0, s1),even')).length).toBe(401);
    expect((await names('-l', 'site notin (s0,s1),!even')).length).toBe(200);
    await expect(run(get, ['devices', '-l', 'a b'])).rejects.toThrow(/-l/);
    const documents = [...readManifest((await run(get, ['devices', '-o', 'yaml', '--limit', '600'])).output)];
    expect(documents.length).toBe(600);
    // A page of a label is answered without a look at every device.
    const query = { org: '00000000-0000-0000-0000-000000000000', kind: 'Device', limit: undefined };
    const { text: statement, values } = pageStatement(
      { ...query, labels: [{ key: 'site', operator: 'In', values: ['s9'] }] },
      '',
      100,
    );
    await sql.query('ANALYZE flight_control.resource');
    const { rows } = await sql.query<{ 'QUERY PLAN': string }>(`EXPLAIN ${statement}`, values);
    expect(rows.map((row) => row['QUERY PLAN']).join('\n')).toMatch(/resource_labels|resource_pkey/);
  });
});

test('delete tells of it, and events are found by object, reason and age', async () => {
  await applyText(`${device('d1')}---\n${device('d2')}`);
  expect(await run(remove, ['device/d1'])).toEqual({ code: 0, output: 'Device/d1 deleted\n' });
  expect((await run(remove, ['device', 'd1'])).code).toBe(1);
  expect((await queued()).map(({ reason, name }) => `${reason} ${name}`)).toEqual([
    'ResourceCreated d1',
    'ResourceCreated d2',
    'ResourceDeleted d1',
  ]);
  const lines = async (...args: string[]) => (await run(events, args)).output.trimEnd().split('\n').length;
  expect(await lines()).toBe(3);
  expect(await lines('--for', 'device/d1')).toBe(2);
  expect(await lines('--for', 'device/d1', '--reason', 'ResourceDeleted')).toBe(1);
  expect(await lines('--since', '1h', '--limit', '2')).toBe(2);
  expect((await run(describeCommand, ['device', 'd2'])).output).toMatch(
    /Device\/d2\n[\s\S]*last events\n {2}.*ResourceCreated/,
  );
});

test('report says for a device what its agent would', async () => {
  await applyText(device('d1'));
  expect((await run(report, ['device', 'd1', '--rendered-version', '3'])).code).toBe(0);
  expect(
    (await run(report, ['device/d1', '--rendered-version', '4', '--state', 'Error', '--message', 'no space'])).code,
  ).toBe(0);
  expect((await run(report, ['device', 'none', '--rendered-version', '3'])).code).toBe(1);
  const { rows } = await sql.query<{ status: Record<string, unknown> }>('SELECT status FROM flight_control.resource');
  expect(rows[0]!.status).toMatchObject({
    config: { renderedVersion: '4' },
    summary: { status: 'Online' },
    conditions: [{ type: 'Updating', status: 'False', reason: 'Error', message: 'no space' }],
  });
});
