/**
 * Every setting of Holdfast: its name, its limits and its default stand here and nowhere else. `conf/holdfast.yaml` is
 * the commented reference of the same; a test keeps the two equal.
 *
 * The input is what the file, the environment and the flags say, merged (`load-config.ts`); the output is one frozen
 * Config with addresses, byte counts and secrets as what they are.
 */
import { z } from 'zod';
import { messageOf } from '../errors.ts';
import { type Address, parseAddress } from './address.ts';
import { Secret } from './secret.ts';

const BYTE_UNITS: Readonly<Record<string, number>> = { '': 1, b: 1, kb: 2 ** 10, mb: 2 ** 20, gb: 2 ** 30 };

/** A number of bytes, or Redis's way to say it: `16mb`, `1gb`. */
function bytes(min: number, max = Number.MAX_SAFE_INTEGER) {
  const message = `expected a number of bytes from ${min} to ${max}, such as 16mb`;
  return z.union([z.number(), z.string()], { error: message }).transform((value, context) => {
    const match = /^(\d+)\s*([kmg]?b)?$/i.exec(String(value));
    const count = match === null ? Number.NaN : Number(match[1]) * BYTE_UNITS[(match[2] ?? '').toLowerCase()]!;
    if (count >= min && count <= max) return count;
    context.addIssue({ code: 'custom', message });
    return z.NEVER;
  });
}

function count(min: number, max: number) {
  return z.number().int().min(min).max(max);
}

const DAY_MS = 86_400_000;

function milliseconds(min: number) {
  return count(min, DAY_MS);
}

function addressOrIssue(text: string, context: z.RefinementCtx): Address {
  try {
    return parseAddress(text);
  } catch (error) {
    context.addIssue({ code: 'custom', message: messageOf(error) });
    return z.NEVER;
  }
}

const address = z.string().transform(addressOrIssue);

/** One string, or several in commas, where a list of strings is meant. */
function globList() {
  return z.preprocess(
    (value) => (typeof value === 'string' ? value.split(',').map((glob) => glob.trim()) : value),
    z.array(z.string().min(1)).min(1),
  );
}

/** Of a file that must be there when Holdfast starts; the loader makes it absolute and looks. */
const filePath = z.string().min(1);

const listenerTls = z.strictObject({
  cert: filePath,
  key: filePath,
  /** Who may sign client certificates. */
  ca: filePath.optional(),
  requireClientCert: z.boolean().default(false),
});

const listener = z
  .strictObject({
    address,
    /** Everything on this listener is in that scope. */
    scope: z.string().min(1).optional(),
    /** Nothing is done for a client that has not logged in as one of `users`. */
    requireAuth: z.boolean().default(false),
    tls: listenerTls
      .refine((tls) => !tls.requireClientCert || tls.ca !== undefined, {
        message: 'requireClientCert needs a ca',
      })
      .optional(),
  })
  .refine((entry) => !entry.requireAuth || entry.scope === undefined, {
    message: 'requireAuth has no place beside a scope: everything there is in it, whoever logs in',
  });

const listenEntry = z.preprocess((value) => (typeof value === 'string' ? { address: value } : value), listener);

const listen = z.preprocess(
  (value) => (typeof value === 'string' ? [value] : value),
  z.array(listenEntry).min(1).prefault(['127.0.0.1:6380']),
);

export interface RemoteKv {
  readonly address: Address;
  readonly tls: boolean;
  readonly user: string | undefined;
  readonly password: Secret | undefined;
}

const kvUrl = z.string().transform((text, context): 'embedded' | RemoteKv => {
  if (text === 'embedded') return text;
  const fail = (message: string) => {
    context.addIssue({ code: 'custom', message });
    return z.NEVER;
  };
  if (text.startsWith('unix:')) {
    return { address: parseAddress(text), tls: false, user: undefined, password: undefined };
  }
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || (url.protocol !== 'redis:' && url.protocol !== 'rediss:') || url.hostname === '') {
    return fail('expected redis://host:port, rediss://host:port, unix:/path or embedded');
  }
  if (url.pathname !== '' && url.pathname !== '/') return fail('a database number has no place here: clients SELECT');
  return {
    address: { host: url.hostname.replace(/^\[|\]$/g, ''), port: url.port === '' ? 6379 : Number(url.port) },
    tls: url.protocol === 'rediss:',
    user: url.username === '' ? undefined : decodeURIComponent(url.username),
    password: url.password === '' ? undefined : new Secret(decodeURIComponent(url.password)),
  };
});

const secret = z
  .string()
  .min(1)
  .transform((value) => new Secret(value));

const kv = z.strictObject({
  url: kvUrl.prefault('embedded'),
  user: z.string().min(1).optional(),
  password: secret.optional(),
  passwordFile: filePath.optional(),
  tls: z
    .strictObject({
      ca: filePath.optional(),
      cert: filePath.optional(),
      key: filePath.optional(),
      serverName: z.string().min(1).optional(),
      /** False accepts any certificate: for test installations. */
      verify: z.boolean().default(true),
    })
    .refine((tls) => (tls.cert === undefined) === (tls.key === undefined), { message: 'cert and key go together' })
    .prefault({}),
  maxmemory: z
    .string()
    .regex(/^\d+([kmg]b?|b)?$/i, 'expected a size as the KV store writes it, such as 1gb')
    .default('1gb'),
  maxmemoryPolicy: z
    .enum([
      'allkeys-lru',
      'allkeys-lfu',
      'allkeys-random',
      'volatile-lru',
      'volatile-lfu',
      'volatile-random',
      'volatile-ttl',
      'noeviction',
    ])
    .default('allkeys-lru'),
  loglevel: z.enum(['debug', 'verbose', 'notice', 'warning', 'nothing']).default('warning'),
});

const ledger = z.strictObject({
  database: z
    .string()
    .refine((text) => text === 'embedded' || /^postgres(ql)?:\/\/./.test(text), {
      message: 'expected postgres://user@host:port/database or embedded',
    })
    .transform((text) => (text === 'embedded' ? text : new Secret(text)))
    .prefault('embedded'),
  passwordFile: filePath.optional(),
  streams: globList().prefault(['*']),
  onFailure: z.enum(['refuse', 'degrade']).default('refuse'),
  retentionDays: z.number().positive().max(36_500).default(7),
  entryBytesMax: bytes(1024, 512 * 2 ** 20).prefault('16mb'),
  streamsMax: count(1, 100_000_000).default(1_000_000),
  scopeStreamsMax: count(1, 100_000_000).default(100_000),
  acknowledgementFlushMs: milliseconds(1).default(200),
});

const PASSWORD_HASH = /^sha256:[0-9a-f]{64}$/i;

const user = z
  .strictObject({
    password: z
      .string()
      .regex(PASSWORD_HASH, 'expected sha256: and 64 hex digits, as `printf %s PASSWORD | sha256sum` gives them')
      .transform((text) => new Secret(text.slice('sha256:'.length).toLowerCase()))
      .optional(),
    passwordFile: filePath.optional(),
    /** A key prefix; `{orgId}`, `{fleet}` and `{templateVersion}` are filled in by HOLDFAST SCOPE. */
    scope: z
      .string()
      .regex(
        /^(?:[^{}]|\{(?:orgId|fleet|templateVersion)\})*$/,
        'the known parts are {orgId}, {fleet}, {templateVersion}',
      )
      .optional(),
    /** Without any: reading and writing all keys of its scope, or of the KV store. */
    may: z.array(z.enum(['set-scope', 'migrate', 'admin'])).default([]),
    /** Keys outside the scope that this user shares with others. */
    shared: z.array(z.string().min(1)).default([]),
  })
  .refine((entry) => (entry.password === undefined) !== (entry.passwordFile === undefined), {
    message: 'needs a password or a passwordFile, one of them',
  });

const lease = z.strictObject({
  pattern: z.string().min(1),
  waitMs: milliseconds(1).default(10_000),
  leaseMs: milliseconds(1).default(30_000),
});

const worker = z.strictObject({
  connect: z
    .string()
    .refine((text) => /^(rediss?:\/\/|unix:\/)./.test(text), {
      message: 'expected redis://host:port, rediss://host:port or unix:/path',
    })
    .transform((text) => new Secret(text))
    .optional(),
  http: z
    .string()
    .transform((text, context) => (text === 'off' ? ('off' as const) : addressOrIssue(text, context)))
    .prefault('127.0.0.1:9381'),
  drainMs: milliseconds(0).default(20_000),
});

/** Names and meaning are those of the proxy's limits. */
const limits = z.strictObject({
  clientsMax: count(1, 1_000_000).default(10_000),
  bulkBytesMax: bytes(1024, 2 ** 32).prefault('512mb'),
  queryBufferBytesMax: bytes(1024).prefault('1gb'),
  streamingBytesMin: bytes(1024).prefault('1mb'),
  outputBytesMax: bytes(1024).prefault('256mb'),
  pipelineDepthMax: count(1, 10_000_000).default(16_384),
  laneBytesMax: bytes(1024).prefault('4mb'),
  holdMs: milliseconds(0).default(5_000),
  onLost: z.enum(['close', 'error']).default('close'),
  idleLanesMax: count(0, 100_000).default(64),
  sharedLanesMax: count(2, 100_000).default(512),
  connectTimeoutMs: milliseconds(1).default(5_000),
  ownLanesMax: count(2, 1_000_000).default(9_000),
  tenantLanesMax: count(1, 1_000_000).default(5_000),
  transactionBytesMax: bytes(1024).prefault('128mb'),
  tenantTransactionBytesMax: bytes(1024).prefault('512mb'),
  tenantOutputBytesMax: bytes(1024).prefault('1gb'),
  scopedScriptBytesMax: bytes(1024).prefault('1mb'),
  outputStalledMs: milliseconds(10).default(300_000),
});

export const configSchema = z.strictObject({
  listen,
  kv: kv.prefault({}),
  pooling: z.enum(['transaction', 'session']).default('transaction'),
  // Flags and variables bring text.
  processes: z
    .preprocess((value) => (typeof value === 'string' && /^\d+$/.test(value) ? Number(value) : value), count(1, 256))
    .default(1),
  ledger: ledger.prefault({}),
  checkpoint: z.strictObject({ intervalMs: milliseconds(10).default(1000) }).prefault({}),
  users: z.record(z.string().regex(/^\S+$/, 'a user name has no blanks'), user).default({}),
  leases: z.array(lease).default([]),
  http: z
    .string()
    .transform((text, context) => (text === 'off' ? ('off' as const) : addressOrIssue(text, context)))
    .prefault('127.0.0.1:9380'),
  worker: worker.prefault({}),
  dataDir: z.string().min(1).default('./.holdfast'),
  limits: limits.prefault({}),
  log: z
    .strictObject({ level: z.enum(['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent']).default('info') })
    .prefault({}),
});

export type ParsedSettings = z.output<typeof configSchema>;
export type Listener = ParsedSettings['listen'][number];
export type KvTls = ParsedSettings['kv']['tls'];

export interface ConfiguredUser {
  /** SHA-256 of the password, 64 lower-case hex digits. */
  readonly passwordHash: Secret;
  readonly scope: string | undefined;
  readonly may: readonly ('set-scope' | 'migrate' | 'admin')[];
  readonly shared: readonly string[];
}

/** Settings as the rest of Holdfast gets them: complete, checked, frozen; paths absolute, password files read. */
export interface Config {
  readonly listen: readonly Readonly<Listener>[];
  readonly kv: {
    /** `undefined`: the embedded one. */
    readonly remote: RemoteKv | undefined;
    readonly tls: Readonly<KvTls>;
    /** Of the embedded KV store, as its own directives. */
    readonly maxmemory: string;
    readonly maxmemoryPolicy: string;
    readonly loglevel: string;
  };
  readonly pooling: 'transaction' | 'session';
  /** Behind one port. */
  readonly processes: number;
  readonly ledger: {
    /** A postgres:// URL; `undefined`: the embedded one. */
    readonly databaseUrl: Secret | undefined;
    /** Globs over stream names, `!` excludes. */
    readonly streams: readonly string[];
    readonly onFailure: 'refuse' | 'degrade';
    readonly retentionDays: number;
    readonly entryBytesMax: number;
    readonly streamsMax: number;
    readonly scopeStreamsMax: number;
    readonly acknowledgementFlushMs: number;
  };
  readonly checkpoint: { readonly intervalMs: number };
  readonly users: ReadonlyMap<string, ConfiguredUser>;
  readonly leases: readonly Readonly<ParsedSettings['leases'][number]>[];
  readonly http: 'off' | Address;
  readonly worker: {
    /** Where workers connect; `undefined`: the first listener. */
    readonly connect: Secret | undefined;
    readonly http: 'off' | Address;
    readonly drainMs: number;
  };
  readonly dataDir: string;
  readonly limits: Readonly<ParsedSettings['limits']>;
  readonly log: Readonly<ParsedSettings['log']>;
}
