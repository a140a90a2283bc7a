/**
 * What the servers themselves say of the streams, written down when a group does not move: evidence for whoever has to tell
 * Holdfast's fault from the run's. Asked past every proxy; a server that does not answer is a note, too.
 */
import { appendFile } from 'node:fs/promises';
import { Client } from 'pg';
import { messageOf } from '../../src/errors.ts';
import type { Checker } from './checker.ts';
import { answered, connectClient } from './client-process.ts';
import type { Stage } from './stage.ts';
import { STREAMS } from './workload.ts';

const LEDGER_MS_MAX = 5000;

const LEDGER_QUERIES = [
  `SELECT convert_from(name, 'UTF8') AS name, stream_id, incarnation, epoch, restored_epoch, mode, mode_cause, mode_since,
          present, ended_at FROM holdfast.stream ORDER BY stream_id DESC LIMIT 30`,
  `SELECT stream_id, convert_from(name, 'UTF8') AS name, generation, checkpoint_id, last_delivered_id, changing, ended_at
     FROM holdfast.consumer_group ORDER BY group_id DESC LIMIT 40`,
  'SELECT stream_id, kind, in_doubt, count(*) AS rows FROM holdfast.backlog GROUP BY 1, 2, 3',
  'SELECT * FROM holdfast.recovery WHERE completed_at IS NULL',
  'SELECT * FROM holdfast.intention LIMIT 20',
  'SELECT * FROM holdfast.leader',
  "SELECT pid, state, wait_event_type, wait_event, now() - query_start AS since, left(query, 120) AS query FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'",
];

async function ledgerSays(databaseUrl: string): Promise<string[]> {
  const client = new Client({
    ...{ connectionString: databaseUrl, connectionTimeoutMillis: LEDGER_MS_MAX },
    ...{ query_timeout: LEDGER_MS_MAX, statement_timeout: LEDGER_MS_MAX },
  });
  client.on('error', () => {});
  try {
    await client.connect();
    const lines: string[] = [];
    for (const query of LEDGER_QUERIES) {
      const { rows } = await client.query<Record<string, unknown>>(query);
      lines.push(`ledger: ${query.replace(/\s+/g, ' ')}`);
      for (const row of rows) {
        const cells = Object.entries(row).map(([name, value]) => {
          const text = Buffer.isBuffer(value)
            ? value.toString('hex')
            : value instanceof Date
              ? value.toISOString()
              : value;
          return `${name}=${String(text)}`;
        });
        lines.push(`  ${cells.join(' ')}`);
      }
    }
    return lines;
  } catch (error) {
    return [`ledger: ${messageOf(error)}`];
  } finally {
    await client.end().catch(() => {});
  }
}

async function serverSays(what: string, port: number, database: number, commands: string[][]): Promise<string[]> {
  const client = connectClient(port, database, 2);
  try {
    return await Promise.all(
      commands.map(async ([name, ...args]) => {
        const reply = await answered(client, client.call(name!, ...args)).catch(messageOf);
        return `${what}: ${name} ${args.join(' ')}: ${JSON.stringify(reply).slice(0, 4000)}`;
      }),
    );
  } finally {
    client.disconnect();
  }
}

/** Appends the notes to `path`. Never rejects. */
export async function noteStall(path: string, why: string, stage: Stage, checker: Checker): Promise<void> {
  const standing = STREAMS.flatMap(({ name, groups }, stream) =>
    groups.flatMap((group, index) => {
      const { backlog, deliveries, handled } = checker.progress(stream, index);
      return backlog === 0
        ? []
        : [`${name} ${group}: backlog ${backlog}, deliveries ${deliveries}, handled ${handled}`];
    }),
  );
  const kvSays = STREAMS.map(({ name, database, groups }) =>
    serverSays('KV store', stage.kv.primary.port, database, [
      ...[
        ['XINFO', 'STREAM', name],
        ['XINFO', 'GROUPS', name],
      ],
      ...groups.flatMap((group) => [
        ['XPENDING', name, group],
        ['XINFO', 'CONSUMERS', name, group],
      ]),
    ]),
  );
  const sidecarsSay = stage.sidecars.map((_, i) =>
    serverSays(`sidecar ${i}`, stage.ports[i]!, 0, [
      ['INFO', 'holdfast'],
      ['CLIENT', 'LIST'],
    ]),
  );
  const ledger = stage.ledger === undefined ? [] : await ledgerSays(stage.ledger.urlVia(stage.ledger.port));
  const lines = [...(await Promise.all([...kvSays, ...sidecarsSay])).flat(), ...ledger];
  await appendFile(path, [`== ${new Date().toISOString()} ${why}`, ...standing, ...lines, ''].join('\n')).catch(
    () => {},
  );
}
