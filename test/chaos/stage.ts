/**
 * Everything that a run needs, started and stopped as one.
 *
 *   clients ──▶ sidecar n ──▶ link n ──▶ KV store (primary ◀──replication link── replica)
 *                     └─────▶ link n ──▶ Postgres
 *
 * Without sidecars there is no Postgres, and clients speak to the KV store through its link.
 */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { freePort } from '../../src/embedded/free-port.ts';
import { type ClientLife, createClient, createSidecar, type SupervisedActor } from './actors.ts';
import type { Checker } from './checker.ts';
import { connectClient } from './client-process.ts';
import { followHistory, type HistoryReader } from './history.ts';
import type { KvKind } from './kv-node.ts';
import { startKvPair } from './kv-pair.ts';
import { startLedgerNode } from './ledger-node.ts';
import type { Arena } from './nemeses.ts';
import { startTcpProxy, type TcpProxy } from './tcp-proxy.ts';
import { CONSUMERS, PRODUCERS, STREAMS } from './workload.ts';

export interface StageOptions {
  readonly seed: string;
  readonly kv: KvKind;
  readonly withReplica: boolean;
  readonly sidecars: number;
  /** The source tree that sidecars run from. */
  readonly root: string;
  readonly ratePerSecond: number;
  readonly directory: string;
  readonly startNs: bigint;
}

export interface Stage extends Arena {
  readonly sidecars: readonly SupervisedActor[];
  readonly producers: readonly SupervisedActor[];
  readonly consumers: readonly SupervisedActor[];
  /** Where clients connect to: the sidecars, or the KV store's link. */
  readonly ports: readonly number[];
  /** Gives the checker what clients wrote down since the last call. */
  poll(): void;
  readonly errorsPaths: readonly string[];
  close(): Promise<void>;
}

async function createGroups(port: number): Promise<void> {
  for (const { name, database, groups } of STREAMS) {
    const client = connectClient(port, database);
    for (const group of groups) await client.call('XGROUP', 'CREATE', name, group, '0', 'MKSTREAM');
    client.disconnect();
  }
}

export async function startStage(options: StageOptions, checker: Checker): Promise<Stage> {
  const { directory } = options;
  const closers: (() => Promise<void> | void)[] = [];
  async function close(): Promise<void> {
    for (const end of closers.splice(0).reverse()) await end();
  }
  async function startLinks(count: number, upstream: () => number): Promise<TcpProxy[]> {
    const links = await Promise.all(Array.from({ length: count }, () => startTcpProxy(upstream)));
    closers.push(...links.map((link) => () => link.close()));
    return links;
  }

  const readers = new Map<number, HistoryReader>();
  const errorsPaths: string[] = [];
  let lives = 0;
  function nextLife(): ClientLife {
    lives += 1;
    const life: ClientLife = {
      client: lives,
      historyPath: join(directory, `history-${lives}`),
      errorsPath: join(directory, `errors-${lives}`),
    };
    readers.set(lives, followHistory(life.historyPath));
    errorsPaths.push(life.errorsPath);
    return life;
  }
  function ended({ client }: ClientLife): void {
    const reader = readers.get(client)!;
    reader.read(checker.take);
    reader.close();
    readers.delete(client);
    checker.writerEnded(client);
  }

  try {
    const kvPorts = [await freePort(), await freePort()] as const;
    const kv = await startKvPair(options.kv, kvPorts, directory, options.withReplica);
    closers.push(() => kv.stop());
    const kvLinks = await startLinks(Math.max(1, options.sidecars), () => kv.primary.port);
    const [direct] = await startLinks(1, () => kv.primary.port);

    const sidecars: SupervisedActor[] = [];
    const sidecarPorts: number[] = [];
    let ledger: Arena['ledger'];
    let ledgerLinks: TcpProxy[] = [];
    if (options.sidecars > 0) {
      const dataDir = join(directory, 'postgres');
      await mkdir(dataDir);
      const node = await startLedgerNode(dataDir);
      ledger = node;
      closers.push(() => node.stop());
      ledgerLinks = await startLinks(options.sidecars, () => node.port);
      for (let i = 0; i < options.sidecars; i += 1) {
        const port = await freePort();
        const sidecar = createSidecar({
          ...{ root: options.root, port, kvPort: kvLinks[i]!.port, directory, name: `sidecar-${i}` },
          databaseUrl: node.urlVia(ledgerLinks[i]!.port),
        });
        sidecars.push(sidecar);
        sidecarPorts.push(port);
        closers.push(() => sidecar.kill());
        await sidecar.start();
      }
    }
    const ports = options.sidecars === 0 ? [kvLinks[0]!.port] : sidecarPorts;
    await createGroups(ports[0]!);

    const create = (kind: 'producer' | 'consumer', slot: number): SupervisedActor =>
      createClient(
        kind,
        {
          ...{ seed: options.seed, slot, startNs: String(options.startNs), ratePerSecond: options.ratePerSecond },
          ...{ port: ports[slot % ports.length]!, directPort: direct!.port, recreatesGroups: options.sidecars === 0 },
        },
        directory,
        nextLife,
        ended,
      );
    const producers = PRODUCERS.map((_, slot) => create('producer', slot));
    const consumers = CONSUMERS.map((_, slot) => create('consumer', slot));
    closers.push(async () => void (await Promise.all([...producers, ...consumers].map((actor) => actor.kill()))));
    await Promise.all([...consumers, ...producers].map((actor) => actor.start()));
    return {
      ...{ kv, ledger, kvLinks, ledgerLinks, sidecars, producers, consumers, ports, errorsPaths, close },
      poll() {
        for (const reader of readers.values()) reader.read(checker.take);
      },
    };
  } catch (error) {
    await close();
    throw error;
  }
}
