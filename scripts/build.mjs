/** Compiles src to dist and copies what is not TypeScript. `npm run build` always does, `npm start` only when it must. */
import { createHash } from 'node:crypto';
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { installDependencies } from './dependencies.mjs';
import { giveUp, ROOT, requireNode, run, say } from './project.mjs';

const SOURCE = join(ROOT, 'src');
const TARGET = join(ROOT, 'dist');
const STAMP = join(TARGET, '.sources');
const SETTINGS = ['tsconfig.json', 'scripts/tsconfig.build.json', 'package-lock.json'].map((name) => join(ROOT, name));

function sourceFiles() {
  return readdirSync(SOURCE, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath ?? entry.path, entry.name))
    .sort();
}

function fingerprint() {
  const hash = createHash('sha256');
  for (const file of [...SETTINGS, ...sourceFiles()]) hash.update(`${file}\0`).update(readFileSync(file)).update('\0');
  return hash.digest('hex');
}

function stamp() {
  try {
    return readFileSync(STAMP, 'utf8');
  } catch {
    return '';
  }
}

async function build(current) {
  say('building dist');
  rmSync(TARGET, { recursive: true, force: true });
  const compiler = join(ROOT, 'node_modules', 'typescript', 'bin', 'tsc');
  const code = await run(process.execPath, [compiler, '-p', join(ROOT, 'scripts', 'tsconfig.build.json')]);
  if (code !== 0) giveUp('the compiler found mistakes, see above');
  for (const file of sourceFiles().filter((name) => !name.endsWith('.ts'))) {
    const copy = join(TARGET, file.slice(SOURCE.length));
    mkdirSync(dirname(copy), { recursive: true });
    cpSync(file, copy);
  }
  writeFileSync(STAMP, current);
}

export async function buildIfStale() {
  const current = fingerprint();
  if (stamp() !== current) await build(current);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  requireNode();
  await installDependencies();
  await (process.argv.includes('--if-stale') ? buildIfStale() : build(fingerprint()));
}
