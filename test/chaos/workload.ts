/**
 * What a chaos run puts through the sidecars: streams, their groups, and who writes and reads them in which way.
 * Shared by the runner, the client processes and the checker; indexes into `STREAMS` and `groups` stand in the history.
 */
export interface StreamPlan {
  readonly name: string;
  readonly database: number;
  readonly groups: readonly string[];
  /** Consumers delete what they acknowledged (only where one group reads). */
  readonly deletesHandled: boolean;
  /** A janitor trims what every group has handled. */
  readonly trimmed: boolean;
}

export const STREAMS: readonly StreamPlan[] = [
  { name: 'chaos:orders', database: 0, groups: ['billing', 'audit'], deletesHandled: false, trimmed: true },
  { name: 'chaos:jobs', database: 0, groups: ['workers'], deletesHandled: true, trimmed: false },
  { name: 'chaos:transactions', database: 0, groups: ['a', 'b', 'c'], deletesHandled: false, trimmed: true },
  { name: 'chaos:numbered', database: 0, groups: ['workers'], deletesHandled: false, trimmed: false },
  { name: 'chaos:observed', database: 0, groups: ['workers'], deletesHandled: false, trimmed: false },
  { name: 'chaos:elsewhere', database: 9, groups: ['workers'], deletesHandled: false, trimmed: false },
  { name: 'chaos:log', database: 0, groups: [], deletesHandled: false, trimmed: false },
];

export function streamIndex(name: string): number {
  const index = STREAMS.findIndex((stream) => stream.name === name);
  if (index < 0) throw new Error(`no stream ${name} in the workload`);
  return index;
}

/**
 * - `single`: one XADD, its reply, the next.
 * - `pipeline`: several XADDs in one write.
 * - `transaction`: several XADDs inside MULTI/EXEC.
 * - `explicit`: the producer numbers the entries itself.
 * - `partial`: `ms-*` with the producer's own clock.
 * - `script`: XADD inside EVAL, which a sidecar cannot see.
 * - `direct`: XADD to the KV store, past every sidecar.
 */
export type AddStyle = 'single' | 'pipeline' | 'transaction' | 'explicit' | 'partial' | 'script' | 'direct';

export interface ProducerPlan {
  readonly stream: string;
  readonly style: AddStyle;
  /** XADDs in one batch. */
  readonly batch: number;
  /** Share of the run's rate. */
  readonly weight: number;
}

export interface ConsumerPlan {
  readonly streams: readonly string[];
  readonly group: string;
  readonly count: number;
  readonly blockMs: number;
  /** Upper end of the time an entry is worked on. */
  readonly workMs: number;
  /** `together`: one XACK for a whole reply; `script`: XACK inside EVAL. */
  readonly acknowledge: 'each' | 'together' | 'script';
}

/** One list for each producer process. */
export const PRODUCERS: readonly (readonly ProducerPlan[])[] = [
  [
    { stream: 'chaos:orders', style: 'single', batch: 1, weight: 2 },
    { stream: 'chaos:orders', style: 'pipeline', batch: 16, weight: 6 },
    { stream: 'chaos:jobs', style: 'pipeline', batch: 8, weight: 3 },
    { stream: 'chaos:transactions', style: 'transaction', batch: 4, weight: 2 },
    { stream: 'chaos:numbered', style: 'explicit', batch: 1, weight: 1 },
    { stream: 'chaos:log', style: 'pipeline', batch: 4, weight: 0.5 },
  ],
  [
    { stream: 'chaos:orders', style: 'single', batch: 1, weight: 2 },
    { stream: 'chaos:jobs', style: 'single', batch: 1, weight: 1 },
    { stream: 'chaos:transactions', style: 'transaction', batch: 2, weight: 1 },
    { stream: 'chaos:transactions', style: 'partial', batch: 1, weight: 0.5 },
    { stream: 'chaos:elsewhere', style: 'pipeline', batch: 4, weight: 1 },
    { stream: 'chaos:observed', style: 'single', batch: 1, weight: 0.5 },
    { stream: 'chaos:observed', style: 'script', batch: 1, weight: 0.5 },
    { stream: 'chaos:observed', style: 'direct', batch: 1, weight: 0.3 },
  ],
];

/** One list for each consumer process. */
export const CONSUMERS: readonly (readonly ConsumerPlan[])[] = [
  [
    { streams: ['chaos:orders'], group: 'billing', count: 50, blockMs: 500, workMs: 20, acknowledge: 'each' },
    { streams: ['chaos:orders'], group: 'audit', count: 100, blockMs: 2000, workMs: 400, acknowledge: 'together' },
    { streams: ['chaos:jobs'], group: 'workers', count: 20, blockMs: 1000, workMs: 50, acknowledge: 'each' },
    { streams: ['chaos:transactions'], group: 'a', count: 10, blockMs: 5000, workMs: 10, acknowledge: 'each' },
    { streams: ['chaos:transactions'], group: 'b', count: 50, blockMs: 500, workMs: 1000, acknowledge: 'script' },
  ],
  [
    { streams: ['chaos:orders'], group: 'billing', count: 20, blockMs: 1000, workMs: 100, acknowledge: 'together' },
    { streams: ['chaos:transactions'], group: 'c', count: 100, blockMs: 1000, workMs: 30, acknowledge: 'together' },
    {
      streams: ['chaos:numbered', 'chaos:observed'],
      ...{ group: 'workers', count: 20, blockMs: 1000, workMs: 50, acknowledge: 'each' },
    },
    { streams: ['chaos:jobs'], group: 'workers', count: 5, blockMs: 5000, workMs: 200, acknowledge: 'each' },
    { streams: ['chaos:elsewhere'], group: 'workers', count: 20, blockMs: 1000, workMs: 50, acknowledge: 'each' },
  ],
];

/** A pending entry that rests longer than this is taken over by another consumer. */
export const CLAIM_IDLE_MS = 2000;
/** How often each consumer looks for such entries. */
export const CLAIM_EVERY_MS = 1000;
