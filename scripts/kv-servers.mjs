/**
 * Finds redis-server and valkey-server, and installs them with the system's package manager where that needs nobody's
 * answer: as root, or with a sudo that asks for no password. The system's own service of the package is not wanted:
 * Holdfast runs the program as its child.
 */
import { chmodSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { outputOf, run, say } from './project.mjs';

const POLICY = '/usr/sbin/policy-rc.d';
const BACKPORTS_FILE = '/etc/apt/sources.list.d/holdfast-backports.sources';
const INSTALL_ENV = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };

/** `7.0.15`, or `undefined` when there is no such server on PATH. */
export function versionOf(server) {
  const text = outputOf(server, ['--version']);
  return text === undefined ? undefined : (/v=(\S+)/.exec(text)?.[1] ?? 'unknown');
}

function packageManager() {
  return ['apt-get', 'dnf'].find((name) => outputOf(name, ['--version']) !== undefined);
}

/** What goes before a command that needs root; `undefined` when this user cannot become root unasked. */
function rootPrefix() {
  if (process.getuid?.() === 0) return [];
  return outputOf('sudo', ['-n', 'true']) === undefined ? undefined : ['sudo', '-n'];
}

/** The one command for a person to run, where the scripts may not. */
export function commandToInstall() {
  const sudo = process.getuid?.() === 0 ? '' : 'sudo ';
  if (process.platform === 'darwin') return 'brew install valkey';
  switch (packageManager()) {
    case 'apt-get':
      return `${sudo}apt-get install -y redis-server`;
    case 'dnf':
      return `${sudo}dnf install -y valkey || ${sudo}dnf install -y redis`;
    default:
      return "install the package valkey or redis with the system's package manager";
  }
}

/** Runs as root; environment variables of ours pass through sudo only when named. */
function runAsRoot(prefix, command, args) {
  const [program, ...rest] =
    prefix.length === 0 ? [command, ...args] : [...prefix, 'env', 'DEBIAN_FRONTEND=noninteractive', command, ...args];
  return run(program, rest, { env: INSTALL_ENV });
}

/** Puts a file in a place of root's. */
async function placeFile(prefix, path, content, mode) {
  const temporary = join(tmpdir(), `holdfast-${process.pid}`);
  writeFileSync(temporary, content);
  chmodSync(temporary, mode);
  try {
    return (await runAsRoot(prefix, 'install', ['-m', mode.toString(8), temporary, path])) === 0;
  } finally {
    rmSync(temporary, { force: true });
  }
}

/** Debian starts a service when its package is installed, unless this file says no. */
async function withoutServiceStart(prefix, work) {
  if (existsSync(POLICY)) return work();
  await placeFile(prefix, POLICY, '#!/bin/sh\nexit 101\n', 0o755);
  try {
    return await work();
  } finally {
    await runAsRoot(prefix, 'rm', ['-f', POLICY]);
  }
}

async function aptInstall(prefix, name) {
  const code = await withoutServiceStart(prefix, () =>
    runAsRoot(prefix, 'apt-get', ['install', '-y', '-q', '--no-install-recommends', name]),
  );
  // Nor shall it start at the next boot.
  if (code === 0 && existsSync('/run/systemd/system')) {
    await runAsRoot(prefix, 'systemctl', ['disable', '--now', '--quiet', name]);
  }
  return code === 0;
}

function aptOffers(name) {
  const policy = outputOf('apt-cache', ['policy', name]) ?? '';
  return /Candidate: (?!\(none\))/.test(policy);
}

/** A line of /etc/os-release. */
function release(key) {
  try {
    const match = new RegExp(`^${key}="?([^"\n]*)"?$`, 'm').exec(readFileSync('/etc/os-release', 'utf8'));
    return match?.[1] ?? '';
  } catch {
    return '';
  }
}

function aptSourceTexts() {
  const directory = '/etc/apt/sources.list.d';
  const files = existsSync(directory) ? readdirSync(directory).map((name) => join(directory, name)) : [];
  return ['/etc/apt/sources.list', ...files]
    .filter((file) => /\.(list|sources)$/.test(file) && existsSync(file))
    .map((file) => ({ deb822: file.endsWith('.sources'), text: readFileSync(file, 'utf8') }));
}

/**
 * The packages' sources as this machine has them: `{ uri, suites, components, signedBy }`. Both of apt's formats are read
 * (sources.list(5)); a key that stands in the file itself keeps its lines.
 */
export function parseAptSources(sources) {
  return sources.flatMap(({ deb822, text }) => (deb822 ? parseDeb822(text) : parseOneLine(text)));
}

function parseDeb822(text) {
  return text.split(/\n\s*\n/).flatMap((stanza) => {
    const fields = new Map();
    let last = '';
    for (const line of stanza.split('\n')) {
      if (line.startsWith('#')) continue;
      if (/^\s/.test(line)) fields.set(last, `${fields.get(last) ?? ''}\n${line}`);
      const field = /^([\w-]+):\s*(.*)$/.exec(line);
      if (field !== null) fields.set((last = field[1].toLowerCase()), field[2].trim());
    }
    const words = (name) => (fields.get(name) ?? '').split(/\s+/).filter(Boolean);
    if (!words('types').includes('deb') || fields.get('enabled') === 'no') return [];
    const rest = { suites: words('suites'), components: words('components'), signedBy: fields.get('signed-by') ?? '' };
    return words('uris').map((uri) => ({ uri, ...rest }));
  });
}

function parseOneLine(text) {
  return text.split('\n').flatMap((line) => {
    const match = /^\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]*)/.exec(line);
    if (match === null) return [];
    const signedBy = /(?:^|\s)signed-by=(\S+)/i.exec(match[1] ?? '')?.[1] ?? '';
    return [{ uri: match[2], suites: [match[3]], components: match[4].trim().split(/\s+/), signedBy }];
  });
}

/** The source of the release's backports suite, from where this machine gets the release itself; `undefined` if it has it. */
export function backportsStanza(codename, sources) {
  const suite = `${codename}-backports`;
  if (sources.some(({ suites }) => suites.includes(suite))) return undefined;
  const base = sources.find(({ suites, components }) => suites.includes(codename) && components.includes('main'));
  if (base === undefined) return undefined;
  const signedBy = base.signedBy === '' ? '' : `Signed-By: ${base.signedBy}\n`;
  return `Types: deb\nURIs: ${base.uri}\nSuites: ${suite}\nComponents: main\n${signedBy}`;
}

async function addBackports(prefix) {
  if (release('ID') !== 'debian') return;
  const stanza = backportsStanza(release('VERSION_CODENAME'), parseAptSources(aptSourceTexts()));
  if (stanza === undefined) return;
  say(`adding ${BACKPORTS_FILE}, where this release has Valkey`);
  await placeFile(prefix, BACKPORTS_FILE, stanza, 0o644);
  if ((await runAsRoot(prefix, 'apt-get', ['update', '-q'])) === 0) return;
  await runAsRoot(prefix, 'rm', ['-f', BACKPORTS_FILE]);
  await runAsRoot(prefix, 'apt-get', ['update', '-q']);
}

async function installWithApt(prefix, kind) {
  const name = `${kind}-server`;
  await runAsRoot(prefix, 'apt-get', ['update', '-q']);
  if (kind === 'valkey' && !aptOffers(name)) await addBackports(prefix);
  return aptOffers(name) && (await aptInstall(prefix, name));
}

/** Tries to install the server of this kind; gives its version, or `undefined` where that is not to be had. */
export async function installServer(kind) {
  const prefix = rootPrefix();
  const manager = packageManager();
  if (prefix === undefined || manager === undefined) return undefined;
  say(`there is no ${kind}-server on PATH: installing it with ${manager}`);
  if (manager === 'apt-get') await installWithApt(prefix, kind);
  else await runAsRoot(prefix, 'dnf', ['install', '-y', '-q', kind]);
  return versionOf(`${kind}-server`);
}

/** Programs that single tests use, by the name of their package; the file shows that it is there. */
const TEST_TOOLS = [
  { name: 'postgresql-15', file: '/usr/lib/postgresql/15/bin/postgres', apt: 'postgresql-15' },
  { name: 'Celery', file: '/usr/lib/python3/dist-packages/celery/__init__.py', apt: 'python3-celery' },
  { name: 'RQ', file: '/usr/bin/rq', apt: 'python3-rq' },
  { name: 'Sidekiq', file: '/usr/bin/sidekiq', apt: 'ruby-sidekiq' },
  { name: 'pgbouncer', file: '/usr/sbin/pgbouncer', apt: 'pgbouncer', dnf: 'pgbouncer' },
];

/** Installs what is missing of them where that needs nobody's answer. Gives the names of those that are not to be had. */
export async function installTestTools() {
  const prefix = rootPrefix();
  const manager = packageManager();
  const missing = [];
  for (const { name, file, ...packages } of TEST_TOOLS) {
    if (existsSync(file)) continue;
    const wanted = manager === 'apt-get' ? packages.apt : packages.dnf;
    if (prefix !== undefined && wanted !== undefined) {
      say(`the tests use ${name}: installing it with ${manager}`);
      if (manager === 'apt-get') await aptInstall(prefix, wanted);
      else await runAsRoot(prefix, 'dnf', ['install', '-y', '-q', wanted]);
    }
    if (!existsSync(file)) missing.push(name);
  }
  return missing;
}
