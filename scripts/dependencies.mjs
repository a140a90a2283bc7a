/** Installs what package-lock.json lists, when what is installed differs from it. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { giveUp, ROOT, run, say } from './project.mjs';

function packagesIn(file) {
  try {
    return JSON.parse(readFileSync(join(ROOT, file), 'utf8')).packages;
  } catch {
    return undefined;
  }
}

/** What is missing or of another version; npm keeps its own list of what it installed. Packages of other platforms may lack. */
function isUpToDate() {
  const wanted = packagesIn('package-lock.json');
  const installed = packagesIn('node_modules/.package-lock.json');
  if (wanted === undefined || installed === undefined) return false;
  return Object.entries(wanted).every(([name, { version, optional }]) => {
    if (name === '') return true;
    const found = installed[name];
    return found === undefined ? optional === true : found.version === version;
  });
}

export async function installDependencies() {
  if (isUpToDate()) return;
  say('installing the npm packages of package-lock.json (npm ci)');
  const npm = process.env.npm_execpath;
  const args = ['ci', '--include=dev', '--no-audit', '--no-fund', '--loglevel=error'];
  const code = npm?.endsWith('.js') ? await run(process.execPath, [npm, ...args]) : await run('npm', args);
  if (code !== 0) giveUp('npm ci failed, see above');
}
