/**
 * The isolation campaign: tenants with random commands through a whole Holdfast, and an observer at the KV store itself.
 *
 *   alfa ─┐                       what every tenant hears is searched for marks that only others write, and for the names
 *   bravo ├─▶ Holdfast ─▶ KV      of scopes; "guess" begins half of its names with the prefixes of others, and may hear
 *   guess │     store ◀─ observer them, for it said them itself; "flight" chooses its scope, by session and by command
 *   flight┘
 *
 * The observer finds: keys and libraries outside the scopes, a mark in a scope that is not its writer's, a change of the
 * keys that belong to nobody, and whatever the second fence had to stop (nothing may come so far).
 * Commands are what the seed says; how those of several connections interleave is not.
 */
import { createHash } from 'node:crypto';
import { connect, type Socket } from 'node:net';
import { startLedgerDatabases } from '../../bench/ledger-databases.ts';
import { type KvBinary, startHoldfast, startKv } from '../../bench/processes.ts';
import { freePort } from '../../src/embedded/free-port.ts';
import { request } from '../../src/resp/encode.ts';
import { type Reply, replyValue } from '../../src/resp/reply.ts';
import { ReplyScanner } from '../../src/resp/reply-scanner.ts';
import { STATE_CHANGES } from '../scope/script-attacks.ts';
import { connectRaw, type RawClient } from '../support/raw-client.ts';
import { type DocumentedCommand, generateRequest, readCommandDocs } from './command-generator.ts';
import { type Random, seededRandom } from './random.ts';
import { ALL_KEYS, type Request, tenantCommands } from './scope-commands.ts';

export interface IsolationOptions {
  readonly server: KvBinary;
  readonly seed: number;
  readonly commands: number;
  /** Stops after so many. */
  readonly violationsMax: number;
  /** Another checkout of Holdfast than this one. */
  readonly checkout?: string;
  readonly onProgress?: (done: number) => void;
}

export interface IsolationReport {
  readonly commands: number;
  readonly replies: number;
  readonly errors: number;
  readonly pushes: number;
  readonly connections: number;
  /** Looks of the observer, keys that it saw, and looks at which the server's error statistics named tenants. */
  readonly looks: number;
  readonly keysSeen: number;
  readonly errorsNamed: number;
  /** The most frequent errors, by their first words. */
  readonly errorKinds: readonly (readonly [text: string, count: number])[];
  readonly violations: readonly string[];
}

interface Tenant {
  readonly user: string;
  readonly prefixes: readonly string[];
  readonly mark: string;
  readonly guesses: readonly string[];
  /** Before each command of a session that may choose its scope, sometimes. */
  readonly template: boolean;
}

/** A scope that nobody logs in to: its keys must stay as they are. Bravo's prefix, read as a pattern, matches it. */
const QUIET = 'tenant-bravo:';
const ALFA = 'tenant-alfa:';
const BRAVO = 'tenant-b?avo:';
const GUESS = 'tenant-guess:';
const FLIGHT_SCOPES = ['v1/org/fleet/1/', 'v1/org/fleet/2/'];
const SHARED = 'common';
const TENANTS: readonly Tenant[] = [
  { user: 'alfa', prefixes: [ALFA], mark: 'ALFA=', guesses: [], template: false },
  { user: 'bravo', prefixes: [BRAVO], mark: 'BRAVO=', guesses: [], template: false },
  {
    user: 'guess',
    prefixes: [GUESS],
    mark: 'GUESS=',
    guesses: [ALFA, BRAVO, QUIET, GUESS, ...FLIGHT_SCOPES, '__keyspace@0__:'],
    template: false,
  },
  { user: 'flight', prefixes: FLIGHT_SCOPES, mark: 'FLIGHT=', guesses: [], template: true },
];
const OBSERVER_MARK = 'NOBODY=';
/** Of INFO: what counts or tells what all do. */
const FIGURES = ['errorstat_', 'cmdstat_', 'latency_percentiles_', 'used_memory:', 'total_error'];
const DATABASES = [0, 1, 2, 5];
const BATCH_MAX = 40;
const BATCHES_EACH = 60;
const REPLY_TIMEOUT_MS = 60_000;
const LOOK_EVERY = 20_000;
const MINUS = 45;
const PUSH = 62;

/** Commands of the documented generator that would end a session, take away its identity, or keep it waiting. */
const NOT_GENERATED =
  /^(quit|reset|hello|auth|wait|waitaof|multi|exec|discard|watch|unwatch|s?subscribe|psubscribe|unsubscribe|punsubscribe|sunsubscribe|select|b[lrz].*pop.*|blmove|xread|xreadgroup|flushall|flushdb|client\|(reply|kill|tracking|no-touch)|function\|(flush|delete|load)|script\|flush)$/;

const CONFIGURED = Object.fromEntries(
  [...TENANTS, { user: 'quiet', prefixes: [QUIET], template: false }].map(({ user, prefixes, template }) => [
    user,
    {
      password: `sha256:${createHash('sha256').update(user).digest('hex')}`,
      ...(template
        ? { scope: 'v1/{orgId}/{fleet}/{templateVersion}/', may: ['set-scope'], shared: [SHARED] }
        : { scope: prefixes[0] }),
    },
  ]),
);

/** What a tenant must not hear; `fenceUsers` is how the names of the second fence's users begin. */
function forbiddenFor(tenant: Tenant, fenceUsers: string): Buffer[] {
  const marks = [OBSERVER_MARK, ...TENANTS.filter((other) => other !== tenant).map((other) => other.mark)];
  const names = tenant.guesses.length > 0 ? [] : [ALFA, BRAVO, QUIET, GUESS];
  if (names.length > 0 && !tenant.template) names.push('v1/org/');
  // Functions and libraries by the names that the KV store knows them by have something before them.
  return [...marks, ...names, ...FIGURES, fenceUsers, '_peek', '#!lua name=hf'].map((text) => Buffer.from(text));
}

interface Campaign {
  readonly port: number;
  readonly fenceUsers: string;
  readonly commands: readonly DocumentedCommand[];
  readonly enough: () => boolean;
  readonly count: {
    commands: number;
    replies: number;
    errors: number;
    pushes: number;
    connections: number;
    looks: number;
    keysSeen: number;
    errorsNamed: number;
  };
  readonly errorKinds: Map<string, number>;
  violate(text: string): void;
}

function show(request: Request): string {
  return request.map((arg) => JSON.stringify(arg.toString().slice(0, 120))).join(' ');
}

/** One connection of a tenant: sends batches, reads until the mark behind each batch comes back, looks at every byte. */
class TenantConnection {
  private readonly socket: Socket;
  private readonly forbidden: readonly Buffer[];
  private readonly longest: number;
  private tail = Buffer.alloc(0);
  private chunks: Buffer[] = [];
  private waiting: { nonce: Buffer; resolve(whole: boolean): void } | undefined;
  private closed = false;
  private sent: readonly Request[] = [];
  private readonly campaign: Campaign;
  private readonly tenant: Tenant;

  constructor(campaign: Campaign, tenant: Tenant) {
    this.campaign = campaign;
    this.tenant = tenant;
    this.forbidden = forbiddenFor(tenant, campaign.fenceUsers);
    this.longest = Math.max(...this.forbidden.map((text) => text.length));
    this.socket = connect(campaign.port, '127.0.0.1');
    this.socket.setNoDelay(true);
    this.socket.on('data', (chunk) => this.read(chunk));
    this.socket.on('error', () => undefined);
    this.socket.on('close', () => {
      this.closed = true;
      this.waiting?.resolve(false);
    });
    campaign.count.connections += 1;
  }

  get usable(): boolean {
    return !this.closed;
  }

  close(): void {
    this.socket.destroy();
  }

  /** Sends, and resolves when `nonce`, which the last request makes the server say, has come: or false. */
  async run(requests: readonly Request[], nonce: string): Promise<boolean> {
    if (this.closed) return false;
    this.sent = requests;
    this.chunks = [];
    const came = new Promise<boolean>((resolve) => {
      this.waiting = { nonce: Buffer.from(nonce), resolve };
    });
    const timer = setTimeout(() => this.waiting?.resolve(false), REPLY_TIMEOUT_MS);
    this.socket.write(Buffer.concat(requests.map((one) => request([...one]))));
    const whole = await came;
    clearTimeout(timer);
    this.waiting = undefined;
    if (!whole && !this.closed) {
      this.campaign.violate(`${this.tenant.user} was left without a reply; sent ${this.said()}`);
      this.close();
    }
    this.campaign.count.commands += requests.length;
    this.tally();
    return whole && !this.closed;
  }

  private said(): string {
    return this.sent.map(show).join(' ; ').slice(0, 6000);
  }

  private read(chunk: Buffer): void {
    this.chunks.push(chunk);
    const seen = this.tail.length === 0 ? chunk : Buffer.concat([this.tail, chunk]);
    for (const text of this.forbidden) {
      const at = seen.indexOf(text);
      if (at < 0) continue;
      const around = seen.toString('latin1', Math.max(0, at - 200), at + 200);
      this.campaign.violate(`${this.tenant.user} hears ${text}: ${JSON.stringify(around)}; sent ${this.said()}`);
    }
    this.tail = Buffer.from(seen.subarray(Math.max(0, seen.length - this.longest + 1)));
    const { waiting } = this;
    // The nonce is short: it is looked for in what has just come and a little before.
    if (waiting !== undefined && (seen.includes(waiting.nonce) || this.tail.includes(waiting.nonce)))
      waiting.resolve(true);
  }

  private tally(): void {
    const { count, errorKinds } = this.campaign;
    const scanner = new ReplyScanner();
    const received = Buffer.concat(this.chunks);
    for (let at = 0; at < received.length && !scanner.malformed; ) {
      const start = at;
      at = scanner.scan(received, at, received.length);
      if (!scanner.complete) break;
      if (received[start] === PUSH) count.pushes += 1;
      else count.replies += 1;
      if (received[start] !== MINUS) continue;
      count.errors += 1;
      const kind = received.toString('latin1', start, Math.min(at, start + 44)).split('\r')[0]!;
      errorKinds.set(kind, (errorKinds.get(kind) ?? 0) + 1);
    }
  }
}

function batchOf(random: Random, campaign: Campaign, tenant: Tenant, protocol: 2 | 3, commands: Commands): Request[] {
  const batch: Request[] = [];
  const plainOrWith = (one: Request): Request => {
    if (!tenant.template || !random.chance(0.3)) return one;
    return ['HOLDFAST', 'WITH', 'org', 'fleet', '2', ...one];
  };
  for (let left = 1 + random.below(BATCH_MAX); left > 0; left -= 1) {
    const dice = random.below(100);
    if (dice < 4) {
      if (random.chance(0.3)) batch.push(['WATCH', commands.key('string'), commands.key('list')]);
      batch.push(['MULTI']);
      if (random.chance(0.1)) batch.push(['WATCH', commands.key('string')]);
      for (let queued = 1 + random.below(6); queued > 0; queued -= 1) batch.push(plainOrWith(commands.next()));
      batch.push([random.chance(0.9) ? 'EXEC' : 'DISCARD']);
    } else if (dice < 7 && protocol === 3) batch.push(commands.listen());
    else if (dice < 9 && protocol === 3) batch.push(commands.track());
    else if (dice < 16) batch.push(generateRequest(random, random.pick(campaign.commands)));
    else if (dice === 99 && random.chance(0.05)) batch.push(commands.flush(), ...commands.begin());
    else if (tenant.template && dice === 98) {
      batch.push(['XADD', SHARED, 'MAXLEN', '20', '*', 'f', commands.value()], ['XLEN', SHARED]);
    } else batch.push(plainOrWith(commands.next()));
  }
  return batch;
}

type Commands = ReturnType<typeof tenantCommands>;

async function login(connection: TenantConnection, tenant: Tenant, protocol: 2 | 3): Promise<boolean> {
  const requests: Request[] = [['HELLO', String(protocol), 'AUTH', tenant.user, tenant.user]];
  if (tenant.template) requests.push(['HOLDFAST', 'SCOPE', 'SET', 'org', 'fleet', '1']);
  return connection.run([...requests, ['ECHO', '<logged-in>']], '<logged-in>');
}

/** Connections of a tenant, one after the other, until it is enough. */
async function worker(campaign: Campaign, tenant: Tenant, seed: number): Promise<void> {
  const random = seededRandom(seed);
  const commands = tenantCommands(random, tenant);
  let batches = 0;
  while (!campaign.enough()) {
    const protocol = random.pick([2, 3] as const);
    const connection = new TenantConnection(campaign, tenant);
    let good = await login(connection, tenant, protocol);
    if (good) good = await connection.run([...commands.begin(), ['ECHO', '<begun>']], '<begun>');
    for (let left = 1 + random.below(BATCHES_EACH); good && left > 0 && !campaign.enough(); left -= 1) {
      batches += 1;
      const nonce = `<nonce-${batches}>`;
      const batch = batchOf(random, campaign, tenant, protocol, commands);
      good = await connection.run([...batch, ['DISCARD'], ['SELECT', '0'], ['ECHO', nonce]], nonce);
    }
    // Logged out, the same connection is nobody's: what it was subscribed to must not follow it.
    if (good && random.chance(0.3)) {
      const { user } = tenant;
      const asNobody: Request[] = [
        ['GET', 's0'],
        ['KEYS', '*'],
        ['HELLO', '3'],
        ['EVAL', "return redis.call('KEYS','*')", '0'],
      ];
      await connection.run([['RESET'], ...asNobody, ['AUTH', user, user], ['ECHO', '<reset>']], '<reset>');
    }
    connection.close();
  }
}

/** A RESP2 client that only listens, and changes what it listens to. */
async function listener(campaign: Campaign, tenant: Tenant, seed: number): Promise<void> {
  const random = seededRandom(seed);
  const commands = tenantCommands(random, tenant);
  let batches = 0;
  while (!campaign.enough()) {
    const connection = new TenantConnection(campaign, tenant);
    let good = await login(connection, tenant, 2);
    for (let left = 40; good && left > 0 && !campaign.enough(); left -= 1) {
      batches += 1;
      const nonce = `<heard-${batches}>`;
      const requests = Array.from({ length: 1 + random.below(4) }, () => commands.listen());
      // A channel of its own is confirmed last, whatever else it is subscribed to.
      good = await connection.run([...requests, ['SUBSCRIBE', nonce], ['UNSUBSCRIBE', nonce]], nonce);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    connection.close();
  }
}

/** What the KV store itself says of the keyspace. */
class Observer {
  private readonly client: RawClient;
  private readonly campaign: Campaign;
  private quiet = '';
  private libraries = '';

  constructor(client: RawClient, campaign: Campaign) {
    this.client = client;
    this.campaign = campaign;
  }

  /** Keys of nobody under all the names that tenants use: at the top, and in the scope that nobody logs in to. */
  async plant(): Promise<void> {
    await this.client.send('CONFIG', 'SET', 'notify-keyspace-events', 'KEA');
    for (const database of DATABASES.slice(0, 3)) {
      await this.client.send('SELECT', String(database));
      for (const name of [...ALL_KEYS, 'secret']) {
        for (const prefix of ['', QUIET]) {
          const key = Buffer.concat([Buffer.from(prefix), Buffer.from(name)]);
          if (key.length > 0) await this.client.send('SET', key, `${OBSERVER_MARK}${prefix}`);
        }
      }
    }
    await this.client.send(
      'FUNCTION',
      'LOAD',
      "#!lua name=everybody\nredis.register_function('everybody',function() end)",
    );
    this.quiet = await this.nobodysDigest();
    this.libraries = await this.librariesOfScripts();
  }

  /** What the server's Lua keeps for everybody's scripts. */
  private async librariesOfScripts(): Promise<string> {
    await this.client.send('SELECT', '9');
    const shown: string[] = [];
    for (const [, shows] of STATE_CHANGES)
      shown.push(JSON.stringify(replyValue(await this.client.send('EVAL', shows, '0'))));
    await this.client.send('FLUSHDB');
    await this.client.send('SELECT', '0');
    return shown.join();
  }

  private async nobodysDigest(): Promise<string> {
    const digests: string[] = [];
    for (const database of DATABASES.slice(0, 3)) {
      await this.client.send('SELECT', String(database));
      for (const prefix of ['', QUIET]) {
        const keys = [...ALL_KEYS, 'secret'].map((name) => Buffer.concat([Buffer.from(prefix), Buffer.from(name)]));
        digests.push(JSON.stringify(replyValue(await this.client.send('DEBUG', 'DIGEST-VALUE', ...keys))));
      }
    }
    return digests.join();
  }

  async look(): Promise<void> {
    const { count, violate } = this.campaign;
    count.looks += 1;
    if ((await this.nobodysDigest()) !== this.quiet) violate('keys of nobody have changed');
    const scripts = await this.librariesOfScripts();
    if (scripts !== this.libraries) violate(`scripts of others find other libraries: ${scripts}`);
    const errors = (await this.client.send('INFO', 'errorstats')).bytes.toString();
    if (TENANTS.some(({ mark }) => errors.includes(mark))) count.errorsNamed += 1;
    for (const database of DATABASES) {
      await this.client.send('SELECT', String(database));
      const keys = (await this.client.send('KEYS', '*')).items!.map((item) => Buffer.from(item.bytes));
      count.keysSeen += keys.length;
      for (const key of keys) await this.lookAt(database, key);
    }
    await this.client.send('SELECT', '0');
    for (const entry of (await this.client.send('ACL', 'LOG')).items ?? []) {
      violate(`the second fence had to stop ${JSON.stringify(replyValue(entry)).slice(0, 600)}`);
    }
    await this.client.send('ACL', 'LOG', 'RESET');
    const libraries = JSON.stringify(replyValue(await this.client.send('FUNCTION', 'LIST')));
    for (const [, name] of libraries.matchAll(/"library_name","([^"]*)"/g)) {
      if (!/^(hf[0-9a-f]{16}_.*|everybody)$/.test(name!)) violate(`a library outside the scopes: ${name}`);
    }
  }

  private async lookAt(database: number, key: Buffer): Promise<void> {
    const name = key.toString('latin1');
    const owner = TENANTS.find(({ prefixes }) => prefixes.some((prefix) => name.startsWith(prefix)));
    if (owner === undefined) {
      const nobodys = [...ALL_KEYS, 'secret'].some((own) => {
        const text = Buffer.from(own).toString('latin1');
        return name === text || name === `${QUIET}${text}`;
      });
      // Streams under restoration have a name that begins with the witness's.
      if (!nobodys && name !== SHARED && !name.startsWith('holdfast:epoch')) {
        this.campaign.violate(`a key outside the scopes in database ${database}: ${JSON.stringify(name)}`);
      }
      return;
    }
    const dump: Reply = await this.client.send('DUMP', key);
    for (const { mark } of [...TENANTS, { mark: OBSERVER_MARK }]) {
      if (mark !== owner.mark && !dump.isNull && dump.bytes.includes(mark)) {
        this.campaign.violate(`${JSON.stringify(name)} in database ${database} holds what ${mark} marks`);
      }
    }
  }
}

/** How the names of users behind scopes begin in this run: `holdfast-1234abcd-`. */
async function findFenceUsers(direct: RawClient, port: number): Promise<string> {
  const client = await connectRaw(port);
  await client.send('AUTH', 'alfa', 'alfa');
  await client.send('GET', 's0');
  const users = JSON.stringify(replyValue(await direct.send('ACL', 'USERS')));
  await client.close();
  const start = /holdfast-[0-9a-f]{8}-/.exec(users)?.[0];
  if (start === undefined) throw new Error(`no user of the second fence among ${users}`);
  return start;
}

const SERVER_ARGS = ['--enable-debug-command', 'yes', '--acllog-max-len', '256'];

export async function runIsolation(options: IsolationOptions): Promise<IsolationReport> {
  const running: { stop(): Promise<void> }[] = [];
  try {
    const ledger = await startLedgerDatabases();
    running.push(ledger);
    const kv = await startKv(options.server, SERVER_ARGS);
    running.push(kv);
    const port = await freePort();
    const front = await startHoldfast({
      listeners: [{ address: `127.0.0.1:${port}`, requireAuth: true }],
      kvUrl: `redis://127.0.0.1:${kv.port}`,
      databaseUrl: await ledger.create(),
      settings: { users: CONFIGURED },
      ...(options.checkout === undefined ? {} : { checkout: options.checkout }),
    });
    running.push(front);
    const direct = await connectRaw(kv.port);
    const fenceUsers = await findFenceUsers(direct, port);
    const violations: string[] = [];
    const count = {
      commands: 0,
      replies: 0,
      errors: 0,
      pushes: 0,
      connections: 0,
      looks: 0,
      keysSeen: 0,
      errorsNamed: 0,
    };
    const documented = (await readCommandDocs(direct)).filter(({ name }) => !NOT_GENERATED.test(name));
    const campaign: Campaign = {
      port,
      fenceUsers,
      commands: documented,
      enough: () =>
        count.commands >= options.commands || violations.length >= options.violationsMax || !front.running(),
      count,
      errorKinds: new Map(),
      violate: (text) => {
        if (violations.length < options.violationsMax) violations.push(text);
      },
    };
    const observer = new Observer(direct, campaign);
    await observer.plant();
    const seeds = seededRandom(options.seed);
    const seed = (): number => seeds.below(2 ** 31);
    const workers = TENANTS.flatMap((tenant) => [
      worker(campaign, tenant, seed()),
      worker(campaign, tenant, seed()),
      listener(campaign, tenant, seed()),
    ]);
    const observe = async (): Promise<void> => {
      for (let next = LOOK_EVERY; !campaign.enough(); ) {
        await new Promise((resolve) => setTimeout(resolve, 250));
        if (count.commands < next) continue;
        next = count.commands + LOOK_EVERY;
        await observer.look();
        options.onProgress?.(count.commands);
      }
    };
    await Promise.all([...workers, observe()]);
    await observer.look();
    if (!front.running()) violations.push(`Holdfast ended:\n${front.output()}`);
    await direct.close();
    const errorKinds = [...campaign.errorKinds].sort((a, b) => b[1] - a[1]).slice(0, 25);
    return { ...count, errorKinds, violations };
  } finally {
    for (const each of running.reverse()) await each.stop();
  }
}
