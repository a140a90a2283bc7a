/**
 * What one case after the other is played on: a KV server, a database, and one or two sidecars in this process, each behind proxies of its
 * own on both connections.
 *
 *   client ──▶ sidecar n ──▶ proxy ──▶ KV server
 *                    └─────▶ proxy ──▶ Postgres
 *
 * A sidecar dies by having all its connections cut for good, those of its clients as well. What is left of it in this process reaches
 * nothing any more, as a dead one.
 */
import { createHash, randomBytes } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import pg from 'pg';
import pino from 'pino';
import type { Holdfast } from '../../src/composition/sidecar.ts';
import { loadConfig } from '../../src/config/load-config.ts';
import { freePort } from '../../src/embedded/free-port.ts';
import { startHoldfast } from '../../src/serve.ts';
import type { KvKind } from '../chaos/kv-node.ts';
import { until } from '../chaos/process-control.ts';
import { BoundaryProxy } from './boundary-proxy.ts';
import { postgresReplies, postgresRequests, readRespReply, readRespRequest } from './frames.ts';
import { KvStore, PASSWORD } from './kv-store.ts';
import { connectTalker, demand, type Talker } from './raw-talk.ts';

export const SCOPED_USER = 'tenant';
const SCOPE = 'sc:';
const LOOK_MS = 100;
const HOLD_MS = 4000;
const REST_MS_MAX = 20_000;
const STOP_MS_MAX = 30_000;
/** Each look reads the witness once. */
const LOOK_READS = 'holdfast:epoch';

export interface MatrixSidecar {
  readonly port: number;
  readonly kvProxy: BoundaryProxy;
  readonly ledgerProxy: BoundaryProxy;
  readonly dead: boolean;
  /** How often it has compared so far. */
  readonly looks: number;
  /** Ends it at once, as kill -9 does. */
  die(): void;
  /** Why it is not at rest, or nothing. */
  unrest(): Promise<string | undefined>;
  stop(): Promise<void>;
}

export interface LaneOptions {
  readonly kv: KvKind;
  /** A superuser's. */
  readonly postgresUrl: string;
  readonly directory: string;
}

async function startMatrixSidecar(lane: Lane, name: string): Promise<MatrixSidecar> {
  const kvProxy = await BoundaryProxy.start(
    { requests: () => readRespRequest, replies: () => readRespReply },
    lane.kv.port,
  );
  const ledgerProxy = await BoundaryProxy.start(
    { requests: postgresRequests, replies: postgresReplies },
    Number(new URL(lane.databaseUrl).port),
  );
  const database = new URL(lane.databaseUrl);
  database.port = String(ledgerProxy.port);
  const file = join(lane.directory, `${name}.yaml`);
  const passwordHash = createHash('sha256').update(PASSWORD).digest('hex');
  const port = await freePort();
  await writeFile(
    file,
    JSON.stringify({
      listen: `127.0.0.1:${port}`,
      kv: { url: `redis://:${PASSWORD}@127.0.0.1:${kvProxy.port}` },
      ledger: { database: database.href },
      checkpoint: { intervalMs: LOOK_MS },
      limits: { holdMs: HOLD_MS },
      users: { [SCOPED_USER]: { password: `sha256:${passwordHash}`, scope: SCOPE } },
      http: 'off',
      dataDir: join(lane.directory, name),
    }),
  );
  const { config } = loadConfig({ args: ['--config', file], env: {}, workingDirectory: lane.directory });
  const level = process.env.HOLDFAST_TEST_LOG ?? 'silent';
  const holdfast: Holdfast = await startHoldfast(config, pino({ level, name }));
  let looks = 0;
  kvProxy.watch(({ words: [command, key] }) => {
    if (command?.toUpperCase() === 'GET' && key === LOOK_READS) looks += 1;
  });
  let dead = false;
  let stopping: Promise<void> | undefined;
  const stop = (): Promise<void> => {
    if (stopping !== undefined) return stopping;
    stopping = holdfast
      .stop()
      .catch(() => undefined)
      .then(() => {
        kvProxy.close();
        ledgerProxy.close();
      });
    return stopping;
  };
  return {
    port,
    kvProxy,
    ledgerProxy,
    get dead() {
      return dead;
    },
    get looks() {
      return looks;
    },
    die() {
      dead = true;
      kvProxy.cut();
      ledgerProxy.cut();
      lane.dropClients(port);
      lane.buried.push(stop());
    },
    async unrest() {
      const { ledger } = await holdfast.status();
      if (!ledger.available) return 'the ledger is not available';
      if (ledger.state !== 'open') return `state ${ledger.state}: ${ledger.lastError ?? ''}`;
      const troubled = ledger.streams.find(({ mode }) => mode !== 'normal');
      return troubled === undefined ? undefined : `${troubled.name} is ${troubled.mode}: ${ledger.lastError ?? ''}`;
    },
    stop,
  };
}

export class Lane {
  readonly kv: KvStore;
  readonly directory: string;
  /** What dead sidecars still have to end in this process. */
  readonly buried: Promise<void>[] = [];
  readonly #options: LaneOptions;
  readonly #clients = new Map<Talker, number>();
  readonly #databaseName: string;
  databaseUrl: string;
  /** The first is where the case's client is. */
  sidecars: MatrixSidecar[] = [];
  #started = 0;
  #direct: Talker | undefined;
  #pool: pg.Pool | undefined;

  private constructor(options: LaneOptions, kvPort: number) {
    this.#options = options;
    this.directory = options.directory;
    this.kv = new KvStore(options.kv, kvPort, join(options.directory, 'kv'));
    this.#databaseName = `windows_${randomBytes(6).toString('hex')}`;
    const url = new URL(options.postgresUrl);
    url.pathname = `/${this.#databaseName}`;
    this.databaseUrl = url.href;
  }

  static async start(options: LaneOptions): Promise<Lane> {
    await mkdir(options.directory, { recursive: true });
    const lane = new Lane(options, await freePort());
    await Promise.all([lane.kv.start(), lane.#onServer(`CREATE DATABASE ${lane.#databaseName}`)]);
    lane.#pool = new pg.Pool({ connectionString: lane.databaseUrl, max: 2 });
    lane.#pool.on('error', () => undefined);
    return lane;
  }

  async #onServer(sql: string): Promise<void> {
    const client = new pg.Client({ connectionString: this.#options.postgresUrl });
    await client.connect();
    try {
      await client.query(sql);
    } finally {
      await client.end();
    }
  }

  /** Has so many living sidecars. */
  async staff(count: number): Promise<void> {
    this.sidecars = this.sidecars.filter(({ dead }) => !dead);
    while (this.sidecars.length > count) await this.sidecars.pop()!.stop();
    while (this.sidecars.length < count) this.sidecars.push(await this.#hire());
  }

  /** A new sidecar in the place of the first. */
  async replaceFirst(): Promise<void> {
    this.sidecars[0] = await this.#hire();
  }

  #hire(): Promise<MatrixSidecar> {
    this.#started += 1;
    return startMatrixSidecar(this, `sidecar-${this.#started}`);
  }

  /** Past Holdfast. */
  async direct(requests: readonly (readonly (string | Buffer)[])[]): Promise<unknown[]> {
    if (this.#direct === undefined) {
      this.#direct = await connectTalker(this.kv.port);
      await demand(this.#direct, [['AUTH', PASSWORD]]);
    }
    const answers = await this.#direct.talk(requests);
    if (!answers.includes(undefined)) return answers;
    this.#direct.close();
    this.#direct = undefined;
    return this.direct(requests);
  }

  async killKv(): Promise<void> {
    await this.kv.kill();
    this.#direct?.close();
    this.#direct = undefined;
  }

  /** How many rows it changed. */
  async sql(text: string): Promise<number> {
    return (await this.#pool!.query(text)).rowCount ?? 0;
  }

  /** From now on sessions may only read, or may write again. */
  async setReadOnly(readOnly: boolean): Promise<void> {
    await this.#onServer(`ALTER DATABASE ${this.#databaseName} SET default_transaction_read_only = ${readOnly}`);
    for (const { ledgerProxy } of this.sidecars) ledgerProxy.reset();
  }

  async client(port: number): Promise<Talker> {
    const talker = await connectTalker(port);
    this.#clients.set(talker, port);
    return talker;
  }

  dropClients(port?: number): void {
    for (const [talker, at] of this.#clients) {
      if (port !== undefined && at !== port) continue;
      talker.close();
      this.#clients.delete(talker);
    }
  }

  /** Resolves with nothing when all sidecars have compared twice more and find nothing to do; else with what keeps them. */
  async rest(): Promise<string | undefined> {
    let unrest: string | undefined = 'no look';
    const marks = new Map<MatrixSidecar, number>();
    try {
      await until(
        'rest',
        REST_MS_MAX,
        async () => {
          unrest = undefined;
          for (const sidecar of this.sidecars) {
            const since = marks.get(sidecar);
            unrest = await sidecar.unrest();
            // Two whole looks behind the moment in which it was found at rest first.
            if (unrest !== undefined) marks.delete(sidecar);
            else if (since === undefined) marks.set(sidecar, sidecar.looks);
            if (unrest === undefined && (since === undefined || sidecar.looks < since + 3)) unrest = 'no further look';
            if (unrest !== undefined) return false;
          }
          return true;
        },
        20,
      );
      return undefined;
    } catch {
      return unrest ?? 'no rest';
    }
  }

  async stop(): Promise<void> {
    this.dropClients();
    const ended = Promise.all([...this.sidecars.map((sidecar) => sidecar.stop()), ...this.buried]);
    await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, STOP_MS_MAX).unref())]);
    this.#direct?.close();
    await this.kv.kill();
    await this.#pool?.end();
    await this.#onServer(`DROP DATABASE IF EXISTS ${this.#databaseName} WITH (FORCE)`);
  }
}
