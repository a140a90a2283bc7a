/** One stream that the KV store gives no answer about is left out of looks by itself: all others are compared and restored as ever. */
import net from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { kvKinds, startKv } from '../support/servers.ts';
import { clientOf, eventually, looks, restored, startAnew } from '../support/sidecar.ts';

/** A link on which a connection gets no more answers once it has asked about that stream. */
async function startDeafLink(
  port: number,
  stream: string,
): Promise<{ readonly port: number; close(): void; deaf: boolean }> {
  const sockets = new Set<net.Socket>();
  const server = net.createServer((client) => {
    const kv = net.connect(port, '127.0.0.1');
    for (const socket of [client, kv]) {
      sockets.add(socket);
      socket.on('error', () => undefined);
      socket.on('close', () => {
        client.destroy();
        kv.destroy();
      });
    }
    let silent = false;
    client.on('data', (chunk) => {
      silent ||=
        link.deaf &&
        chunk.includes("'XINFO', 'STREAM'") &&
        chunk.includes(`\r\n${stream}\r\n`) &&
        chunk.includes('\r\n0\r\n$1\r\n0\r\n');
      if (!silent) kv.write(chunk);
    });
    kv.on('data', (chunk) => client.write(chunk));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const link = {
    port: (server.address() as net.AddressInfo).port,
    deaf: false,
    close() {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
  return link;
}

describe.each(kvKinds)('with %s', (kind) => {
  let close: (() => void) | undefined;

  afterEach(() => close?.());

  test('it is marked, the state is never down, and it is read again later', async () => {
    const kv = await startKv(kind);
    await clientOf(kv.port).flushall();
    const link = await startDeafLink(kv.port, 'deaf');
    close = () => link.close();
    const { sidecar, client } = await startAnew(link.port, { lookIntervalMs: 50 });
    const direct = clientOf(kv.port);
    await client.xadd('deaf', '*', 'n', '0');
    const ids = [await client.xadd('s', '*', 'n', '0'), await client.xadd('t', '*', 'n', '1')];
    await looks(sidecar, 2);
    const states = new Set<string>();
    const watching = setInterval(() => states.add(sidecar.recovery.gate.state), 5);
    link.deaf = true;
    const status = () => sidecar.recovery.status();
    await eventually('it is marked', () => status().troubled.length > 0, 20_000);
    expect(status().troubled).toEqual([
      { stream: 'deaf', database: 0, mode: 'normal', cause: 'the KV store does not answer when it is read' },
    ]);
    await looks(sidecar, 2);
    await direct.del('s', 't');
    await eventually('the others are restored', () => status().restoresTotal === 2);
    expect([(await direct.xrange('s', '-', '+'))[0]![0], (await direct.xrange('t', '-', '+'))[0]![0]]).toEqual(ids);
    // Whether it is there is asked all the same.
    await direct.del('deaf');
    await eventually('it is missed', () => status().lossesTotal === 3);
    expect(states.has('down')).toBe(false);
    clearInterval(watching);
    link.deaf = false;
    await restored(sidecar, 3);
    expect(await direct.xlen('deaf')).toBe(1);
  }, 60_000);
});
