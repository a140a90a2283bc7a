/**
 * CLIENT LIST, INFO and KILL over Holdfast's clients, in the servers' formats (`catClientInfoString`). Fields that speak
 * of a server's memory give what Holdfast holds for the client. With several processes each answers for its own.
 */

import * as encode from '../../resp/encode.ts';
import type { Request } from '../request/request.ts';
import type { Peers } from '../session/peers.ts';
import type { Session } from '../session/session.ts';
import { Pin, type Transaction } from '../session/session-state.ts';
import { type ClientQuery, readKillQuery, readListQuery } from './client-query.ts';
import type { ClientRegistry } from './client-registry.ts';

/** A member of a transaction that is being executed, by its place. */
export interface Executing {
  readonly transaction: Transaction;
  readonly slot: number;
}

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

function isBlocked(session: Session): boolean {
  return (session.pins & Pin.blocking) !== 0 && session.inFlight > 0;
}

function flagsOf(session: Session, transaction: Transaction | undefined): string {
  let flags = '';
  if (session.pins & Pin.raw) flags += isReplica(session) ? 'S' : 'O';
  if (session.subscriptions.size > 0) flags += 'P';
  if (transaction !== undefined) flags += 'x';
  if (isBlocked(session)) flags += 'b';
  if (session.setup.has('client|tracking')) flags += 't';
  if (session.setup.has('client|no-evict')) flags += 'e';
  if (session.setup.has('client|no-touch')) flags += 'T';
  if (session.unixPath !== '') flags += 'U';
  return flags === '' ? 'N' : flags;
}

/**
 * One client as a line. `request` is the one that asks for it: a server counts it as still in the query buffer, and among
 * the commands only when it is over. `executing`: the transaction within which it asks.
 */
export function clientLine(session: Session, request?: Request, executing?: Executing): string {
  const now = Date.now();
  const transaction = executing?.transaction ?? session.transaction;
  const unfinished = request !== undefined || isBlocked(session) ? 1 : 0;
  // What is queued counts when it is executed.
  const queued = (transaction?.slots ?? 0) - (executing?.slot ?? 0);
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
    `flags=${flagsOf(session, transaction)}`,
    `db=${session.database}`,
    `sub=${session.subscriptions.channels.size}`,
    `psub=${session.subscriptions.patterns.size}`,
    `ssub=${session.subscriptions.shardChannels.size}`,
    `multi=${transaction === undefined ? -1 : transaction.slots}`,
    ...(session.context.upstream.facts.server === 'valkey'
      ? [`watch=${session.pins & Pin.watch ? session.watched.size : 0}`]
      : []),
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
    `cmd=${commandOf(session, request, executing)}`,
    `user=${session.user}`,
    `redir=${session.redirectsTo > 0 ? session.redirectsTo : -1}`,
    `resp=${session.protocol}`,
  ];
  if (session.context.upstream.facts.server === 'valkey') {
    fields.push(`lib-name=${session.libraryName}`, `lib-ver=${session.libraryVersion}`);
    fields.push(`tot-net-in=${session.socket.bytesRead}`, `tot-net-out=${session.output.bytesTotal}`);
    fields.push(`tot-cmds=${session.commandsTotal - unfinished - queued}`);
  }
  return `${fields.join(' ')}\n`;
}

/** Others may have been taken behind the one that asks. */
function commandOf(session: Session, request: Request | undefined, executing: Executing | undefined): string {
  if (executing !== undefined) return 'exec';
  return request?.command?.name ?? (session.lastCommand === '' ? 'NULL' : session.lastCommand);
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
  asking?: { readonly session: Session; readonly request: Request; readonly executing: Executing | undefined },
): string[] {
  const found = [...registry.all()].filter((session) => matches(session, query));
  return found.map((session) =>
    session === asking?.session ? clientLine(session, asking.request, asking.executing) : clientLine(session),
  );
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

/** `CLIENT LIST [TYPE type] | [ID id …]`, within the transaction that is being executed. */
export function clientList(session: Session, request: Request, executing?: Executing): Buffer | Promise<Buffer> {
  const query = readListQuery(request, session.context.upstream.facts.server === 'valkey', scopeOf(session));
  if (typeof query === 'string') return encode.errorOfBytes(query);
  const idOf = (line: string): number => Number(/^id=(\d+)/.exec(line)?.[1]);
  const here = listClients(session.context.registry, query, { session, request, executing });
  const { protocol } = session;
  const listed = (elsewhere: readonly string[][]): Buffer => {
    const lines = [...here, ...elsewhere.flat()];
    lines.sort((a, b) => idOf(a) - idOf(b));
    return encode.text(protocol, lines.join(''));
  };
  const { peers } = session.context;
  return peers === undefined ? listed([]) : peers.list(query).then(listed);
}

/** `CLIENT KILL addr:port` and `CLIENT KILL filter value …`. Who kills itself is still answered. */
export async function clientKill(session: Session, request: Request): Promise<Buffer> {
  const valkey = session.context.upstream.facts.server === 'valkey';
  const query = readKillQuery(request, session.id, valkey, scopeOf(session));
  if (typeof query === 'string') return encode.errorOfBytes(query);
  const elsewhere = await askPeers(session, (peers) => peers.kill(query));
  const { registry } = session.context;
  const asked = matches(session, query);
  const others = killClients(registry, asked ? { ...query, exceptId: session.id } : query);
  const count = elsewhere.reduce((sum, killed) => sum + killed, others + (asked ? 1 : 0));
  // Behind the reply, which is given when this has returned.
  if (asked) setImmediate(() => session.endAfterReply());
  if (request.args.length > 3) return encode.integer(count);
  return count === 0 ? encode.error('ERR No such client') : encode.OK;
}
