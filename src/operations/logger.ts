import { type DestinationStream, type Logger, pino } from 'pino';
import pretty from 'pino-pretty';

export interface LoggerOptions {
  readonly level: string;
  /** For a person at a terminal; otherwise JSON lines. */
  readonly pretty: boolean;
  /** Standard output by default. */
  readonly destination?: DestinationStream;
}

/** Members that may hold a secret, one and two levels deep; secrets of the configuration hide themselves already. */
const SECRET_MEMBERS = ['password', 'databaseUrl', 'connectionString', 'authorization'];

export function createLogger(options: LoggerOptions): Logger {
  const settings = {
    level: options.level,
    base: null,
    redact: { paths: SECRET_MEMBERS.flatMap((name) => [name, `*.${name}`, `*.*.${name}`]), censor: '[redacted]' },
    // Names of levels, for those who read the lines without pino's tools.
    formatters: { level: (level: string) => ({ level }) },
    timestamp: pino.stdTimeFunctions.isoTime,
  };
  if (options.pretty) {
    const stream = pretty({
      sync: true,
      colorize: true,
      translateTime: 'SYS:HH:MM:ss.l',
      ignore: 'pid,hostname',
      ...(options.destination === undefined ? {} : { destination: options.destination as NodeJS.WritableStream }),
    });
    return pino(settings, stream);
  }
  return options.destination === undefined ? pino(settings) : pino(settings, options.destination);
}
