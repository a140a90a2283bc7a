/** Which settings have a flag and a variable of the environment. Everything else is said in the configuration file. */
export interface Setting {
  /** In the configuration file. */
  readonly path: readonly [string, ...string[]];
  readonly flag?: string;
  readonly variable?: string;
  /** The flag may be given several times; the variable holds a list with commas. */
  readonly list?: true;
  /** For `--help`. */
  readonly value: string;
  readonly help: string;
}

export const SETTINGS: readonly Setting[] = [
  {
    path: ['listen'],
    flag: 'listen',
    variable: 'HOLDFAST_LISTEN',
    list: true,
    value: 'ADDRESS',
    help: 'where clients connect: host:port or unix:/path; may be repeated (127.0.0.1:6380)',
  },
  {
    path: ['kv', 'url'],
    flag: 'kv',
    variable: 'HOLDFAST_KV_URL',
    value: 'URL',
    help: 'the KV store: redis://, rediss:// or unix: (embedded: a valkey-server or redis-server from PATH)',
  },
  {
    path: ['ledger', 'database'],
    flag: 'database',
    variable: 'HOLDFAST_DATABASE_URL',
    value: 'URL',
    help: 'the ledger: postgres://… (embedded: a Postgres in the data directory)',
  },
  {
    path: ['dataDir'],
    flag: 'data-dir',
    variable: 'HOLDFAST_DATA_DIR',
    value: 'DIR',
    help: 'what the embedded servers keep (./.holdfast)',
  },
  {
    path: ['http'],
    flag: 'http',
    variable: 'HOLDFAST_HTTP',
    value: 'ADDRESS',
    help: 'metrics, health and status, or off (127.0.0.1:9380)',
  },
  {
    path: ['ledger', 'streams'],
    flag: 'streams',
    variable: 'HOLDFAST_STREAMS',
    value: 'GLOBS',
    help: 'the streams that are made durable, with commas, ! excludes (*)',
  },
  {
    path: ['pooling'],
    flag: 'pooling',
    variable: 'HOLDFAST_POOLING',
    value: 'MODE',
    help: 'transaction or session (transaction)',
  },
  {
    path: ['processes'],
    flag: 'processes',
    variable: 'HOLDFAST_PROCESSES',
    value: 'N',
    help: 'how many processes serve behind one port (1)',
  },
  {
    path: ['log', 'level'],
    flag: 'log-level',
    variable: 'HOLDFAST_LOG_LEVEL',
    value: 'LEVEL',
    help: 'trace, debug, info, warn, error, fatal or silent (info)',
  },
  {
    path: ['worker', 'connect'],
    flag: 'connect',
    variable: 'HOLDFAST_WORKER_CONNECT',
    value: 'URL',
    help: 'where workers connect: Holdfast, or a KV store directly (the first listener)',
  },
  {
    path: ['worker', 'http'],
    flag: 'worker-http',
    variable: 'HOLDFAST_WORKER_HTTP',
    value: 'ADDRESS',
    help: 'metrics and health of a worker, or off (127.0.0.1:9381)',
  },
  {
    path: ['kv', 'password'],
    variable: 'HOLDFAST_KV_PASSWORD',
    value: 'PASSWORD',
    help: 'of the KV store; also in the URL, or kv.passwordFile in the file',
  },
  {
    path: ['kv', 'maxmemory'],
    variable: 'REDIS_MAXMEMORY',
    value: 'SIZE',
    help: 'memory limit of the embedded KV store (1gb)',
  },
  {
    path: ['kv', 'maxmemoryPolicy'],
    variable: 'REDIS_MAXMEMORY_POLICY',
    value: 'POLICY',
    help: 'what the embedded KV store evicts at that limit (allkeys-lru)',
  },
  {
    path: ['kv', 'loglevel'],
    variable: 'REDIS_LOGLEVEL',
    value: 'LEVEL',
    help: 'of the embedded KV store (warning)',
  },
];

export const CONFIG_FILE_VARIABLE = 'HOLDFAST_CONFIG';

/** The settings' lines of `--help`. */
export function settingsHelp(): string {
  const rows = [
    { name: '--config FILE', variable: CONFIG_FILE_VARIABLE, help: 'read settings from a YAML file' },
    ...SETTINGS.map((setting) => ({
      name: setting.flag === undefined ? '' : `--${setting.flag} ${setting.value}`,
      variable: setting.variable ?? '',
      help: setting.help,
    })),
  ];
  const widths = [
    Math.max(...rows.map((row) => row.name.length)),
    Math.max(...rows.map((row) => row.variable.length)),
  ] as const;
  return rows
    .map((row) => `  ${row.name.padEnd(widths[0])}  ${row.variable.padEnd(widths[1])}  ${row.help}`)
    .join('\n');
}
