/**
 * CLIENT LIST, INFO and KILL over Holdfast's clients, in the servers' formats (`catClientInfoString`). Fields that speak
 * of a server's memory give what Holdfast holds for the client. With several processes each answers for its own.
 */

import * as encode from '../../resp/encode.ts';
import type { Request } from '../request/request.ts';
import type { Peers } from '../session/peers.ts';
import type { Session } from '../session/session.ts';
import { Pin } from '../session/session-state.ts';
import { type ClientQuery, readKillQuery, readListQuery } from './client-query.ts';
import type { ClientRegistry } from './client-registry.ts';

function addressOf(address: string | undefined, port: number | undefined, path: string): string {
  if (address === undefined) return `${path}:0`;
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}

export function peerAddress(session: Session): string {
  return addressOf(session.remoteAddress, session.remotePort, session.unixPath);
}

function localAddress(session: Session): string {
  return addressOf(session.localAddress, session.localPort, session.unixPath);
}

function flagsOf(session: Session): string {
  let flags = '';
  if (session.pins & Pin.raw) flags += isReplica(session) ? 'S' : 'O';
  if (session.subscriptions.size > 0) flags += 'P';
  if (session.transaction !== undefined) flags += 'x';
  if (session.pins & Pin.blocking && session.inFlight > 0) flags += 'b';
  if (session.setup.has('client|tracking')) flags += 't';
  if (session.setup.has('client|no-evict')) flags += 'e';
  if (session.setup.has('client|no-touch')) flags += 'T';
  if (session.unixPath !== '') flags += 'U';
  return flags === '' ? 'N' : flags;
}

/** One client as a line. `request` is the one that asks for it: a server counts it as still in the query buffer. */
export function clientLine(session: Session, request?: Request): string {
  const now = Date.now();
  const queryBytes = session.queryBufferBytes + (request?.bytes.length ?? 0);
  const outputBytes = session.output.waitingBytes;
  const fields = [
    `id=${session.id}`,
    `addr=${peerAddress(session)}`,
    `laddr=${localAddress(session)}`,
    `fd=${session.fd}`,
    `name=${session.name}`,
    `age=${Math.floor((now - session.createdAt) / 1000)}`,
    `idle=${Math.floor((now - session.lastActiveAt) / 1000)}`,
    `flags=${flagsOf(session)}`,
    `db=${session.database}`,
    `sub=${session.subscriptions.channels.size}`,
    `psub=${session.subscriptions.patterns.size}`,
    `ssub=${session.subscriptions.shardChannels.size}`,
    `multi=${session.transaction === undefined ? -1 : session.transaction.slots}`,
    ...(session.context.upstream.facts.server === 'valkey' ? [`watch=${session.pins & Pin.watch ? 1 : 0}`] : []),
    `qbuf=${queryBytes}`,
    'qbuf-free=0',
    `argv-mem=${queryBytes}`,
    'multi-mem=0',
    'rbs=0',
    'rbp=0',
    'obl=0',
    `oll=${outputBytes > 0 ? 1 : 0}`,
    `omem=${outputBytes}`,
    `tot-mem=${queryBytes + outputBytes}`,
    'events=r',
    `cmd=${session.lastCommand === '' ? 'NULL' : session.lastCommand}`,
    `user=${session.user}`,
    `redir=${session.redirectsTo > 0 ? session.redirectsTo : -1}`,
    `resp=${session.protocol}`,
  ];
  if (session.context.upstream.facts.server === 'valkey') {
    fields.push(`lib-name=${session.libraryName}`, `lib-ver=${session.libraryVersion}`);
    fields.push(`tot-net-in=${session.socket.bytesRead}`, `tot-net-out=${session.output.bytesTotal}`);
    fields.push(`tot-cmds=${session.commandsTotal}`);
  }
  return `${fields.join(' ')}\n`;
}

function isReplica(session: Session): boolean {
  return (session.pins & Pin.raw) !== 0 && ['sync', 'psync', 'replconf'].includes(session.lastCommand);
}

function typeOf(session: Session): string {
  if (isReplica(session)) return 'replica';
  return session.subscriptions.size > 0 ? 'pubsub' : 'normal';
}

function matches(session: Session, query: ClientQuery): boolean {
  return (
    (query.scope === undefined || session.identity?.scopeName === query.scope) &&
    (query.ids === undefined || query.ids.includes(session.id)) &&
    (query.type === undefined || typeOf(session) === query.type) &&
    (query.address === undefined || peerAddress(session) === query.address) &&
    (query.localAddress === undefined || localAddress(session) === query.localAddress) &&
    (query.user === undefined || session.user === query.user) &&
    (query.ageMsMin === undefined || Date.now() - session.createdAt >= query.ageMsMin) &&
    session.id !== query.exceptId
  );
}

/** Lines of CLIENT LIST for the clients of this process; `asking` is the request of the one that asks, if it is here. */
export function listClients(
  registry: ClientRegistry,
  query: ClientQuery,
  asking?: { readonly session: Session; readonly request: Request },
): string[] {
  const found = [...registry.all()].filter((session) => matches(session, query));
  return found.map((session) => clientLine(session, session === asking?.session ? asking.request : undefined));
}

/** Ends the clients of this process that match; gives how many. */
export function killClients(registry: ClientRegistry, query: ClientQuery): number {
  const found = [...registry.all()].filter((session) => matches(session, query));
  for (const session of found) session.close('CLIENT KILL');
  return found.length;
}

/** What the other processes answer; nothing where there are none. */
async function askPeers<T>(session: Session, ask: (peers: Peers) => Promise<T[]>): Promise<readonly T[]> {
  const { peers } = session.context;
  return peers === undefined ? [] : ask(peers);
}

function scopeOf(session: Session): string | undefined {
  return session.identity?.scopeName;
}

/** How many clients there are in the session's scope, and how many of them a command keeps waiting. */
export async function countClients(session: Session): Promise<{ connected: number; blocked: number }> {
  const scope = scopeOf(session);
  const query = scope === undefined ? {} : { scope };
  const elsewhere = await askPeers(session, (peers) => peers.list(query));
  const lines = [...listClients(session.context.registry, query), ...elsewhere.flat()];
  return { connected: lines.length, blocked: lines.filter((line) => / flags=\w*b/.test(line)).length };
}

/** `CLIENT LIST [TYPE type] | [ID id …]`. Nothing is in flight. */
export async function answerClientList(session: Session, request: Request): Promise<void> {
  const query = readListQuery(request, session.context.upstream.facts.server === 'valkey', scopeOf(session));
  if (typeof query === 'string') {
    session.answer(encode.errorOfBytes(query));
    return;
  }
  const idOf = (line: string): number => Number(/^id=(\d+)/.exec(line)?.[1]);
  const elsewhere = await askPeers(session, (peers) => peers.list(query));
  const lines = [...listClients(session.context.registry, query, { session, request }), ...elsewhere.flat()];
  lines.sort((a, b) => idOf(a) - idOf(b));
  session.answer(encode.text(session.protocol, lines.join('')));
}

/** `CLIENT KILL addr:port` and `CLIENT KILL filter value …`. Nothing is in flight. */
export async function answerClientKill(session: Session, request: Request): Promise<void> {
  const valkey = session.context.upstream.facts.server === 'valkey';
  const query = readKillQuery(request, session.id, valkey, scopeOf(session));
  if (typeof query === 'string') {
    session.answer(encode.errorOfBytes(query));
    return;
  }
  const elsewhere = await askPeers(session, (peers) => peers.kill(query));
  const { registry } = session.context;
  const asked = matches(session, query);
  const others = killClients(registry, asked ? { ...query, exceptId: session.id } : query);
  const count = elsewhere.reduce((sum, killed) => sum + killed, others + (asked ? 1 : 0));
  if (request.args.length > 3) session.answer(encode.integer(count));
  else session.answer(count === 0 ? encode.error('ERR No such client') : encode.OK);
  if (asked) session.endAfterReply();
}
