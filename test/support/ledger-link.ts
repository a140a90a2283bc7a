import { startTcpProxy, type TcpProxy } from '../chaos/tcp-proxy.ts';

/** A link to the Postgres of `databaseUrl` that can misbehave, and the URL by way of it. The caller closes it. */
export async function startLedgerLink(databaseUrl: string): Promise<{ readonly link: TcpProxy; readonly url: string }> {
  const url = new URL(databaseUrl);
  const port = Number(url.port);
  const link = await startTcpProxy(() => port);
  url.port = String(link.port);
  return { link, url: url.href };
}
