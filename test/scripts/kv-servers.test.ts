import { spawnSync } from 'node:child_process';
import { chmod, mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { temporaryDirectory } from '../support/servers.ts';

interface AptSource {
  readonly uri: string;
  readonly suites: readonly string[];
  readonly components: readonly string[];
  readonly signedBy: string;
}

// The scripts run before any install and are plain JavaScript.
const scripts = new URL('../../scripts/', import.meta.url);
const { parseAptSources, backportsStanza } = (await import(new URL('kv-servers.mjs', scripts).href)) as {
  parseAptSources(sources: readonly { deb822: boolean; text: string }[]): AptSource[];
  backportsStanza(codename: string, sources: readonly AptSource[]): string | undefined;
};

const DEB822 = `Types: deb
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
`;

describe("the release's backports suite", () => {
  it('is derived from a deb822 source with its address and key', () => {
    expect(backportsStanza('bookworm', parseAptSources([{ deb822: true, text: DEB822 }]))).toBe(
      'Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\nComponents: main\n' +
        'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n',
    );
  });

  it('is derived from a one-line source', () => {
    const text =
      '# deb http://old.example/debian bookworm main\n' +
      'deb-src http://src.example/debian bookworm main\n' +
      'deb [arch=amd64 signed-by=/k.gpg] https://one.example/debian bookworm main contrib # here\n';
    expect(backportsStanza('bookworm', parseAptSources([{ deb822: false, text }]))).toBe(
      'Types: deb\nURIs: https://one.example/debian\nSuites: bookworm-backports\nComponents: main\nSigned-By: /k.gpg\n',
    );
  });

  it('keeps a key that stands in the source itself', () => {
    const key = 'Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----';
    const text = `Types: deb\nURIs: http://a/debian\nSuites: bookworm\nComponents: main\n${key}\n`;
    expect(backportsStanza('bookworm', parseAptSources([{ deb822: true, text }]))).toContain(
      'Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----\n',
    );
  });

  it.each([
    ['is there already', `${DEB822}\nTypes: deb\nURIs: http://b\nSuites: bookworm-backports\nComponents: main\n`],
    ['has no base to derive it from', 'Types: deb\nURIs: http://c\nSuites: trixie\nComponents: main\n'],
    ['has a base that is switched off', `Enabled: no\n${DEB822.split('\n\n')[0]}`],
    ['has sources of programs only', DEB822.replaceAll('Types: deb', 'Types: deb-src')],
  ])('is left alone where it %s', (_, text) => {
    expect(backportsStanza('bookworm', parseAptSources([{ deb822: true, text }]))).toBeUndefined();
  });
});

describe('npm start without a KV server', () => {
  it('names the one command and exits with 2 where it may not install', async () => {
    const bin = await temporaryDirectory();
    // A machine with Node and an apt-get, and a user who cannot become root.
    await symlink(process.execPath, join(bin, 'node'));
    await writeFile(join(bin, 'apt-get'), '#!/bin/sh\nexit 0\n');
    await writeFile(join(bin, 'sudo'), '#!/bin/sh\nexit 1\n');
    for (const name of ['apt-get', 'sudo']) await chmod(join(bin, name), 0o755);
    const home = join(bin, 'home');
    await mkdir(home);
    const asOrdinaryUser = 'data:text/javascript,process.getuid=()=>1000';
    const result = spawnSync(process.execPath, ['--import', asOrdinaryUser, new URL('start.mjs', scripts).pathname], {
      env: { PATH: `${bin}`, HOME: home },
      encoding: 'utf8',
      timeout: 20_000,
    });
    expect(result.stderr).toBe(
      'holdfast: a redis-server or valkey-server is needed: sudo apt-get install -y redis-server\n',
    );
    expect(result.status).toBe(2);
  });
});
