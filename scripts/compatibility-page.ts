/** The text of docs/compatibility.md, from the command table and the plan of how each command is carried. */
import type { CommandEntry } from '../src/command/command.ts';
import { commandTable } from '../src/command/table.ts';
import { type Carriage, carriageOf } from '../src/proxy/request/command-plan.ts';
import { describeRule, scopeRule } from '../src/scope/rules.ts';

const WAYS: Readonly<Record<Carriage, string>> = {
  shared: 'shared lane',
  blocking: 'dedicated lane until its reply',
  'blocking-option': 'shared lane; with BLOCK a dedicated one until its reply',
  wait: 'dedicated lane until its reply',
  multi: 'dedicated lane until EXEC or DISCARD',
  exec: 'the lane of its transaction',
  discard: 'the lane of its transaction',
  watch: 'dedicated lane until EXEC, DISCARD or UNWATCH',
  unwatch: 'the lane of its WATCH',
  subscribe: 'dedicated lane while there are subscriptions',
  unsubscribe: 'the lane of its subscriptions',
  sticky: 'dedicated lane until RESET or the end of the session',
  raw: 'dedicated lane until the end of the session, its bytes untouched',
  replication:
    'dedicated lane until the end of the session; REPLCONF ACK and GETACK, which have no reply, are not sent',
  debugging: 'dedicated lane until the end of the session; from the script on that is debugged, bytes untouched',
  control: 'a lane with nothing else on it',
  session: 'answered by Holdfast',
};

const REMARKS: Readonly<Record<string, string>> = {
  auth: 'judged by Holdfast where the user is its own, else by the KV store',
  'client|caching': 'as the KV store has it; kept on the lane',
  'client|id': 'the ID of Holdfast’s client; the KV store judges whether it may be asked',
  'client|info': 'speaks of Holdfast’s client; memory of the KV store’s buffers is given as 0',
  'client|kill': 'kills clients of Holdfast, in all of its processes; the KV store judges the filters',
  'client|list': 'lists the clients of Holdfast, of all of its processes',
  'client|pause': 'writes get lanes of their own while it lasts',
  'client|tracking': 'REDIRECT names a client of Holdfast',
  'client|unblock': 'names a client of Holdfast',
  dbsize: 'without Holdfast’s own keys',
  hello: 'the ID is that of Holdfast’s client',
  info: 'with a `# Holdfast` section; everything else is the KV store’s, connected_clients too',
  keys: 'without Holdfast’s own keys',
  monitor: 'addresses are those of lanes',
  psubscribe: 'in a scope refused inside MULTI',
  punsubscribe: 'in a scope refused inside MULTI',
  randomkey: 'without Holdfast’s own keys',
  scan: 'without Holdfast’s own keys',
  select: 'moves the session to lanes of that database',
  shutdown: 'acts on the KV store',
  'slowlog|get': 'names and addresses are those of lanes; with `pooling: session` the names are the clients’',
  ssubscribe: 'in a scope refused inside MULTI',
  subscribe: 'in a scope refused inside MULTI',
  sunsubscribe: 'in a scope refused inside MULTI',
  unsubscribe: 'in a scope refused inside MULTI',
  xadd: 'on a ledgered stream the reply waits for the commit in Postgres',
};

function serversOf(entry: CommandEntry): string {
  if (entry.servers.length === 2) return 'both';
  return entry.servers[0] === 'valkey' ? 'Valkey' : 'Redis';
}

function row(entry: CommandEntry): string {
  const name = entry.name.replace('|', ' ').toUpperCase();
  return `| ${name} | ${serversOf(entry)} | ${WAYS[carriageOf(entry)]} | ${REMARKS[entry.name] ?? ''} | ${describeRule(scopeRule(entry))} |`;
}

export function compatibilityPage(): string {
  const entries = commandTable()
    .entries.filter((entry) => !entry.own && entry.subcommands === undefined)
    .sort((a, b) => (a.name < b.name ? -1 : 1));
  const counts = new Map<string, number>();
  for (const entry of entries) {
    const way = WAYS[carriageOf(entry)];
    counts.set(way, (counts.get(way) ?? 0) + 1);
  }
  return [
    '# Compatibility',
    '',
    'Written by `npm run generate:compatibility` from the command table of Redis 7.0.15 and Valkey 8.0.1; not edited by hand.',
    'Ways are those of `pooling: transaction`; with `pooling: session` every client has a lane of its own.',
    'Commands that neither server documents (modules, newer servers) go over a shared lane as they are.',
    '',
    '| way | commands |',
    '|---|---|',
    ...[...counts].sort((a, b) => b[1] - a[1]).map(([way, count]) => `| ${way} | ${count} |`),
    '',
    '| command | servers | way | remarks | in a scope |',
    '|---|---|---|---|---|',
    ...entries.map(row),
    '',
  ].join('\n');
}
