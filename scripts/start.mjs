/**
 * `npm start`: from a fresh clone to a running sidecar on embedded defaults. Flags behind `--` go to `holdfast serve`.
 */
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { buildIfStale } from './build.mjs';
import { installDependencies } from './dependencies.mjs';
import { commandToInstall, installServer, versionOf } from './kv-servers.mjs';
import { giveUp, ROOT, requireNode, say } from './project.mjs';

const args = process.argv.slice(2);

/** Somebody who names a KV store, or a file that may, needs none from here. */
function needsKvServer() {
  const named = args.some((arg) => /^--(kv|config|help)(=|$)|^-h$/.test(arg));
  return !named && !process.env.HOLDFAST_KV_URL && !process.env.HOLDFAST_CONFIG;
}

async function findKvServer() {
  for (const kind of ['valkey', 'redis']) if (versionOf(`${kind}-server`) !== undefined) return;
  // Redis first: every release has it among its own packages.
  for (const kind of ['redis', 'valkey']) if ((await installServer(kind)) !== undefined) return;
  giveUp(`a redis-server or valkey-server is needed: ${commandToInstall()}`);
}

requireNode();
say('starts the sidecar with a KV store and a Postgres of its own; data goes to ./.holdfast, Ctrl-C ends all of it');
if (needsKvServer()) await findKvServer();
await installDependencies();
await buildIfStale();
const main = join(ROOT, 'dist', 'main.js');
process.argv = [process.argv[0], main, 'serve', ...args];
await import(pathToFileURL(main).href);
