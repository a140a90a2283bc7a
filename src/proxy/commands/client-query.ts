/**
 * What CLIENT LIST and CLIENT KILL ask for: read from their arguments with the servers' errors, as plain data, for it
 * travels between processes.
 */
import { isInteger } from '../io/integer.ts';
import type { Request } from '../request/request.ts';

/** All that is given must hold. */
export interface ClientQuery {
  readonly ids?: readonly number[];
  readonly type?: string;
  readonly address?: string;
  readonly localAddress?: string;
  readonly user?: string;
  readonly ageMsMin?: number;
  readonly exceptId?: number;
  /** Only clients of the scope of this name. */
  readonly scope?: string;
}

const TYPES: readonly string[] = ['normal', 'master', 'replica', 'slave', 'pubsub'];

/** `undefined` where the server has none of that name. */
function canonicalType(type: string, valkey: boolean): string | undefined {
  const name = type.toLowerCase();
  if (name === 'primary' && valkey) return 'master';
  return TYPES.includes(name) ? name.replace('slave', 'replica') : undefined;
}

function withinScope(scope: string | undefined): ClientQuery {
  return scope === undefined ? {} : { scope };
}

/** A string is the error a server gives. */
export function readListQuery(request: Request, valkey: boolean, scope: string | undefined): ClientQuery | string {
  const { args } = request;
  if (args.length === 2) return withinScope(scope);
  if (args.length === 4 && request.is(2, 'type')) {
    const text = args[3]!.toString('latin1');
    const type = canonicalType(text, valkey);
    if (type === undefined) return `ERR Unknown client type '${text}'`;
    return { ...withinScope(scope), type };
  }
  if (args.length > 3 && request.is(2, 'id')) {
    const ids = args.slice(3).map((arg) => arg.toString('latin1'));
    if (!ids.every(isInteger)) return 'ERR Invalid client ID';
    return { ...withinScope(scope), ids: ids.map(Number) };
  }
  return 'ERR syntax error';
}

/** `ownId` is the asking client's, which is spared unless it says otherwise. A string is the error a server gives. */
export function readKillQuery(
  request: Request,
  ownId: number,
  valkey: boolean,
  scope: string | undefined,
): ClientQuery | string {
  const { args } = request;
  if (args.length === 3) return { ...withinScope(scope), address: args[2]!.toString('latin1') };
  const query: { -readonly [K in keyof ClientQuery]: ClientQuery[K] } = { ...withinScope(scope), exceptId: ownId };
  for (let i = 2; i < args.length; i += 2) {
    const value = args[i + 1]?.toString('latin1');
    if (value === undefined) return 'ERR syntax error';
    if (request.is(i, 'id')) {
      if (!/^\d{1,15}$/.test(value) || Number(value) < 1) return 'ERR client-id should be greater than 0';
      query.ids = [Number(value)];
    } else if (request.is(i, 'type')) {
      const type = canonicalType(value, valkey);
      if (type === undefined) return `ERR Unknown client type '${value}'`;
      query.type = type;
    } else if (request.is(i, 'addr')) query.address = value;
    else if (request.is(i, 'laddr')) query.localAddress = value;
    else if (request.is(i, 'user')) query.user = value;
    else if (request.is(i, 'maxage') && valkey) {
      if (!/^\d{1,15}$/.test(value) || Number(value) < 1) return 'ERR maxage is not an integer or out of range';
      query.ageMsMin = Number(value) * 1000;
    } else if (request.is(i, 'skipme')) {
      if (value.toLowerCase() === 'no') delete query.exceptId;
      else if (value.toLowerCase() !== 'yes') return 'ERR syntax error';
    } else return 'ERR syntax error';
  }
  return query;
}
