/**
 * A reply, a member of EXEC's reply or an error on its way to a scoped client: logical names in place of physical ones.
 * What names something outside the scope is left out.
 *
 * Replies that hold no names are passed on untouched, whatever their size.
 */
import * as encode from '../resp/encode.ts';
import { aggregate, type Reply, readReply } from '../resp/reply.ts';
import type { RewrittenRequest } from './rewrite-request.ts';
import type { ReplyShape } from './rules.ts';
import { logicalKey, physicalKey, type Scope, unprefixed } from './scope.ts';

const MINUS = 45;
const BULK_ERROR = 33;

export function isError(frame: Buffer): boolean {
  return frame[0] === MINUS || frame[0] === BULK_ERROR;
}

/** `request` is what was sent. */
export function rewriteReply(scope: Scope, shape: ReplyShape, frame: Buffer, request: RewrittenRequest): Buffer {
  if (isError(frame)) return rewriteError(scope, frame, request);
  if (shape === 'none') return frame;
  const reply = readReply(frame);
  if (reply.isNull) return frame;
  switch (shape) {
    case 'first':
      return rewriteFirst(scope, reply);
    case 'streams':
      return rewriteStreams(scope, reply);
    case 'keys':
      return names(reply, (name) => logicalKey(scope, name));
    case 'scan':
      return aggregate('*', [reply.items![0]!.raw, names(reply.items![1]!, (name) => logicalKey(scope, name))]);
    case 'channels':
      return names(reply, (name) => unprefixed(scope, name));
    case 'channel-counts':
      return rewriteCounts(scope, reply);
    case 'tracking-info':
      return rewriteTrackingInfo(scope, reply);
    case 'info':
      return rewriteInfo(reply);
    case 'role':
      return rewriteRole(reply);
  }
}

/** A list of bulk strings without those that `logical` does not know. */
function names(reply: Reply, logical: (name: Buffer) => Buffer | undefined): Buffer {
  if (reply.items === undefined) return reply.raw;
  const kept: Buffer[] = [];
  for (const item of reply.items) {
    const name = logical(item.bytes);
    if (name !== undefined) kept.push(encode.bulk(name));
  }
  return aggregate(reply.type === '~' ? '~' : '*', kept);
}

function rewriteFirst(scope: Scope, reply: Reply): Buffer {
  const [key, ...rest] = reply.items ?? [];
  if (key === undefined) return reply.raw;
  return aggregate('*', [bulkKey(scope, key), ...rest.map((item) => item.raw)]);
}

function bulkKey(scope: Scope, key: Reply): Buffer {
  return encode.bulk(logicalKey(scope, key.bytes) ?? Buffer.alloc(0));
}

function rewriteStreams(scope: Scope, reply: Reply): Buffer {
  const items = reply.items!;
  if (reply.type === '%') {
    return aggregate(
      '%',
      items.map((item, at) => (at % 2 === 0 ? bulkKey(scope, item) : item.raw)),
    );
  }
  return aggregate(
    '*',
    items.map((stream) => {
      const [key, ...entries] = stream.items!;
      return aggregate('*', [bulkKey(scope, key!), ...entries.map((item) => item.raw)]);
    }),
  );
}

function rewriteCounts(scope: Scope, reply: Reply): Buffer {
  return aggregate(
    '*',
    reply.items!.map((item, at) =>
      at % 2 === 0 ? encode.bulk(unprefixed(scope, item.bytes) ?? Buffer.alloc(0)) : item.raw,
    ),
  );
}

/** Field names and values alternating; the value of `prefixes` is a list of physical ones. */
function rewriteTrackingInfo(scope: Scope, reply: Reply): Buffer {
  const items = reply.items!.map((item, at, all) => {
    if (at % 2 === 0 || all[at - 1]!.bytes.toString() !== 'prefixes') return item.raw;
    return names(item, (prefix) => unprefixed(scope, prefix));
  });
  return aggregate(reply.type === '%' ? '%' : '*', items);
}

/**
 * What of INFO a scoped client may see: what the server is and how it is set up. Everything else counts or names what
 * others do (errorstats has the error texts of their scripts), and what newer servers and modules add may too.
 */
const INFO_SECTIONS = new Set(
  ['Server', 'Clients', 'Memory', 'Persistence', 'Stats', 'Replication', 'CPU', 'Modules', 'Errorstats']
    .concat('Commandstats', 'Latencystats', 'Cluster', 'Keyspace', 'Holdfast')
    .map((name) => `# ${name}`),
);
const INFO_FIELDS = new Set(
  (
    'redis_version redis_git_sha1 redis_git_dirty redis_build_id redis_mode server_name server_mode valkey_version ' +
    'valkey_release_stage os arch_bits monotonic_clock multiplexing_api atomicvar_api gcc_version run_id tcp_port ' +
    'server_time_usec uptime_in_seconds uptime_in_days hz configured_hz maxclients maxmemory maxmemory_human ' +
    'maxmemory_policy mem_allocator loading async_loading aof_enabled role master_link_status cluster_enabled'
  ).split(' '),
);

function rewriteInfo(reply: Reply): Buffer {
  const verbatim = reply.type === '=';
  const text = reply.bytes.toString('latin1', verbatim ? 4 : 0);
  const kept = text.split('\r\n').filter((line) => {
    if (line === '' || line.startsWith('# ')) return line === '' || INFO_SECTIONS.has(line);
    return INFO_FIELDS.has(line.slice(0, Math.max(0, line.indexOf(':'))));
  });
  return encode.text(verbatim ? 3 : 2, kept.join('\r\n'));
}

/** `master`, as of a server without replicas and before its first write; of a replica the state of its link. */
function rewriteRole(reply: Reply): Buffer {
  const [role, , , state] = reply.items ?? [];
  if (role?.bytes.toString() === 'master') return aggregate('*', [role.raw, encode.integer(0), aggregate('*', [])]);
  if (role?.bytes.toString() !== 'slave' || state === undefined)
    return aggregate('*', role === undefined ? [] : [role.raw]);
  return aggregate('*', [role.raw, encode.bulk(''), encode.integer(0), state.raw, encode.integer(0)]);
}

/**
 * An error as the client may see it. Where the servers quote a key is known for NOGROUP; elsewhere each physical key of
 * the request becomes the logical one.
 */
export function rewriteError(scope: Scope, frame: Buffer, request: RewrittenRequest): Buffer {
  const text = readReply(frame).bytes.toString('latin1');
  return text.includes(scope.id) ? errorFrame(logicalText(scope, text, request)) : frame;
}

/** `text` is latin1, so that keys of any bytes stay what they are. */
export function errorFrame(text: string): Buffer {
  return Buffer.from(`-${text}\r\n`, 'latin1');
}

function logicalText(scope: Scope, text: string, { logical: args, keysAt }: RewrittenRequest): string {
  for (const at of keysAt) {
    const logical = quoted(args[at]!);
    const physical = quoted(physicalKey(scope, args[at]!));
    const noKey = `NOGROUP No such key '${physical}'`;
    if (text.startsWith(noKey)) return `NOGROUP No such key '${logical}'${text.slice(noKey.length)}`;
    const noGroup = ` for key name '${physical}'`;
    if (text.startsWith('NOGROUP ') && text.endsWith(noGroup)) {
      return `${text.slice(0, -noGroup.length)} for key name '${logical}'`;
    }
  }
  let rewritten = text;
  for (const at of keysAt) {
    rewritten = rewritten.replaceAll(quoted(physicalKey(scope, args[at]!)), quoted(args[at]!));
  }
  // What is left did not come from a key that the client named. Unless it wrote the prefix itself, it must not see it.
  return args.some((arg) => arg.includes(scope.prefix)) ? rewritten : rewritten.replaceAll(scope.id, '');
}

/** A key as it stands in an error: line breaks have become blanks. */
function quoted(key: Buffer): string {
  return key.toString('latin1').replace(/[\r\n]/g, ' ');
}
