/**
 * CLIENT LIST, INFO and KILL over Holdfast's clients, in the servers' formats (`catClientInfoString`). Fields that speak
 * of a server's memory give what Holdfast holds for the client.
 */
import * as encode from '../resp/encode.ts';
import { isInteger } from './integer.ts';
import type { Request } from './request.ts';
import type { Session } from './session.ts';
import { Pin } from './session-state.ts';

const TYPES: readonly string[] = ['normal', 'master', 'replica', 'slave', 'pubsub'];

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
  if (session.pins & Pin.raw) flags += 'O';
  if (session.subscriptions.size > 0) flags += 'P';
  if (session.transaction !== undefined) flags += 'x';
  if (session.pins & Pin.blocking && session.inFlight > 0) flags += 'b';
  if (session.setup.has('client|tracking')) flags += 't';
  if (session.setup.has('client|no-evict')) flags += 'e';
  if (session.setup.has('client|no-touch')) flags += 'T';
  if (session.unixPath !== '') flags += 'U';
  return flags === '' ? 'N' : flags;
}

/** One client as a line without its end. */
export function clientLine(session: Session): string {
  const now = Date.now();
  const queryBytes = session.queryBufferBytes;
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

function typeOf(session: Session): string {
  return session.subscriptions.size > 0 ? 'pubsub' : 'normal';
}

/** `CLIENT LIST [TYPE type] | [ID id …]` */
export function clientList(session: Session, request: Request): void {
  const { args } = request;
  const { registry } = session.context;
  let chosen: Iterable<Session> = registry.all();
  if (args.length === 4 && request.is(2, 'type')) {
    const type = args[3]!.toString('latin1');
    if (!TYPES.includes(type.toLowerCase())) {
      session.answer(encode.error(`ERR Unknown client type '${type}'`));
      return;
    }
    chosen = [...registry.all()].filter((other) => typeOf(other) === type.toLowerCase());
  } else if (args.length > 3 && request.is(2, 'id')) {
    const wanted: Session[] = [];
    for (const arg of args.slice(3)) {
      const id = arg.toString('latin1');
      if (!isInteger(id)) {
        session.answer(encode.error('ERR Invalid client ID'));
        return;
      }
      const other = registry.get(Number(id));
      if (other !== undefined) wanted.push(other);
    }
    chosen = wanted;
  } else if (args.length !== 2) {
    session.answer(encode.error('ERR syntax error'));
    return;
  }
  let lines = '';
  for (const other of chosen) lines += clientLine(other);
  session.answer(encode.text(session.protocol, lines));
}

interface KillFilter {
  matches(other: Session): boolean;
}

/** Reads the filters of CLIENT KILL; a string is the error a server gives. */
function readFilters(session: Session, request: Request): { filters: KillFilter[]; skipMe: boolean } | string {
  const { args } = request;
  const filters: KillFilter[] = [];
  let skipMe = true;
  for (let i = 2; i < args.length; i += 2) {
    const value = args[i + 1]?.toString('latin1');
    if (value === undefined) return 'ERR syntax error';
    if (request.is(i, 'id')) {
      if (!/^\d{1,15}$/.test(value) || Number(value) < 1) return 'ERR client-id should be greater than 0';
      filters.push({ matches: (other) => other.id === Number(value) });
    } else if (request.is(i, 'type')) {
      if (!TYPES.includes(value.toLowerCase())) return `ERR Unknown client type '${value}'`;
      filters.push({ matches: (other) => typeOf(other) === value.toLowerCase() });
    } else if (request.is(i, 'addr')) {
      filters.push({ matches: (other) => peerAddress(other) === value });
    } else if (request.is(i, 'laddr')) {
      filters.push({ matches: (other) => localAddress(other) === value });
    } else if (request.is(i, 'user')) {
      filters.push({ matches: (other) => other.user === value });
    } else if (request.is(i, 'maxage') && session.context.upstream.facts.server === 'valkey') {
      if (!/^\d{1,15}$/.test(value) || Number(value) < 1) return 'ERR maxage is not an integer or out of range';
      filters.push({ matches: (other) => Date.now() - other.createdAt >= Number(value) * 1000 });
    } else if (request.is(i, 'skipme')) {
      if (value.toLowerCase() === 'yes') skipMe = true;
      else if (value.toLowerCase() === 'no') skipMe = false;
      else return 'ERR syntax error';
    } else return 'ERR syntax error';
  }
  return { filters, skipMe };
}

/** `CLIENT KILL addr:port` and `CLIENT KILL filter value …`. */
export function killClients(session: Session, request: Request): void {
  const { args } = request;
  const { registry } = session.context;
  const kill = (other: Session): void => {
    if (other === session) session.endAfterReply();
    else other.close('CLIENT KILL');
  };
  if (args.length === 3) {
    const address = args[2]!.toString('latin1');
    const found = [...registry.all()].find((other) => peerAddress(other) === address);
    session.answer(found === undefined ? encode.error('ERR No such client') : encode.OK);
    if (found !== undefined) kill(found);
    return;
  }
  const read = readFilters(session, request);
  if (typeof read === 'string') {
    session.answer(encode.error(read));
    return;
  }
  const found = [...registry.all()].filter(
    (other) => !(read.skipMe && other === session) && read.filters.every((filter) => filter.matches(other)),
  );
  session.answer(encode.integer(found.length));
  for (const other of found) kill(other);
}
