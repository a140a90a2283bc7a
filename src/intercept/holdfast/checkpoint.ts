/** HOLDFAST CHECKPOINT: how far the groups of a stream are, and what holds them there. */
import { HoldfastError } from '../../errors.ts';
import type { Exchange } from '../../interceptor.ts';
import { formatEntryId } from '../../ledger/encoding/entry-id.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import * as encode from '../../resp/encode.ts';
import { readReply } from '../../resp/reply.ts';
import type { HoldfastSubcommand } from './command.ts';

/** Counting of what lies above a checkpoint ends here. */
const BEHIND_MAX = 10_000;

interface GroupRow {
  name: Buffer;
  checkpoint_id: Buffer;
  last_delivered_id: Buffer;
  progressed_at: Date;
  behind: number;
}

async function groupsOf(ledger: Ledger, streamId: number): Promise<GroupRow[]> {
  const { rows } = await ledger.pool.query<GroupRow>(
    `SELECT name, checkpoint_id, last_delivered_id, progressed_at,
            (SELECT count(*)::integer FROM (SELECT FROM holdfast.entry
               WHERE entry.stream_id = g.stream_id AND entry.id > g.checkpoint_id LIMIT ${BEHIND_MAX}) AS above) AS behind
       FROM holdfast.consumer_group AS g WHERE stream_id = $1 AND ended_at IS NULL ORDER BY name`,
    [streamId],
  );
  return rows;
}

/** The pending entry with the smallest ID and its consumer: the checkpoint cannot pass it. */
async function heldBy(exchange: Exchange, stream: Buffer, group: Buffer): Promise<Buffer> {
  const reply = readReply(
    await exchange.run([Buffer.from('XPENDING'), stream, group, ...['-', '+', '1'].map((word) => Buffer.from(word))]),
  );
  const [id, consumer] = reply.items?.[0]?.items ?? [];
  return encode.bulk(id === undefined || consumer === undefined ? '' : `${id.bytes} ${consumer.bytes}`);
}

/** Gives for each group a map: name, checkpoint, last-delivered-id, behind (at most 10,000), progressed-at, held-by. */
export function holdfastCheckpoint(ledger: Ledger): HoldfastSubcommand {
  return {
    name: 'checkpoint',
    admin: true,
    syntax: 'stream',
    summary: 'Of each group of a ledgered stream: its checkpoint, how far behind it is, and the entry that holds it.',
    async run(exchange, args) {
      const [name] = args;
      if (name === undefined || args.length > 1) throw new HoldfastError('ERR', 'syntax: HOLDFAST CHECKPOINT stream');
      const stream = ledger.streams.find(exchange.session.database, name);
      if (stream === undefined) throw new HoldfastError('ERR', 'the ledger has no such stream in this database');
      const groups: Buffer[] = [];
      for (const row of await groupsOf(ledger, stream.streamId)) {
        groups.push(
          encode.map(exchange.session.protocol, [
            encode.bulk('name'),
            encode.bulk(row.name),
            encode.bulk('checkpoint'),
            encode.bulk(formatEntryId(row.checkpoint_id)),
            encode.bulk('last-delivered-id'),
            encode.bulk(formatEntryId(row.last_delivered_id)),
            encode.bulk('behind'),
            encode.integer(row.behind),
            encode.bulk('progressed-at'),
            encode.bulk(row.progressed_at.toISOString()),
            encode.bulk('held-by'),
            await heldBy(exchange, name, row.name),
          ]),
        );
      }
      exchange.respond(encode.array(groups));
    },
  };
}
