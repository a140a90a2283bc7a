/** HOLDFAST RELOAD and SIGHUP, as an operator uses them; and who may. */
import { createHash } from 'node:crypto';
import { copyFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import tls from 'node:tls';
import { expect, test } from 'vitest';
import { freePort } from '../src/embedded/free-port.ts';
import { asking } from './scope/scoped-proxy.ts';
import { createAuthority } from './support/certificates.ts';
import { launch, serve } from './support/program.ts';
import { connectRaw } from './support/raw-client.ts';
import { kvKinds, startKv, startTestPostgres, temporaryDirectory } from './support/servers.ts';

const hash = (password: string) => `sha256:${createHash('sha256').update(password).digest('hex')}`;

function subjectAt(port: number, ca: Buffer): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = tls.connect({ port, host: '127.0.0.1', ca }, () => {
      resolve(String(socket.getPeerCertificate().subject.CN));
      socket.destroy();
    });
    socket.on('error', reject);
  });
}

test('HOLDFAST RELOAD takes users, passwords and certificates, keeps clients, and names what needs a restart', async () => {
  const kv = await startKv(kvKinds[0]!);
  const { url } = await startTestPostgres();
  const directory = await temporaryDirectory();
  const authority = createAuthority(directory);
  const path = (name: string) => join(directory, name);
  const install = (name: string): void => {
    const { certFile, keyFile } = authority.issue(name);
    copyFileSync(certFile, path('cert.pem'));
    copyFileSync(keyFile, path('key.pem'));
  };
  const tlsPort = await freePort();
  const configure = (users: string, holdMs: number): void =>
    writeFileSync(
      path('holdfast.yaml'),
      `users:\n${users}\nlimits: { holdMs: ${holdMs} }\nlisten:\n  - 127.0.0.1:0\n` +
        `  - { address: "127.0.0.1:${tlsPort}", tls: { cert: cert.pem, key: key.pem } }\n`,
    );
  const admin = `  root: { password: "${hash('r')}", may: [admin] }`;
  install('first');
  writeFileSync(path('b.secret'), 'old\n');
  configure(`${admin}\n  b: { passwordFile: b.secret, scope: "b:" }`, 5000);
  const program = launch([
    'serve',
    '--http',
    'off',
    '--config',
    path('holdfast.yaml'),
    '--kv',
    kv.url,
    '--database',
    url,
  ]);
  await expect.poll(() => program.output.stdout.includes('"ready:'), { timeout: 40_000 }).toBe(true);
  const line = program.output.stdout.split('\n').find((text) => text.includes('"ready:'))!;
  const port = Number((JSON.parse(line) as { listen: string[] }).listen[0]!.split(':').at(-1));
  const login = async (user: string, password: string) => {
    const ask = asking(await connectRaw(port));
    return { ask, answer: await ask('AUTH', user, password) };
  };

  const root = await login('root', 'r');
  const old = await login('b', 'old');
  expect([root.answer, old.answer]).toEqual(['OK', 'OK']);
  expect(await old.ask('SET', 'k', 'v')).toBe('OK');
  expect(await subjectAt(tlsPort, authority.ca)).toBe('first');

  install('second');
  writeFileSync(path('b.secret'), 'new\n');
  configure(
    `${admin}\n  b: { passwordFile: b.secret, scope: "b:" }\n  c: { password: "${hash('c')}", scope: "c:" }`,
    4000,
  );
  expect(await root.ask('HOLDFAST', 'RELOAD')).toEqual([
    'read again: users, certificates, log.level',
    'changed: users',
    'needs a restart: limits.holdMs',
  ]);
  expect(await subjectAt(tlsPort, authority.ca)).toBe('second');
  expect((await login('b', 'old')).answer).toMatch(/^!WRONGPASS/);
  const renewed = await login('b', 'new');
  expect([renewed.answer, await renewed.ask('GET', 'k'), await old.ask('GET', 'k')]).toEqual(['OK', 'v', 'v']);
  expect((await login('c', 'c')).answer).toBe('OK');

  // A mistake changes nothing.
  configure(`${admin}\n  b: { scope: "b:" }`, 4000);
  expect(await root.ask('HOLDFAST', 'RELOAD')).toMatch(/^!CONFIG .*users\.b/);
  expect((await login('b', 'new')).answer).toBe('OK');

  // Who may not.
  expect(await renewed.ask('HOLDFAST', 'RELOAD')).toMatch(/^!NOPERM/);
  const direct = asking(await connectRaw(kv.port));
  await direct('ACL', 'SETUSER', 'reader', 'on', '>r', '+@read', '+@connection', '~*');
  expect(await (await login('reader', 'r')).ask('HOLDFAST', 'RELOAD')).toMatch(/^!NOPERM/);
  configure(`  root: { password: "${hash('r')}" }`, 5000);
  const nobody = asking(await connectRaw(port));
  expect(await nobody('HOLDFAST', 'RELOAD')).toContain('changed: users');
  expect(await (await login('root', 'r')).ask('HOLDFAST', 'RELOAD')).toMatch(/^!NOPERM/);
  expect(await nobody('HOLDFAST', 'HELP')).toContain('RELOAD');
}, 60_000);

test('SIGHUP and HOLDFAST RELOAD reach every process', async () => {
  const kv = await startKv(kvKinds[0]!);
  const { url } = await startTestPostgres();
  const file = join(await temporaryDirectory(), 'holdfast.yaml');
  const configure = (password: string): void =>
    writeFileSync(file, `users: { u: { password: "${hash(password)}" } }\n`);
  configure('one');
  const listen = await freePort();
  const program = await serve([
    '--config',
    file,
    '--kv',
    kv.url,
    '--database',
    url,
    '--processes',
    '2',
    '--listen',
    `127.0.0.1:${listen}`,
  ]);
  /** How many of some clients, which land in both processes, may log in with it. */
  const accepted = async (password: string): Promise<number> => {
    const answers = await Promise.all(
      Array.from({ length: 8 }, async () => {
        const client = await connectRaw(program.port);
        const answer = await asking(client)('AUTH', 'u', password);
        client.socket.destroy();
        return answer;
      }),
    );
    return answers.filter((answer) => answer === 'OK').length;
  };
  expect([await accepted('one'), await accepted('two')]).toEqual([8, 0]);
  configure('two');
  program.child.kill('SIGHUP');
  await expect.poll(() => accepted('two'), { timeout: 10_000 }).toBe(8);
  configure('three');
  expect(await asking(await connectRaw(program.port))('HOLDFAST', 'RELOAD')).toEqual([
    'read again: users, certificates, log.level',
    'changed: users',
    'processes: 2 of 2',
  ]);
  expect([await accepted('two'), await accepted('three')]).toEqual([0, 8]);
}, 60_000);
