/** Where a socket listens or is: a TCP host and port, or the path of a Unix socket. */
export type Address = { readonly host: string; readonly port: number } | { readonly path: string };

const PORT_MAX = 65_535;
const DEFAULT_HOST = '127.0.0.1';

/**
 * `host:port`, `[::1]:port`, `port` (of 127.0.0.1) or `unix:/path`. Throws a plain Error whose message says what is wrong.
 */
export function parseAddress(text: string): Address {
  if (text.startsWith('unix:')) {
    const path = text.slice('unix:'.length).replace(/^\/\/(?=\/)/, '');
    if (path === '') throw new Error('unix: needs a path, such as unix:/run/holdfast.sock');
    return { path };
  }
  const match = /^(?:(?:\[([^\]]+)\]|([^:[\]/\s]+)):)?(\d+)$/.exec(text);
  if (match === null) throw new Error(`"${text}" is no address: expected host:port, [ipv6]:port or unix:/path`);
  const port = Number(match[3]);
  if (port > PORT_MAX) throw new Error(`port ${match[3]} is above ${PORT_MAX}`);
  return { host: match[1] ?? match[2] ?? DEFAULT_HOST, port };
}

/** The text that `parseAddress` reads as this address. */
export function formatAddress(address: Address): string {
  if ('path' in address) return `unix:${address.path}`;
  return address.host.includes(':') ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`;
}
