/** Addresses, as the configuration has them, for those who listen and connect. */
import { readFileSync } from 'node:fs';
import { type ConnectionOptions, createSecureContext } from 'node:tls';
import { type Address, formatAddress } from '../config/address.ts';
import type { Config, Listener } from '../config/config.ts';
import type { KvAddress } from '../control-redis.ts';
import type { KvServer } from '../embedded/kv-server.ts';
import { HoldfastError, messageOf } from '../errors.ts';
import type { ListenAddress } from '../proxy/proxy.ts';

/** Throws `CONFIG` where the files are no certificate and key. */
export function listenAddress({ address, tls }: Listener): ListenAddress {
  if (tls === undefined) return address;
  const { cert, key, ca, requireClientCert } = tls;
  const files = {
    cert: readFileSync(cert),
    key: readFileSync(key),
    ...(ca === undefined ? {} : { ca: readFileSync(ca) }),
  };
  try {
    createSecureContext(files);
  } catch (error) {
    throw new HoldfastError('CONFIG', `listen: ${formatAddress(address)}: tls: ${messageOf(error)}`, { cause: error });
  }
  return { ...address, tls: { ...files, requestCert: requireClientCert, rejectUnauthorized: requireClientCert } };
}

function kvTls(tls: Config['kv']['tls']): ConnectionOptions {
  return {
    rejectUnauthorized: tls.verify,
    ...(tls.ca === undefined ? {} : { ca: readFileSync(tls.ca) }),
    ...(tls.cert === undefined ? {} : { cert: readFileSync(tls.cert) }),
    ...(tls.key === undefined ? {} : { key: readFileSync(tls.key) }),
    ...(tls.serverName === undefined ? {} : { servername: tls.serverName }),
  };
}

export function remoteTarget(kv: Config['kv']): KvAddress | undefined {
  if (kv.remote === undefined) return undefined;
  const { address, tls, user, password } = kv.remote;
  return {
    ...address,
    ...(tls ? { tls: kvTls(kv.tls) } : {}),
    ...(user === undefined ? {} : { username: user }),
    ...(password === undefined ? {} : { password: password.reveal() }),
  };
}

export function embeddedTarget(server: KvServer): KvAddress {
  return server.unixSocket === undefined ? { host: '127.0.0.1', port: server.port } : { path: server.unixSocket };
}

export function addressOf(target: { host?: string; port?: number; path?: string }): Address {
  return target.path === undefined
    ? { host: target.host ?? '127.0.0.1', port: target.port ?? 0 }
    : { path: target.path };
}

/** A database without who logs in there. */
export function placeOf(databaseUrl: string): string {
  const { host, pathname } = new URL(databaseUrl);
  return `${host}${pathname}`;
}
