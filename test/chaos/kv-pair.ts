/**
 * The KV store of a run: two servers, one of which is the primary. The other replicates from it over a link that can
 * be held, and is promoted by the failover nemeses with whatever it has by then.
 */
import { join } from 'node:path';
import { type KvKind, KvNode } from './kv-node.ts';
import { until } from './process-control.ts';
import { startTcpProxy, type TcpProxy } from './tcp-proxy.ts';

export interface KvPair {
  readonly primary: KvNode;
  readonly replica: KvNode;
  /** Between replica and primary. */
  readonly replicationLink: TcpProxy;
  /** Makes the replica follow the primary (again) and waits until it is in step. */
  attachReplica(): Promise<void>;
  /** From now on the replica is the primary. The old one is left as it is. */
  promote(): Promise<void>;
  stop(): Promise<void>;
}

const SYNC_MS_MAX = 30_000;

export async function startKvPair(
  kind: KvKind,
  ports: readonly [number, number],
  directory: string,
  withReplica: boolean,
): Promise<KvPair> {
  const nodes = [
    new KvNode(kind, ports[0], join(directory, 'kv-0')),
    new KvNode(kind, ports[1], join(directory, 'kv-1')),
  ] as const;
  let primary: 0 | 1 = 0;
  const primaryNode = (): KvNode => nodes[primary];
  const replicaNode = (): KvNode => nodes[primary === 0 ? 1 : 0];
  const replicationLink = await startTcpProxy(() => primaryNode().port);

  async function attachReplica(): Promise<void> {
    if (!replicaNode().running) await replicaNode().start();
    await replicaNode().client.call('REPLICAOF', '127.0.0.1', String(replicationLink.port));
    await until('replica in step', SYNC_MS_MAX, async () =>
      (await replicaNode().client.info('replication')).includes('master_link_status:up'),
    );
  }
  await nodes[0].start();
  if (withReplica) await attachReplica();
  return {
    get primary() {
      return primaryNode();
    },
    get replica() {
      return replicaNode();
    },
    replicationLink,
    attachReplica,
    async promote() {
      await replicaNode().client.call('REPLICAOF', 'NO', 'ONE');
      primary = primary === 0 ? 1 : 0;
      replicationLink.reset();
    },
    async stop() {
      await Promise.all(nodes.map((node) => node.stop()));
      await replicationLink.close();
    },
  };
}
