/**
 * Obtains the Tcl tests of Redis 7.0.15 from the system's own source packages.
 *
 * The machine's existing apt sources give the `deb-src` lines: the same URIs, suites, components and Signed-By, written
 * to a sources file of our own with state directories of our own, so that nothing of the system's apt is changed and
 * no root is needed for it. What is obtained is kept in a cache outside the repository; a second run asks nobody.
 */
import { execFileSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { isInstalled } from '../../bench/processes.ts';

const UPSTREAM_VERSION = '7.0.15';

export interface RedisSources {
  /** The unpacked source tree, with `tests/` and `runtest`. */
  readonly directory: string;
  /** Debian's version of the source package. */
  readonly version: string;
}

export function cacheDirectory(): string {
  const base = process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache');
  return join(base, 'holdfast', 'redis-suite');
}

/** The fields of one deb822 stanza, lower-case names. */
function readStanza(text: string): Map<string, string> {
  const fields = new Map<string, string>();
  let name = '';
  for (const line of text.split('\n')) {
    if (line.startsWith('#') || line.trim() === '') continue;
    if (/^\s/.test(line)) {
      fields.set(name, `${fields.get(name) ?? ''}\n${line}`);
      continue;
    }
    const colon = line.indexOf(':');
    if (colon < 0) continue;
    name = line.slice(0, colon).trim().toLowerCase();
    fields.set(name, line.slice(colon + 1).trim());
  }
  return fields;
}

/** `deb [options] uri suite component…` as a deb-src stanza; `undefined` for every other line. */
function stanzaOfLine(line: string): string | undefined {
  const match = /^deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+)$/.exec(line.trim());
  if (match === null) return undefined;
  const signedBy = /signed-by=(\S+)/i.exec(match[1] ?? '')?.[1];
  return [
    'Types: deb-src',
    `URIs: ${match[2]}`,
    `Suites: ${match[3]}`,
    `Components: ${match[4]?.replace(/#.*/, '').trim()}`,
    ...(signedBy === undefined ? [] : [`Signed-By: ${signedBy}`]),
  ].join('\n');
}

/** The enabled binary sources below `/etc/apt`, as deb-src stanzas. */
export function sourceStanzas(aptDirectory = '/etc/apt'): string[] {
  const stanzas: string[] = [];
  const parts = join(aptDirectory, 'sources.list.d');
  const files = [
    join(aptDirectory, 'sources.list'),
    ...(existsSync(parts) ? readdirSync(parts).map((name) => join(parts, name)) : []),
  ];
  for (const file of files) {
    if (!existsSync(file)) continue;
    const text = readFileSync(file, 'utf8');
    if (file.endsWith('.list')) {
      for (const line of text.split('\n')) {
        const stanza = stanzaOfLine(line);
        if (stanza !== undefined) stanzas.push(stanza);
      }
    } else if (file.endsWith('.sources')) {
      for (const paragraph of text.split(/\n\s*\n/)) {
        const fields = readStanza(paragraph);
        if (!/\bdeb\b(?!-)/.test(fields.get('types') ?? '') || /^no$/i.test(fields.get('enabled') ?? '')) continue;
        const signedBy = fields.get('signed-by');
        stanzas.push(
          [
            'Types: deb-src',
            `URIs: ${fields.get('uris') ?? ''}`,
            `Suites: ${fields.get('suites') ?? ''}`,
            `Components: ${fields.get('components') ?? 'main'}`,
            ...(signedBy === undefined ? [] : [`Signed-By: ${signedBy}`]),
          ].join('\n'),
        );
      }
    }
  }
  return stanzas;
}

/** Installs the packages whose executables are missing, where this process may; otherwise says what to install. */
function requireTools(tools: Readonly<Record<string, string>>): void {
  const missing = Object.entries(tools).filter(([binary]) => !isInstalled(binary));
  if (missing.length === 0) return;
  const packages = [...new Set(missing.map(([, name]) => name))];
  if (process.getuid?.() !== 0 || !isInstalled('apt-get')) {
    throw new Error(`missing ${missing.map(([binary]) => binary).join(', ')}: apt-get install ${packages.join(' ')}`);
  }
  process.stderr.write(`installing ${packages.join(', ')}\n`);
  const options = { stdio: ['ignore', 'ignore', 'inherit'] as const, timeout: 300_000 };
  const environment = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  execFileSync('apt-get', ['update', '-qq'], { ...options, stdio: ['ignore', 'ignore', 'inherit'], env: environment });
  execFileSync('apt-get', ['install', '-y', '-qq', '--no-install-recommends', ...packages], {
    ...options,
    stdio: ['ignore', 'ignore', 'inherit'],
    env: environment,
  });
}

/** The source version to take: the installed server's, else the newest of the upstream version. */
function chooseVersion(offered: readonly string[]): string {
  const fitting = offered.filter((version) => version.includes(UPSTREAM_VERSION));
  let installed = '';
  try {
    installed = execFileSync('dpkg-query', ['-W', '-f', `\${Version}`, 'redis-server'], { encoding: 'utf8' });
  } catch {
    // Not installed from a package: the newest will do.
  }
  const version = fitting.includes(installed) ? installed : fitting.at(-1);
  if (version === undefined) {
    throw new Error(`no source package of Redis ${UPSTREAM_VERSION} among: ${offered.join(', ') || 'none'}`);
  }
  return version;
}

/** The unpacked sources from the cache, or from the system's package servers. Throws with the remedy. */
export function obtainRedisSources(cache = cacheDirectory()): RedisSources {
  const directory = join(cache, `redis-${UPSTREAM_VERSION}`);
  const versionFile = join(cache, 'version');
  requireTools({ tclsh: 'tcl' });
  if (existsSync(join(directory, 'runtest')) && existsSync(versionFile)) {
    return { directory, version: readFileSync(versionFile, 'utf8').trim() };
  }
  requireTools({ 'apt-get': 'apt', 'dpkg-source': 'dpkg-dev' });
  const work = join(cache, `work-${process.pid}`);
  const sources = join(work, 'holdfast.sources');
  try {
    for (const name of ['lists/partial', 'archives/partial']) mkdirSync(join(work, name), { recursive: true });
    writeFileSync(sources, `${sourceStanzas().join('\n\n')}\n`);
    const options = [
      ['Dir::Etc::sourcelist', sources],
      ['Dir::Etc::sourceparts', '/dev/null'],
      ['Dir::State::lists', join(work, 'lists')],
      ['Dir::Cache', work],
      ['APT::Update::Post-Invoke-Success', ''],
      ['APT::Sandbox::User', process.getuid?.() === 0 ? 'root' : ''],
    ].flatMap(([name, value]) => (value === '' ? [] : ['-o', `${name}=${value}`]));
    const run = (command: string, args: readonly string[]) =>
      execFileSync(command, args, {
        cwd: work,
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'inherit'],
        timeout: 300_000,
        maxBuffer: 64 * 1024 * 1024,
      });
    process.stderr.write('fetching the source package of redis\n');
    run('apt-get', [...options, '-qq', 'update']);
    const offered = run('apt-cache', [...options, 'showsrc', 'redis']);
    const version = chooseVersion([...offered.matchAll(/^Version: (.+)$/gm)].map((match) => match[1] ?? ''));
    run('apt-get', [...options, '-qq', 'source', '--download-only', `redis=${version}`]);
    const description = readdirSync(work).find((name) => name.endsWith('.dsc'));
    if (description === undefined) throw new Error('the source package came without its .dsc');
    run('dpkg-source', ['--no-check', '-x', description, 'unpacked']);
    rmSync(directory, { recursive: true, force: true });
    renameSync(join(work, 'unpacked'), directory);
    writeFileSync(versionFile, `${version}\n`);
    return { directory, version };
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/**
 * A copy of what `runtest` needs, for one run at a time: the suite keeps its state below its own directory. The suite
 * calls executables as `src/NAME`; those are the installed ones. `forceResp3` makes every client of the suite begin
 * with HELLO 3 (Redis 7.0.15's suite has no such option of its own).
 */
export function prepareRunDirectory(sources: RedisSources, directory: string, forceResp3: boolean): void {
  mkdirSync(join(directory, 'src'), { recursive: true });
  cpSync(join(sources.directory, 'tests'), join(directory, 'tests'), { recursive: true });
  cpSync(join(sources.directory, 'runtest'), join(directory, 'runtest'));
  mkdirSync(join(directory, 'tests', 'tmp'), { recursive: true });
  for (const name of ['redis-server', 'redis-cli', 'redis-benchmark', 'redis-check-aof', 'redis-check-rdb']) {
    const path = execFileSync('sh', ['-c', `command -v ${name} || true`], { encoding: 'utf8' }).trim();
    if (path !== '') symlinkSync(path, join(directory, 'src', name));
  }
  if (!forceResp3) return;
  const client = join(directory, 'tests', 'support', 'redis.tcl');
  const text = readFileSync(client, 'utf8');
  const anchor = '    ::redis::redis_reset_state $id\n    interp alias';
  if (!text.includes(anchor)) throw new Error('redis.tcl is not the one that the RESP3 change was written for');
  const hello = [
    '    if {!$readraw} {',
    '        puts -nonewline $fd "*2\\r\\n\\$5\\r\\nHELLO\\r\\n\\$1\\r\\n3\\r\\n"',
    '        flush $fd',
    '        catch {::redis::redis_read_reply $id $fd}',
    '    }',
    '',
  ].join('\n');
  writeFileSync(
    client,
    text.replace(anchor, () => `    ::redis::redis_reset_state $id\n${hello}    interp alias`),
  );
}
