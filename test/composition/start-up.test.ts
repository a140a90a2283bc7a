/** What a start finds out, says and leaves alone, by the real program against real servers. */
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, describe, expect, it } from 'vitest';
import { createAuthority } from '../support/certificates.ts';
import { hasPgBouncer, startPgBouncer } from '../support/pgbouncer.ts';
import { launch, serve } from '../support/program.ts';
import { connectRaw } from '../support/raw-client.ts';
import { kvKinds, startKv, startRedis, startTestPostgres, temporaryDirectory } from '../support/servers.ts';
import { clientOf, eventually, startSidecar } from '../support/sidecar.ts';

const clients: pg.Client[] = [];
afterAll(async () => {
  for (const client of clients) await client.end().catch(() => undefined);
});

async function connectTo(url: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: url });
  clients.push(client);
  await client.connect();
  return client;
}

/** The one line of a start that is refused. */
async function refusal(args: readonly string[], env: Record<string, string> = {}): Promise<string> {
  const { output, exited } = launch(['serve', '--listen', '127.0.0.1:0', '--http', 'off', ...args], env);
  expect(await exited, output.stdout).toBe(2);
  expect(output.stderr.split('\n')).toHaveLength(2);
  return output.stderr;
}

async function leaderEpoch(client: pg.Client): Promise<number> {
  const { rows } = await client.query<{ epoch: string }>('SELECT epoch FROM holdfast.kv_store');
  return Number(rows[0]!.epoch);
}

describe('each mistake about the KV store has a line of its own', () => {
  it('wrong password, no password, wrong port, host, socket, TLS where there is none', async () => {
    const { url: databaseUrl } = await startTestPostgres();
    const redis = await startRedis({ extraArgs: ['--requirepass', 'right'] });
    const { port } = redis;
    const told = async (kv: string) => refusal(['--kv', kv, '--database', databaseUrl]);
    expect(await told(`redis://:wrong@127.0.0.1:${port}`)).toMatch(/kv\.url: .*refused the password of user default/);
    expect(await told(`redis://eve:wrong@127.0.0.1:${port}`)).toMatch(/kv\.url: .*refused the password of user eve/);
    expect(await told(`redis://127.0.0.1:${port}`)).toMatch(/kv\.url: .*wants a login/);
    expect(await told('redis://127.0.0.1:1')).toMatch(/kv\.url: nothing listens at 127\.0\.0\.1:1 /);
    expect(await told('redis://no-such-host.invalid')).toMatch(/kv\.url: the name no-such-host\.invalid/);
    expect(await told('unix:/tmp/holdfast-no-such.sock')).toMatch(/kv\.url: there is no socket \/tmp\/holdfast/);
    expect(await told(`rediss://:right@127.0.0.1:${port}`)).toMatch(/kv\.url: .*may not speak TLS/);
  });

  it('a peer that is no Redis, a certificate of an unknown authority, a TLS port without TLS', async () => {
    const { url: databaseUrl } = await startTestPostgres();
    const web = createServer((socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n')).listen(0, '127.0.0.1');
    await once(web, 'listening');
    const webPort = (web.address() as { port: number }).port;
    const directory = await temporaryDirectory();
    const authority = createAuthority(directory);
    const { certFile, keyFile } = authority.issue('kv');
    const tlsPort = webPort + 1;
    await startRedis({
      extraArgs: [
        ...['--tls-port', String(tlsPort), '--tls-cert-file', certFile, '--tls-key-file', keyFile],
        ...['--tls-ca-cert-file', authority.caFile, '--tls-auth-clients', 'no'],
      ],
    });
    const told = async (kv: string, ...args: string[]) => refusal(['--kv', kv, '--database', databaseUrl, ...args]);
    expect(await told(`redis://127.0.0.1:${webPort}`)).toMatch(/kv\.url: .*(does not speak RESP|not be a Redis)/);
    expect(await told(`rediss://127.0.0.1:${tlsPort}`)).toMatch(
      /kv\.url: the certificate .*cannot be verified.*kv\.tls\.ca/,
    );
    expect(await told(`redis://127.0.0.1:${tlsPort}`)).toMatch(/kv\.url: .*may want TLS/);
    web.close();
  });
});

describe('each mistake about the database has a line of its own', () => {
  it('a data directory that cannot be one', async () => {
    const file = join(await temporaryDirectory(), 'file');
    await writeFile(file, '');
    const told = await refusal(['--data-dir', join(file, 'below')]);
    expect(told).toMatch(/^holdfast: dataDir: .*\/file\/below.*ENOTDIR/);
  });

  it('rights that are missing, and those that are not needed', async () => {
    const redis = await startRedis();
    const { url } = await startTestPostgres();
    const admin = await connectTo(url);
    const role = `limited_${process.pid}_${Date.now()}`;
    await admin.query(`CREATE ROLE ${role} LOGIN PASSWORD 'x'`);
    const limited = new URL(url);
    limited.username = role;
    limited.password = 'x';
    const args = ['--kv', redis.url, '--database', limited.href];
    expect(await refusal(args)).toMatch(/ledger\.database: .*permission denied.*GRANT CREATE ON DATABASE/);
    await admin.query(`CREATE SCHEMA holdfast AUTHORIZATION ${role}`);
    const program = await serve(args);
    program.child.kill('SIGTERM');
    expect(await program.exited).toBe(0);
    // The second start finds everything made, and needs no right to create.
    const again = await serve(args);
    again.child.kill('SIGTERM');
    expect(await again.exited).toBe(0);
    await admin.query(`DROP OWNED BY ${role} CASCADE`);
    await admin.query(`DROP ROLE ${role}`);
  });

  it('a table that is missing', async () => {
    const redis = await startRedis();
    const { url } = await startTestPostgres();
    const first = await serve(['--kv', redis.url, '--database', url]);
    first.child.kill('SIGTERM');
    await first.exited;
    await (await connectTo(url)).query('DROP TABLE holdfast.consumer_group CASCADE');
    expect(await refusal(['--kv', redis.url, '--database', url])).toMatch(
      /^holdfast: ledger\.database: the schema holdfast is not whole: .*consumer_group/,
    );
  });

  it('a Postgres that takes no writes', async () => {
    const redis = await startRedis();
    const { url } = await startTestPostgres();
    const client = await connectTo(url);
    await client.query(`ALTER DATABASE ${new URL(url).pathname.slice(1)} SET default_transaction_read_only = on`);
    expect(await refusal(['--kv', redis.url, '--database', url])).toMatch(/ledger\.database: .*does not take writes/);
  });

  it('a migration lock that another process holds is told of, and waited for', async () => {
    const redis = await startRedis();
    const { url } = await startTestPostgres();
    const holder = await connectTo(url);
    await holder.query('SELECT pg_advisory_lock($1)', [0x4846_0001]);
    const program = launch([
      ...['serve', '--listen', '127.0.0.1:0', '--http', 'off'],
      ...['--kv', redis.url, '--database', url],
    ]);
    await eventually('told', () => program.output.stdout.includes('another process migrates this ledger'));
    await holder.query('SELECT pg_advisory_unlock($1)', [0x4846_0001]);
    await eventually('ready', () => program.output.stdout.includes('"ready:'));
    program.child.kill('SIGTERM');
    expect(await program.exited).toBe(0);
  });
});

describe('a connection pooler in front of Postgres', () => {
  it.for(['transaction', 'statement'] as const)('in %s mode is refused, with the remedy', async (mode, { skip }) => {
    if (!hasPgBouncer) skip('pgbouncer is not on PATH');
    const redis = await startRedis();
    const { url } = await startTestPostgres();
    const told = await refusal(['--kv', redis.url, '--database', await startPgBouncer(url, mode)]);
    expect(told).toMatch(/ledger\.database: .*pooler in transaction or statement mode.*pool_mode = session/);
    const { rows } = await (await connectTo(url)).query(`SELECT to_regnamespace('holdfast') AS schema`);
    expect(rows).toEqual([{ schema: null }]);
  });

  it('in session mode is as good as none', async ({ skip }) => {
    if (!hasPgBouncer) skip('pgbouncer is not on PATH');
    const redis = await startRedis();
    const { url } = await startTestPostgres();
    const program = await serve(['--kv', redis.url, '--database', await startPgBouncer(url, 'session')]);
    const client = await connectRaw(program.port);
    expect((await client.send('XADD', 's', '*', 'f', 'v')).type).toBe('$');
    program.child.kill('SIGTERM');
    expect(await program.exited).toBe(0);
  });
});

describe.each(kvKinds)('with %s,', (kind) => {
  it('something of somebody else under the name of the witness is named as such', async () => {
    const { url } = await startTestPostgres();
    for (const command of [
      ['RPUSH', 'holdfast:epoch', 'x'],
      ['SET', 'holdfast:epoch', 'mine'],
    ]) {
      const kv = await startKv(kind);
      const direct = await connectRaw(kv.port);
      await direct.send(...command);
      expect(await refusal(['--kv', kv.url, '--database', url])).toMatch(/the key holdfast:epoch .*something else/);
      await direct.close();
      await kv.stop();
    }
  });

  it('a start that fails has not taken the lead', async () => {
    const kv = await startKv(kind);
    const { url } = await startTestPostgres();
    const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: url });
    const direct = clientOf(kv.port);
    const epoch = await leaderEpoch(await connectTo(url));
    const directory = await temporaryDirectory();
    const config = join(directory, 'holdfast.yaml');
    await writeFile(join(directory, 'bad.pem'), 'no certificate');
    const tls = `tls: { cert: ${directory}/bad.pem, key: ${directory}/bad.pem }`;
    await writeFile(config, `listen: [{ address: 127.0.0.1:0, ${tls} }]\n`);
    await sidecar.stop();
    const servers = ['--kv', kv.url, '--database', url, '--http', 'off'];
    for (const [args, line] of [
      [['--config', config], /listen: .*tls:/],
      [['--listen', `127.0.0.1:${kv.port}`], /listen: .*EADDRINUSE/],
    ] as const) {
      const { output, exited } = launch(['serve', ...servers, ...args]);
      expect(await exited).toBe(2);
      expect(output.stderr).toMatch(line);
    }
    expect(await leaderEpoch(await connectTo(url))).toBe(epoch);
    expect(await direct.get('holdfast:epoch')).toMatch(new RegExp(` ${epoch}$`));
  });

  it('a second KV store on one ledger is refused, and the first one’s streams stay where they are', async () => {
    const first = await startKv(kind);
    const second = await startKv(kind);
    const { url } = await startTestPostgres();
    const sidecar = await startSidecar({ kvPort: first.port, databaseUrl: url });
    const client = sidecar.client();
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    await client.xadd('s', '*', 'n', '1');
    await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>');
    const told = await refusal(['--kv', second.url, '--database', url]);
    expect(told).toMatch(new RegExp(`kv\\.url: 127\\.0\\.0\\.1:${second.port} is not the KV store of this ledger`));
    expect(told).toContain(`127.0.0.1:${first.port}`);
    expect(await clientOf(second.port).dbsize()).toBe(0);
    expect(sidecar.recovery.status()).toMatchObject({ state: 'open', lossesTotal: 0, restoresTotal: 0, leads: true });
    expect(await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>')).toBeNull();
    // One that names the same KV store otherwise is a second sidecar like any.
    const other = await serve(['--kv', `redis://localhost:${first.port}`, '--database', url]);
    other.child.kill('SIGTERM');
    expect(await other.exited).toBe(0);
    // And once the first is gone, the ledger may move.
    await sidecar.stop();
    const moved = await serve(['--kv', second.url, '--database', url]);
    await eventually('moved', async () => (await clientOf(second.port).xlen('s')) === 1);
    moved.child.kill('SIGTERM');
    expect(await moved.exited).toBe(0);
  });

  it('a KV store that is down at the start of a ledger that knows it is an outage', async () => {
    const kv = await startKv(kind);
    const { url } = await startTestPostgres();
    const before = await serve(['--kv', kv.url, '--database', url]);
    const first = await connectRaw(before.port);
    await first.send('XGROUP', 'CREATE', 's', 'g', '0', 'MKSTREAM');
    const ids = [(await first.send('XADD', 's', '*', 'n', '1')).bytes.toString()];
    const ledger = await connectTo(url);
    const admitted = 'SELECT admits_nobody FROM holdfast.kv_store';
    await eventually('noted', async () => (await ledger.query(admitted)).rows[0].admits_nobody === true);
    before.child.kill('SIGTERM');
    expect(await before.exited).toBe(0);
    await kv.kill9();
    const sidecar = await serve(['--kv', kv.url, '--database', url]);
    expect((await fetch(`${sidecar.http}/readyz`)).status).toBe(503);
    const client = await connectRaw(sidecar.port);
    const added = await client.send('XADD', 's', '*', 'n', '2');
    expect(added.type).toBe('$');
    ids.push(added.bytes.toString());
    await kv.restart();
    await expect.poll(async () => (await fetch(`${sidecar.http}/readyz`)).status, { timeout: 10_000 }).toBe(200);
    const read = await clientOf(sidecar.port).xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>');
    expect((read as [string, [string, string[]][]][])[0]![1].map(([id]) => id)).toEqual(ids);
    sidecar.child.kill('SIGTERM');
    expect(await sidecar.exited).toBe(0);
  });
});
