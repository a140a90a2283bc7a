/**
 * HOLDFAST REPLAY: adds history to its stream again, on demand. Each entry gets a new ID and is an event of its own from then on, committed
 * and delivered to every group like any other XADD. What the range ends with is fixed when it begins, so that it never meets its
 * own entries. Each replay has a row in holdfast.replay.
 */
import { HoldfastError, messageOf } from '../../errors.ts';
import type { Exchange } from '../../interceptor.ts';
import { decodeFields } from '../../ledger/encoding/entry-fields.ts';
import { ENTRY_ID_MAX, formatEntryId, parseEntryId, previousEntryId } from '../../ledger/encoding/entry-id.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import { undeletedEntries } from '../../ledger/undeleted-entries.ts';
import * as encode from '../../resp/encode.ts';
import { errorText, readReply } from '../../resp/reply.ts';
import type { HoldfastSubcommand } from './command.ts';

const SYNTAX = 'stream (SINCE time | FROM id) [TO time | id] [DRYRUN]';
const PAGE_ROWS = 100;

interface Range {
  readonly from: Buffer;
  readonly to: Buffer;
  readonly dryRun: boolean;
}

interface Replayed {
  entries: number;
  first: Buffer | undefined;
  last: Buffer | undefined;
}

/** The first or last ID of a time: ISO 8601, or Unix milliseconds. It is compared with the time in an entry's ID. */
function idAtTime(text: string, sequence: 'min' | 'max'): Buffer | undefined {
  if (/^\d+$/.test(text)) return parseEntryId(text, sequence);
  return /^\d{4}-\d\d/.test(text) ? parseEntryId(String(Date.parse(text)), sequence) : undefined;
}

function parseRange(args: readonly Buffer[]): Range {
  let from: Buffer | undefined;
  let to: Buffer | undefined;
  let dryRun = false;
  for (let at = 0; at < args.length; at += 1) {
    const word = args[at]!.toString('latin1').toLowerCase();
    if (word === 'dryrun' && !dryRun) {
      dryRun = true;
      continue;
    }
    const value = args[at + 1]?.toString('latin1');
    if (value === undefined) throw new HoldfastError('ERR', `syntax: HOLDFAST REPLAY ${SYNTAX}`);
    at += 1;
    if (word === 'since' && from === undefined) {
      from = idAtTime(value, 'min');
      if (from === undefined) throw new HoldfastError('ERR', 'SINCE wants ISO 8601 or Unix milliseconds');
    } else if (word === 'from' && from === undefined) {
      from = parseEntryId(value);
      if (from === undefined) throw new HoldfastError('ERR', 'FROM wants an entry ID, such as 1700000000000-0');
    } else if (word === 'to' && to === undefined) {
      to = parseEntryId(value) ?? idAtTime(value, 'max');
      if (to === undefined) throw new HoldfastError('ERR', 'TO wants an entry ID, ISO 8601 or Unix milliseconds');
    } else throw new HoldfastError('ERR', `syntax: HOLDFAST REPLAY ${SYNTAX}`);
  }
  if (from === undefined) throw new HoldfastError('ERR', `syntax: HOLDFAST REPLAY ${SYNTAX}`);
  return { from, to: to ?? ENTRY_ID_MAX, dryRun };
}

/** All of a page at once: a session's lane keeps their order. Throws the first refusal. */
async function addAgain(
  exchange: Exchange,
  stream: Buffer,
  rows: readonly { readonly fields: Buffer }[],
  done: Replayed,
): Promise<void> {
  if (exchange.session.closed) throw new HoldfastError('ERR', 'the client has gone');
  const replies = await Promise.all(
    rows.map(({ fields }) => exchange.run([Buffer.from('XADD'), stream, Buffer.from('*'), ...decodeFields(fields)])),
  );
  for (const raw of replies) {
    const reply = readReply(raw);
    const refused = errorText(reply);
    if (refused !== undefined) throw new HoldfastError('ERR', `an entry was refused: ${refused}`);
    done.entries += 1;
    done.first ??= Buffer.from(reply.bytes);
    done.last = Buffer.from(reply.bytes);
  }
}

async function replay(ledger: Ledger, exchange: Exchange, name: Buffer, asked: Range): Promise<Replayed> {
  const stream = ledger.streams.find(exchange.session.database, name);
  if (stream === undefined) throw new HoldfastError('ERR', 'the ledger has no such stream in this database');
  const { rows: newest } = await ledger.pool.query<{ id: Buffer }>(
    'SELECT id FROM holdfast.entry WHERE stream_id = $1 ORDER BY id DESC LIMIT 1',
    [stream.streamId],
  );
  const pages = (range: Range) =>
    undeletedEntries(ledger.pool, stream.streamId, previousEntryId(range.from), range.to, PAGE_ROWS);
  const done: Replayed = { entries: 0, first: undefined, last: undefined };
  if (newest[0] === undefined) return done;
  const range = { ...asked, to: newest[0].id.compare(asked.to) < 0 ? newest[0].id : asked.to };
  if (asked.dryRun) {
    for await (const rows of pages(range)) {
      done.entries += rows.length;
      done.first ??= Buffer.from(formatEntryId(rows[0]!.id));
      done.last = Buffer.from(formatEntryId(rows.at(-1)!.id));
    }
    return done;
  }
  const { user, id } = exchange.session;
  const { rows: begun } = await ledger.pool.query<{ replay_id: string }>(
    `INSERT INTO holdfast.replay (stream_id, from_id, to_id, asked_by) VALUES ($1, $2, $3, $4) RETURNING replay_id`,
    [stream.streamId, range.from, range.to, `user ${user}, client ${id}`],
  );
  const record = (lastError: string | undefined) => {
    const ids = [done.first, done.last].map((text) => (text === undefined ? null : parseEntryId(text)!));
    return ledger.pool.query(
      `UPDATE holdfast.replay SET ended_at = clock_timestamp(), entries = $2, first_new_id = $3, last_new_id = $4, last_error = $5
        WHERE replay_id = $1`,
      [begun[0]!.replay_id, done.entries, ...ids, lastError ?? null],
    );
  };
  try {
    for await (const rows of pages(range)) await addAgain(exchange, name, rows, done);
  } catch (thrown) {
    await record(messageOf(thrown));
    throw new HoldfastError('ERR', `replay stopped after ${done.entries} entries: ${messageOf(thrown)}`, {
      cause: thrown,
    });
  }
  await record(undefined);
  return done;
}

/** Gives a map: entries, first, last. The IDs are the new ones; with DRYRUN, which adds nothing, those of the history. */
export function holdfastReplay(ledger: Ledger): HoldfastSubcommand {
  return {
    name: 'replay',
    admin: true,
    syntax: SYNTAX,
    summary: 'Add entries of a ledgered stream to it again, under new IDs, in their order.',
    async run(exchange, [name, ...args]) {
      if (name === undefined) throw new HoldfastError('ERR', `syntax: HOLDFAST REPLAY ${SYNTAX}`);
      if (exchange.queued) throw new HoldfastError('ERR', 'HOLDFAST REPLAY inside MULTI is not possible');
      const { protocol } = exchange.session;
      const { entries, first, last } = await replay(ledger, exchange, name, parseRange(args));
      const idOrNull = (id: Buffer | undefined) => (id === undefined ? encode.nullBulk(protocol) : encode.bulk(id));
      exchange.respond(
        encode.map(protocol, [
          encode.bulk('entries'),
          encode.integer(entries),
          encode.bulk('first'),
          idOrNull(first),
          encode.bulk('last'),
          idOrNull(last),
        ]),
      );
    },
  };
}
