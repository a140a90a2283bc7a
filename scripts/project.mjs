/** Where the project lies, how these scripts speak, and how they run other programs. Plain Node: runs before any install. */
import { spawn, spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

export const ROOT = fileURLToPath(new URL('..', import.meta.url));

const NODE_MIN = [20, 6];

export function say(text) {
  process.stdout.write(`holdfast: ${text}\n`);
}

/** One line on stderr, and exit code 2: what was asked for cannot be done here. */
export function giveUp(text) {
  process.stderr.write(`holdfast: ${text}\n`);
  process.exit(2);
}

export function requireNode() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major < NODE_MIN[0] || (major === NODE_MIN[0] && minor < NODE_MIN[1])) {
    giveUp(`Node ${NODE_MIN.join('.')} or newer is needed, this is ${process.versions.node}`);
  }
}

/** Runs a program in the project's directory, its output on ours. Gives the exit code; 127 when there is no such program. */
export function run(command, args, options = {}) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { cwd: ROOT, stdio: ['ignore', 'inherit', 'inherit'], ...options });
    child.once('error', () => resolve(127));
    child.once('exit', (code) => resolve(code ?? 1));
  });
}

/** What a program writes, or `undefined` when it cannot be run or fails. */
export function outputOf(command, args) {
  const { status, stdout } = spawnSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  return status === 0 ? stdout : undefined;
}
