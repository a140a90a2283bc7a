/**
 * The faults. Each begins, lasts, and is healed; between two of them the resource is in order again. An extension is one
 * entry in `NEMESES`.
 */

import type { KvPair } from './kv-pair.ts';
import type { LedgerNode } from './ledger-node.ts';
import { until } from './process-control.ts';
import type { Fault } from './schedule.ts';
import type { Direction, TcpProxy } from './tcp-proxy.ts';
import { STREAMS, type StreamPlan } from './workload.ts';

/** What a fault takes hold of; two faults never hold one resource at once. */
export type Resource = 'kv' | 'ledger' | 'kv-link' | 'ledger-link' | 'sidecar' | 'producer' | 'consumer';

/** A process that the run can kill and start again in its place. */
export interface Actor {
  start(): Promise<void>;
  kill(): Promise<void>;
  /** Asks it to end, and waits for it. */
  terminate(): Promise<void>;
  pause(): void;
  resume(): void;
}

/** Everything that a fault can reach. */
export interface Arena {
  readonly kv: KvPair;
  readonly ledger: LedgerNode | undefined;
  /** Between sidecar n and the KV store. */
  readonly kvLinks: readonly TcpProxy[];
  /** Between sidecar n and Postgres. */
  readonly ledgerLinks: readonly TcpProxy[];
  readonly sidecars: readonly Actor[];
  readonly producers: readonly Actor[];
  readonly consumers: readonly Actor[];
}

interface Nemesis {
  readonly resource: Resource;
  readonly durationMs: { readonly min: number; readonly max: number };
  /** When the KV store comes to know less than it had answered for; `undefined`: it does not. */
  readonly losesData: 'at its beginning' | 'at its end' | 'throughout' | undefined;
  readonly needsReplica?: true;
  begin(arena: Arena, fault: Fault): void | Promise<void>;
  heal(arena: Arena, fault: Fault): void | Promise<void>;
}

const SHORT = { min: 50, max: 3000 };
const LONG = { min: 200, max: 9000 };
const INSTANT = { min: 0, max: 0 };
const SYNC_MS_MAX = 30_000;
const WITNESS = 'holdfast:epoch';

function streamFor(fault: Fault): StreamPlan {
  return STREAMS[Math.floor(fault.fraction * STREAMS.length)]!;
}

/** A fault on one actor: down (or still) for a while, then back. */
function actorFault(
  resource: 'sidecar' | 'producer' | 'consumer',
  actors: (arena: Arena) => readonly Actor[],
  begin: (actor: Actor) => void | Promise<void>,
  heal: (actor: Actor) => void | Promise<void>,
): Nemesis {
  return {
    resource,
    durationMs: LONG,
    losesData: undefined,
    begin: (arena, fault) => begin(actors(arena)[fault.index]!),
    heal: (arena, fault) => heal(actors(arena)[fault.index]!),
  };
}

function linkFault(resource: 'kv-link' | 'ledger-link', begin: (link: TcpProxy, fault: Fault) => void): Nemesis {
  const linkOf = (arena: Arena, fault: Fault): TcpProxy =>
    (resource === 'kv-link' ? arena.kvLinks : arena.ledgerLinks)[fault.index]!;
  return {
    resource,
    durationMs: LONG,
    losesData: undefined,
    begin: (arena, fault) => begin(linkOf(arena, fault), fault),
    heal(arena, fault) {
      const link = linkOf(arena, fault);
      // Half of the partitions end in resets, the other half let everything through that had waited.
      if (fault.fraction * 6 - Math.floor(fault.fraction * 6) < 0.5) link.reset();
      link.heal();
    },
  };
}

function holdDirections(fault: Fault): Direction[] {
  if (fault.fraction < 1 / 3) return ['toServer', 'toClient'];
  return fault.fraction < 2 / 3 ? ['toServer'] : ['toClient'];
}

const PAST_EVERYBODY = { resource: 'kv', durationMs: INSTANT, losesData: 'at its beginning' } as const;

export const NEMESES = {
  /** The append-only file is whole: all that was answered is (nearly always) there again. */
  'kv-kill': {
    ...{ resource: 'kv', durationMs: LONG, losesData: 'at its beginning' },
    begin: ({ kv }) => kv.primary.kill(),
    heal: ({ kv }) => kv.primary.start(),
  },
  'kv-empty-restart': {
    ...{ resource: 'kv', durationMs: SHORT, losesData: 'at its beginning' },
    async begin({ kv }) {
      await kv.primary.kill();
      await kv.primary.wipe();
    },
    heal: ({ kv }) => kv.primary.start(),
  },
  /** What is written during the fault's duration is lost. */
  'kv-old-rdb': {
    ...{ resource: 'kv', durationMs: LONG, losesData: 'at its end' },
    begin: ({ kv }) => kv.primary.snapshot(),
    async heal({ kv }) {
      await kv.primary.kill();
      await kv.primary.restoreSnapshot();
      await kv.primary.start('rdb');
    },
  },
  'kv-aof-truncated': {
    ...{ resource: 'kv', durationMs: SHORT, losesData: 'at its beginning' },
    async begin({ kv }, fault) {
      await kv.primary.kill();
      await kv.primary.truncateAppendOnlyFile(fault.fraction);
    },
    heal: ({ kv }) => kv.primary.start(),
  },
  'kv-pause': {
    ...{ resource: 'kv', durationMs: LONG, losesData: undefined },
    begin: ({ kv }) => kv.primary.pause(),
    heal: ({ kv }) => kv.primary.resume(),
  },
  /** The replica lags for the fault's duration, then the primary dies and the replica takes over. */
  'kv-failover': {
    ...{ resource: 'kv', durationMs: LONG, losesData: 'at its end', needsReplica: true },
    begin: ({ kv }) => kv.replicationLink.hold(['toServer', 'toClient']),
    async heal({ kv, kvLinks }) {
      await kv.primary.kill();
      await kv.promote();
      kv.replicationLink.heal();
      for (const link of kvLinks) link.reset();
      await kv.replica.wipe();
      await kv.attachReplica();
    },
  },
  /** The same, but the old primary lives on and becomes a replica while clients still hold connections to it. */
  'kv-failover-alive': {
    ...{ resource: 'kv', durationMs: LONG, losesData: 'at its end', needsReplica: true },
    begin: ({ kv }) => kv.replicationLink.hold(['toServer', 'toClient']),
    async heal({ kv, kvLinks }, fault) {
      await kv.promote();
      kv.replicationLink.heal();
      const demoted = kv.attachReplica();
      // Until the reset the sidecars speak to a server that has become a replica.
      await new Promise((resolve) => setTimeout(resolve, fault.fraction * 500));
      for (const link of kvLinks) link.reset();
      await demoted;
    },
  },
  /** The primary follows its own lagging replica for a moment, and takes over that one's data. */
  'kv-replicaof-and-back': {
    ...{ resource: 'kv', durationMs: LONG, losesData: 'at its end', needsReplica: true },
    begin: ({ kv }) => kv.replicationLink.hold(['toServer', 'toClient']),
    async heal({ kv }) {
      await kv.replica.client.call('REPLICAOF', 'NO', 'ONE');
      await kv.primary.client.call('REPLICAOF', '127.0.0.1', String(kv.replica.port));
      await until('primary in step with its replica', SYNC_MS_MAX, async () =>
        (await kv.primary.client.info('replication')).includes('master_link_status:up'),
      );
      await kv.primary.client.call('REPLICAOF', 'NO', 'ONE');
      kv.replicationLink.reset();
      kv.replicationLink.heal();
      await kv.attachReplica();
    },
  },
  'kv-flushall': {
    ...PAST_EVERYBODY,
    begin: async ({ kv }) => void (await kv.primary.client.flushall()),
    heal: () => {},
  },
  'kv-stream-deleted': {
    ...PAST_EVERYBODY,
    async begin({ kv }, fault) {
      const { database, name } = streamFor(fault);
      await kv.primary.client.multi().select(database).del(name).select(0).exec();
    },
    heal: () => {},
  },
  'kv-group-destroyed': {
    ...PAST_EVERYBODY,
    async begin({ kv }, fault) {
      const { database, name, groups } = streamFor(fault);
      const group = groups[0] ?? 'none';
      await kv.primary.client.multi().select(database).xgroup('DESTROY', name, group).select(0).exec();
    },
    heal: () => {},
  },
  'kv-witness-deleted': {
    ...PAST_EVERYBODY,
    begin: async ({ kv }) => void (await kv.primary.client.del(WITNESS)),
    heal: () => {},
  },
  'kv-eviction': {
    ...{ resource: 'kv', durationMs: { min: 300, max: 2000 }, losesData: 'throughout' },
    async begin({ kv }, fault) {
      const used = Number(/^used_memory:(\d+)/m.exec(await kv.primary.client.info('memory'))![1]);
      await kv.primary.client.config(
        'SET',
        'maxmemory-policy',
        fault.fraction < 0.5 ? 'allkeys-random' : 'allkeys-lru',
      );
      await kv.primary.client.config('SET', 'maxmemory', String(Math.floor(used * (0.3 + 0.65 * fault.fraction))));
    },
    async heal({ kv }) {
      await kv.primary.client.config('SET', 'maxmemory', '0');
      await kv.primary.client.config('SET', 'maxmemory-policy', 'noeviction');
    },
  },
  'kv-out-of-memory': {
    ...{ resource: 'kv', durationMs: SHORT, losesData: undefined },
    begin: async ({ kv }) => void (await kv.primary.client.config('SET', 'maxmemory', '1')),
    heal: async ({ kv }) => void (await kv.primary.client.config('SET', 'maxmemory', '0')),
  },
  'kv-link-cut': linkFault('kv-link', (link) => link.cut()),
  'kv-link-held': linkFault('kv-link', (link, fault) => link.hold(holdDirections(fault))),
  'kv-link-slow': linkFault('kv-link', (link, fault) => link.delay(5 + fault.fraction * 200)),
  /** The connection breaks for the sidecar, yet what it had sent arrives at the KV store later. */
  'kv-link-late': {
    ...{ resource: 'kv-link', durationMs: INSTANT, losesData: undefined },
    begin: ({ kvLinks }, fault) => kvLinks[fault.index]!.deliverLate(100 + fault.fraction * 2500),
    heal: () => {},
  },
  'ledger-kill': {
    ...{ resource: 'ledger', durationMs: LONG, losesData: undefined },
    begin: async ({ ledger }) => ledger?.kill(),
    heal: async ({ ledger }) => ledger?.start(),
  },
  'ledger-pause': {
    ...{ resource: 'ledger', durationMs: LONG, losesData: undefined },
    begin: ({ ledger }) => ledger?.pause(),
    heal: ({ ledger }) => ledger?.resume(),
  },
  'ledger-link-cut': linkFault('ledger-link', (link) => link.cut()),
  'ledger-link-held': linkFault('ledger-link', (link, fault) => link.hold(holdDirections(fault))),
  'ledger-link-slow': linkFault('ledger-link', (link, fault) => link.delay(5 + fault.fraction * 200)),
  'sidecar-kill': actorFault(
    'sidecar',
    (arena) => arena.sidecars,
    (actor) => actor.kill(),
    (actor) => actor.start(),
  ),
  'sidecar-pause': actorFault(
    'sidecar',
    (arena) => arena.sidecars,
    (actor) => actor.pause(),
    (actor) => actor.resume(),
  ),
  'sidecar-restart': actorFault(
    'sidecar',
    (arena) => arena.sidecars,
    (actor) => actor.terminate(),
    (actor) => actor.start(),
  ),
  'producer-kill': actorFault(
    'producer',
    (arena) => arena.producers,
    (actor) => actor.kill(),
    (actor) => actor.start(),
  ),
  'producer-pause': actorFault(
    'producer',
    (arena) => arena.producers,
    (actor) => actor.pause(),
    (actor) => actor.resume(),
  ),
  'consumer-kill': actorFault(
    'consumer',
    (arena) => arena.consumers,
    (actor) => actor.kill(),
    (actor) => actor.start(),
  ),
  'consumer-pause': actorFault(
    'consumer',
    (arena) => arena.consumers,
    (actor) => actor.pause(),
    (actor) => actor.resume(),
  ),
  /** What it was given meanwhile is nobody's until somebody takes it over. */
  'consumer-hung': actorFault(
    'consumer',
    (arena) => arena.consumers,
    (actor) => actor.pause(),
    async (actor) => {
      await actor.kill();
      await actor.start();
    },
  ),
} as const satisfies Record<string, Nemesis>;

export type NemesisName = keyof typeof NEMESES;
export const NEMESIS_NAMES = Object.keys(NEMESES) as NemesisName[];

export function nemesisOf(name: NemesisName): Nemesis {
  return NEMESES[name];
}
