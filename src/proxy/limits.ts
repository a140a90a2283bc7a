/**
 * Bounds of the data plane. Every queue and buffer named here has a defined behaviour at its limit:
 * a session at `pipelineDepthMax` or with a congested lane is not read from; one over `outputBytesMax` is closed with a
 * logged reason; a connection over `clientsMax` gets `-ERR max number of clients reached`.
 */
export interface ProxyLimits {
  readonly clientsMax: number;
  /** Largest single argument, as `proto-max-bulk-len`. */
  readonly bulkBytesMax: number;
  /** Bytes of one request that Holdfast holds while it is incomplete; beyond it the client is closed. */
  readonly queryBufferBytesMax: number;
  /** Requests of more bytes than this are streamed over a lane of their own while they arrive. */
  readonly streamingBytesMin: number;
  /** Bytes of replies that wait for one client to read them. */
  readonly outputBytesMax: number;
  /** Requests of one session that may wait for their replies. */
  readonly pipelineDepthMax: number;
  /** Bytes that wait for the KV store on one lane before its sessions are not read from. */
  readonly laneBytesMax: number;
  /** How long requests wait for a lane while the KV store is away, before they are given up. */
  readonly holdMs: number;
  /**
   * What becomes of a client whose request the KV store does not answer: its connection is closed, as it would be without
   * Holdfast, or it gets `-KVDOWN`.
   */
  readonly onLost: 'close' | 'error';
  /** Idle dedicated lanes kept for reuse, for each upstream user, database and protocol version. */
  readonly idleLanesMax: number;
  /**
   * Lanes that no client has to itself (shared, idle and connecting ones), of all users, databases and protocol versions.
   * At the limit the least recently used one is closed for a new one; where all are in use, who needs one waits.
   */
  readonly sharedLanesMax: number;
  readonly connectTimeoutMs: number;
  /** Connections to the KV store that clients have to themselves (blocked, subscribed, in a transaction), of all together. */
  readonly ownLanesMax: number;
  /** The same, of the clients of one identity. */
  readonly tenantLanesMax: number;
  /** What one transaction may queue, with what it costs to hold it. */
  readonly transactionBytesMax: number;
  /** What the clients of one identity may have queued in transactions. */
  readonly tenantTransactionBytesMax: number;
  /** Bytes of replies that wait for those clients of one identity that read slowly. */
  readonly tenantOutputBytesMax: number;
  /** How long a client may take nothing of what waits for it. */
  readonly outputStalledMs: number;
}

export const DEFAULT_LIMITS: ProxyLimits = Object.freeze({
  clientsMax: 10_000,
  bulkBytesMax: 512 * 1024 * 1024,
  queryBufferBytesMax: 1024 * 1024 * 1024,
  streamingBytesMin: 1024 * 1024,
  outputBytesMax: 256 * 1024 * 1024,
  pipelineDepthMax: 16_384,
  laneBytesMax: 4 * 1024 * 1024,
  holdMs: 5_000,
  onLost: 'close',
  idleLanesMax: 64,
  sharedLanesMax: 512,
  connectTimeoutMs: 5_000,
  ownLanesMax: 9_000,
  tenantLanesMax: 5_000,
  transactionBytesMax: 128 * 1024 * 1024,
  tenantTransactionBytesMax: 512 * 1024 * 1024,
  tenantOutputBytesMax: 1024 * 1024 * 1024,
  outputStalledMs: 300_000,
});
