import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { inspect } from 'node:util';
import { beforeAll, describe, expect, it } from 'vitest';
import { formatAddress } from '../../src/config/address.ts';
import { type ConfigSource, loadConfig } from '../../src/config/load-config.ts';
import { HoldfastError } from '../../src/errors.ts';
import { temporaryDirectory } from '../support/servers.ts';

let directory: string;
beforeAll(async () => {
  directory = await temporaryDirectory();
});

function load(source: Partial<ConfigSource> = {}) {
  return loadConfig({ args: [], env: {}, workingDirectory: directory, ...source });
}

async function loadFile(yaml: string, source: Partial<ConfigSource> = {}) {
  await writeFile(join(directory, 'holdfast.yaml'), yaml);
  return load({ ...source, args: ['--config', 'holdfast.yaml', ...(source.args ?? [])] });
}

/** The lines of the mistakes that loading gives. */
async function mistakes(action: () => unknown): Promise<string[]> {
  try {
    await action();
  } catch (error) {
    expect(error).toBeInstanceOf(HoldfastError);
    expect((error as HoldfastError).code).toBe('CONFIG');
    return (error as HoldfastError).message.split('\n');
  }
  throw new Error('loaded without a mistake');
}

describe('defaults', () => {
  it('are those of the contract', () => {
    const { config } = load();
    expect(config.listen.map((entry) => formatAddress(entry.address))).toEqual(['127.0.0.1:6380']);
    expect(config.kv).toMatchObject({ remote: undefined, maxmemory: '1gb', maxmemoryPolicy: 'allkeys-lru' });
    expect(config.ledger).toMatchObject({
      databaseUrl: undefined,
      streams: ['*'],
      onFailure: 'refuse',
      retentionDays: 7,
    });
    expect(config.http).toEqual({ host: '127.0.0.1', port: 9380 });
    expect(config.dataDir).toBe(join(directory, '.holdfast'));
    expect(config.log.level).toBe('info');
    expect(config.checkpoint.intervalMs).toBe(1000);
    expect(config.pooling).toBe('transaction');
  });

  it('are what the reference file says', () => {
    const reference = new URL('../../conf/holdfast.yaml', import.meta.url).pathname;
    expect(load({ args: ['--config', reference] }).config).toEqual(load().config);
  });

  it('are all named in the reference file', async () => {
    const { readFile } = await import('node:fs/promises');
    const { parse } = await import('yaml');
    const { configSchema } = await import('../../src/config/config.ts');
    const written = parse(await readFile(new URL('../../conf/holdfast.yaml', import.meta.url), 'utf8'));
    const defaults = configSchema.parse({}) as Record<string, unknown>;
    const names = (value: unknown, prefix = ''): string[] =>
      typeof value === 'object' && value !== null && !Array.isArray(value)
        ? Object.entries(value).flatMap(([name, member]) => [`${prefix}${name}`, ...names(member, `${prefix}${name}.`)])
        : [];
    // Addresses are one word in the file and two in the schema's output.
    const expected = names(defaults).filter((name) => !/(^|\.)http\./.test(name));
    expect(names(written).sort()).toEqual(expected.sort());
  });

  it('cannot be changed by whoever gets them', () => {
    const { config } = load();
    expect(() => Object.assign(config.limits, { holdMs: 1 })).toThrow(TypeError);
    expect(() => Object.assign(config.listen[0]!, { scope: 'x' })).toThrow(TypeError);
  });
});

describe('precedence', () => {
  it('is defaults, file, environment, flags', async () => {
    const yaml = 'log: { level: warn }\nhttp: 127.0.0.1:1\ndataDir: from-file\n';
    const env = { HOLDFAST_HTTP: '127.0.0.1:2', HOLDFAST_DATA_DIR: 'from-environment' };
    const { config } = await loadFile(yaml, { env, args: ['--data-dir', 'from-flag'] });
    expect(config.pooling).toBe('transaction');
    expect(config.log.level).toBe('warn');
    expect(config.http).toEqual({ host: '127.0.0.1', port: 2 });
    expect(config.dataDir).toBe(join(directory, 'from-flag'));
  });

  it('takes the file from HOLDFAST_CONFIG, and --config before that', async () => {
    await writeFile(join(directory, 'a.yaml'), 'http: off');
    await writeFile(join(directory, 'b.yaml'), 'http: 127.0.0.1:7');
    const env = { HOLDFAST_CONFIG: 'a.yaml' };
    expect(load({ env }).config.http).toBe('off');
    expect(load({ env, args: ['--config', 'b.yaml'] }).config.http).toEqual({ host: '127.0.0.1', port: 7 });
  });

  it('reads the memory settings of the KV store from their own variables', () => {
    const env = { REDIS_MAXMEMORY: '2gb', REDIS_MAXMEMORY_POLICY: 'noeviction', REDIS_LOGLEVEL: 'notice' };
    expect(load({ env }).config.kv).toMatchObject({
      maxmemory: '2gb',
      maxmemoryPolicy: 'noeviction',
      loglevel: 'notice',
    });
  });

  it('reads lists from repeated flags and from commas', () => {
    const twice = load({ args: ['--listen', '127.0.0.1:1', '--listen', 'unix:/tmp/a.sock,[::1]:2'] });
    expect(twice.config.listen.map((entry) => formatAddress(entry.address))).toEqual([
      '127.0.0.1:1',
      'unix:/tmp/a.sock',
      '[::1]:2',
    ]);
    const { config } = load({ env: { HOLDFAST_LISTEN: '127.0.0.1:3, 4', HOLDFAST_STREAMS: '*,!log:*' } });
    expect(config.listen.map((entry) => formatAddress(entry.address))).toEqual(['127.0.0.1:3', '127.0.0.1:4']);
    expect(config.ledger.streams).toEqual(['*', '!log:*']);
  });

  it('treats an empty variable as none', () => {
    expect(load({ env: { HOLDFAST_HTTP: '', HOLDFAST_KV_URL: '' } }).config).toEqual(load().config);
  });
});

describe('the whole shape of the file', () => {
  it('is understood', async () => {
    await writeFile(join(directory, 'tenant-b.secret'), 'hunter2\n');
    for (const name of ['server.crt', 'server.key', 'ca.crt']) await writeFile(join(directory, name), 'pem');
    const { config } = await loadFile(`
listen:
  - 127.0.0.1:6380
  - { address: "127.0.0.1:6391", scope: "tenant-a:" }
  - { address: 0.0.0.0:6392, tls: { cert: server.crt, key: server.key, ca: ca.crt, requireClientCert: true } }
kv: { url: "rediss://me:s%20p@redis.example.com", tls: { ca: ca.crt, serverName: other } }
pooling: session
ledger: { database: "postgresql://u@db/x", passwordFile: tenant-b.secret, streams: "*,!log:*", onFailure: degrade, retentionDays: 0.5, entryBytesMax: 1mb }
checkpoint: { intervalMs: 250 }
users:
  render-worker: { password: "sha256:${'aB'.repeat(32)}", scope: "v1/{orgId}/{fleet}/{templateVersion}/", may: [set-scope], shared: ["task-queue"] }
  tenant-b: { passwordFile: tenant-b.secret, scope: "tenant-b:" }
leases: [ { pattern: "v1/*/git-data/*", waitMs: 10000 } ]
http: "off"
`);
    expect(config.listen[1]).toMatchObject({ address: { host: '127.0.0.1', port: 6391 }, scope: 'tenant-a:' });
    expect(config.listen[2]?.tls).toMatchObject({ cert: join(directory, 'server.crt'), requireClientCert: true });
    expect(config.kv.remote).toMatchObject({
      address: { host: 'redis.example.com', port: 6379 },
      tls: true,
      user: 'me',
    });
    expect(config.kv.remote?.password?.reveal()).toBe('s p');
    expect(config.kv.tls).toEqual({ ca: join(directory, 'ca.crt'), serverName: 'other', verify: true });
    expect(config.ledger.databaseUrl?.reveal()).toBe('postgresql://u:hunter2@db/x');
    expect(config.ledger).toMatchObject({ streams: ['*', '!log:*'], retentionDays: 0.5, entryBytesMax: 1_048_576 });
    expect(config.users.get('render-worker')?.passwordHash.reveal()).toBe('ab'.repeat(32));
    expect(config.users.get('tenant-b')?.passwordHash.reveal()).toMatch(/^f52fbd32b2b3b86f/);
    expect(config.leases).toEqual([{ pattern: 'v1/*/git-data/*', waitMs: 10_000, leaseMs: 30_000 }]);
  });
});

describe('every mistake is one line that names the setting', () => {
  it.each([
    [['--listen', 'nowhere'], {}, '--listen: "nowhere" is no address: expected host:port, [ipv6]:port or unix:/path'],
    [['--http', '127.0.0.1:99999'], {}, '--http: port 99999 is above 65535'],
    [['--kv', 'http://x'], {}, '--kv: expected redis://host:port, rediss://host:port, unix:/path or embedded'],
    [['--kv', 'redis://x/3'], {}, '--kv: a database number has no place here: clients SELECT'],
    [['--database', 'mysql://x'], {}, '--database: expected postgres://user@host:port/database or embedded'],
    [['--pooling', 'none'], {}, '--pooling: expected one of "transaction"|"session"'],
    [['--lisen', 'x'], {}, '--lisen: there is no such flag'],
    [['word'], {}, 'unexpected argument word'],
    [['--config', 'missing.yaml'], {}, /^--config: cannot read missing.yaml: ENOENT/],
    [[], { HOLDFAST_LISTEN: '::' }, /^HOLDFAST_LISTEN: "::" is no address/],
    [[], { HOLDFAST_LISTN: 'x' }, 'HOLDFAST_LISTN: there is no such setting'],
    [[], { REDIS_MAXMEMORY: 'lots' }, 'REDIS_MAXMEMORY: expected a size as the KV store writes it, such as 1gb'],
    [[], { REDIS_LOGLEVEL: 'x' }, /^REDIS_LOGLEVEL: expected one of "debug"/],
  ])('%j %j', async (args, env, line) => {
    const lines = await mistakes(() => load({ args, env: env as Record<string, string> }));
    expect(lines).toHaveLength(1);
    if (typeof line === 'string') expect(lines[0]).toBe(line);
    else expect(lines[0]).toMatch(line);
  });

  it.each([
    ['a: [', /^holdfast.yaml:\d+: /],
    ['- x', 'holdfast.yaml:1: expected settings by name'],
    ['\nhtpp: 1', 'holdfast.yaml:2: htpp: there is no such setting'],
    ['kv:\n  url: embedded\n  ulr: x', 'holdfast.yaml:3: kv.ulr: there is no such setting'],
    [
      'listen:\n  - { address: 127.0.0.1:1, requireAuth: true }',
      /^holdfast.yaml:2: listen\[0\].requireAuth: there are no users: nobody could log in$/,
    ],
    [
      'listen:\n  - { address: 127.0.0.1:1, scope: "a:", requireAuth: true }',
      /^holdfast.yaml:2: listen\[0\]: requireAuth has no place beside a scope/,
    ],
    ['listen:\n  - 127.0.0.1:1\n  - { address: x }', /^holdfast.yaml:3: listen\[1\].address: "x" is no address/],
    ['listen: []', /^holdfast.yaml:1: listen: /],
    ['listen:\n  - { scope: a }', 'holdfast.yaml:2: listen[0].address: is missing'],
    ['listen: { address: "127.0.0.1:1" }', 'holdfast.yaml:1: listen: expected array, received object'],
    ['checkpoint: { intervalMs: soon }', 'holdfast.yaml:1: checkpoint.intervalMs: expected number, received string'],
    ['checkpoint:\n  intervalMs: 0', 'holdfast.yaml:2: checkpoint.intervalMs: expected number to be >=10'],
    ['kv: 3', 'holdfast.yaml:1: kv: expected object, received number'],
    ['limits: { outputBytesMax: much }', /^holdfast.yaml:1: limits.outputBytesMax: expected a number of bytes/],
    ['limits: { outputBytesMax: true }', /^holdfast.yaml:1: limits.outputBytesMax: expected a number of bytes/],
    ['users:\n  a: { scope: x }', 'holdfast.yaml:2: users.a: needs a password or a passwordFile, one of them'],
    ['users: { a: { password: plain } }', /^holdfast.yaml:1: users.a.password: expected sha256: and 64 hex digits/],
    ['users: { a: { passwordFile: none } }', 'holdfast.yaml:1: users.a.passwordFile: cannot read none: ENOENT'],
    ['kv: { passwordFile: none, url: "redis://x" }', 'holdfast.yaml:1: kv.passwordFile: cannot read none: ENOENT'],
    [
      'listen: [ { address: "127.0.0.1:1", tls: { cert: a, key: b, requireClientCert: true } } ]',
      'holdfast.yaml:1: listen[0].tls: requireClientCert needs a ca',
    ],
  ])('%j', async (yaml, line) => {
    const lines = await mistakes(() => loadFile(yaml));
    expect(lines).toHaveLength(1);
    if (typeof line === 'string') expect(lines[0]).toBe(line);
    else expect(lines[0]).toMatch(line);
  });

  it('and all of them are told at once', async () => {
    const lines = await mistakes(() => loadFile('a: 1\nhttp: x\n', { env: { HOLDFAST_X: '1' }, args: ['--kv', 'y'] }));
    expect(lines.map((line) => line.split(': ')[0])).toEqual([
      'HOLDFAST_X',
      '--kv',
      'holdfast.yaml:2',
      'holdfast.yaml:1',
    ]);
  });

  it('names the flag when the flag covers a good value of the file', async () => {
    const lines = await mistakes(() => loadFile('http: 127.0.0.1:1', { args: ['--http', 'x'] }));
    expect(lines[0]).toMatch(/^--http: /);
  });

  it("does not mind Kubernetes's service links", () => {
    const env = {
      HOLDFAST_SERVICE_HOST: '10.0.0.1',
      HOLDFAST_SERVICE_PORT: '6380',
      HOLDFAST_SERVICE_PORT_RESP: '6380',
      HOLDFAST_PORT: 'tcp://10.0.0.1:6380',
      HOLDFAST_PORT_6380_TCP_ADDR: '10.0.0.1',
      HOLDFAST_HTTP_SERVICE_HOST: '10.0.0.2',
    };
    expect(load({ env }).config).toEqual(load().config);
  });
});

describe('secrets', () => {
  it('are shown by nothing but reveal', async () => {
    const hash = 'c'.repeat(64);
    const { config } = await loadFile(`users: { a: { password: "sha256:${hash}" } }`, {
      args: ['--kv', 'redis://:opensesame@h:1', '--database', 'postgres://u:opensesame@h/d'],
    });
    const shown = [inspect(config, { depth: 10 }), JSON.stringify(config), `${config.kv.remote?.password}`].join();
    expect(shown).not.toContain('opensesame');
    expect(shown).not.toContain(hash);
    expect(config.ledger.databaseUrl?.reveal()).toContain('opensesame');
  });

  it('stay out of the lines about mistakes', async () => {
    const lines = await mistakes(() =>
      load({ args: ['--kv', 'redis://:opensesame@h:1/2', '--database', 'x:opensesame'] }),
    );
    expect(lines.join()).not.toContain('opensesame');
  });

  it('are refused when given twice', async () => {
    const env = { HOLDFAST_KV_PASSWORD: 'a' };
    const lines = await mistakes(() => load({ args: ['--kv', 'redis://:b@h:1'], env }));
    expect(lines).toEqual(['HOLDFAST_KV_PASSWORD: given more than once (url, password, passwordFile)']);
  });
});

describe("a subcommand's own flags and words", () => {
  it('come back beside the configuration', async () => {
    await mkdir(join(directory, 'x'), { recursive: true });
    const loaded = load({
      args: ['task-queue', '--json', '--data-dir', 'x'],
      flags: { json: { type: 'boolean' }, since: { type: 'string' } },
      wordsMax: 1,
    });
    expect(loaded.words).toEqual(['task-queue']);
    expect(loaded.flags).toEqual({ json: true, since: undefined });
    expect(loaded.config.dataDir).toBe(join(directory, 'x'));
  });
});
