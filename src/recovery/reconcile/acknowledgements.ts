/**
 * Acknowledgements of this sidecar's clients, as far as they are no matter of the data plane: those that the ledger alone could
 * take, those of which the server's reply does not tell whether they count, and those of entries that a restore delivers again.
 */
import type { Logger } from 'pino';
import { messageOf } from '../../errors.ts';
import { byteaArray } from '../../ledger/encoding/binary-array.ts';
import { formatEntryId, maxEntryId, parseEntryId } from '../../ledger/encoding/entry-id.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import type { Group, Stream } from '../../ledger/stream-registry.ts';
import { byField, type KvArgument, type KvConnection } from '../kv/connection.ts';
import { presentEntries } from '../kv/entries.ts';

/** Acknowledgements that are being looked into at one time. */
const UNCERTAIN_MAX = 1000;
/** XACKs owed to the KV store; what is beyond, the leader finds after an outage of its own, or it is delivered again. */
const OWED_MAX = 100_000;
const OWED_PER_REQUEST = 1000;
const NOTHING_ACKNOWLEDGED = { acknowledged: [], earlier: 0 };

export class Acknowledgements {
  readonly #ledger: Ledger;
  readonly #connect: () => Promise<KvConnection>;
  readonly #log: Logger;
  #uncertain = 0;
  #owed: { readonly stream: Stream; readonly group: Buffer; readonly ids: readonly Buffer[] }[] = [];

  constructor(ledger: Ledger, connect: () => Promise<KvConnection>, log: Logger) {
    this.#ledger = ledger;
    this.#connect = connect;
    this.#log = log;
  }

  /**
   * The ledger alone has this acknowledgement: the KV store gets it before this sidecar lets anything through again. To be
   * called in the tick in which `state` was seen to be `down`.
   */
  owe(stream: Stream, group: Buffer, ids: readonly Buffer[]): void {
    if (this.#owed.length < OWED_MAX) this.#owed.push({ stream, group, ids });
  }

  /** Rejects with KVDOWN: what was not paid stays owed. */
  async payOwed(connection: KvConnection): Promise<void> {
    while (this.#owed.length > 0) await this.#paySome(connection);
  }

  /** Some of them; an XACK that is refused is for a stream that is gone, whose restore leaves out what is recorded. */
  async #paySome(connection: KvConnection): Promise<void> {
    const { database } = this.#owed[0]!.stream;
    const others = this.#owed.findIndex(({ stream }) => stream.database !== database);
    const paid = this.#owed.slice(0, Math.min(OWED_PER_REQUEST, others < 0 ? OWED_PER_REQUEST : others));
    const requests = paid
      .filter(({ stream }) => !stream.ended)
      .map(({ stream, group, ids }): KvArgument[] => ['XACK', stream.name, group, ...ids.map(formatEntryId)]);
    if (requests.length > 0) await connection.pipeline(database, requests);
    this.#owed.splice(0, paid.length);
  }

  /** XACK past the data plane. Rejects with KVDOWN. */
  async acknowledge(stream: Stream, group: Buffer, ids: readonly Buffer[]): Promise<void> {
    const connection = await this.#connect();
    await connection.command(stream.database, ['XACK', stream.name, group, ...ids]);
  }

  /**
   * Some of the IDs were not pending when they were acknowledged: records those that are delivered and not pending. What
   * cannot be found out now is not recorded, and may be delivered again after a loss. Gives how many had been delivered
   * before a loss and not again since.
   */
  async recordUncertain(stream: Stream, group: Group, epoch: number, ids: readonly Buffer[]): Promise<number> {
    if (this.#uncertain >= UNCERTAIN_MAX) return 0;
    this.#uncertain += 1;
    try {
      const { acknowledged, earlier } = await this.#delivered(stream, group, ids);
      this.#ledger.acknowledgements.record(stream, group, epoch, acknowledged);
      return earlier;
    } catch (thrown) {
      this.#log.debug({ err: messageOf(thrown) }, 'acknowledgements left unrecorded');
      return 0;
    } finally {
      this.#uncertain -= 1;
    }
  }

  async #delivered(
    stream: Stream,
    group: Group,
    given: readonly Buffer[],
  ): Promise<{ readonly acknowledged: Buffer[]; readonly earlier: number }> {
    const connection = await this.#connect();
    const replies = await connection.readTogether(stream.database, [
      ['XINFO', 'GROUPS', stream.name],
      ...given.map((id): KvArgument[] => {
        const text = formatEntryId(id);
        return ['XPENDING', stream.name, group.name, text, text, 1];
      }),
    ]);
    const groups = replies[0];
    if (!Array.isArray(groups)) return NOTHING_ACKNOWLEDGED;
    const own = groups.map(byField).find((fields) => group.name.equals(fields.get('name') as Buffer));
    const last = own?.get('last-delivered-id');
    if (!Buffer.isBuffer(last)) return NOTHING_ACKNOWLEDGED;
    const lastDeliveredId = parseEntryId(last, 'min')!;
    const everDeliveredId = maxEntryId(lastDeliveredId, group.everDeliveredId);
    const delivered = given.filter((id, index) => {
      const pending = replies[index + 1];
      return Array.isArray(pending) && pending.length === 0 && id.compare(everDeliveredId) <= 0;
    });
    const published = await this.#underNewIds(connection, stream, group, delivered, lastDeliveredId);
    return {
      acknowledged: delivered.map((id) => published.get(id.toString('latin1')) ?? id),
      earlier: delivered.filter((id) => id.compare(lastDeliveredId) > 0).length,
    };
  }

  /**
   * Entries that were delivered before a restore, and got another ID by it, are acknowledged under that; gives it by the old one.
   * Where the group has been given since what has the old ID now, that is what is meant.
   */
  async #underNewIds(
    connection: KvConnection,
    stream: Stream,
    group: Group,
    ids: readonly Buffer[],
    lastDeliveredId: Buffer,
  ): Promise<ReadonlyMap<string, Buffer>> {
    const published = new Map<string, Buffer>();
    if (stream.restoredEpoch === 0 || ids.length === 0) return published;
    const { rows } = await this.#ledger.pool.query<{ id: Buffer; published_id: Buffer }>(
      'SELECT id, published_id FROM holdfast.alias WHERE stream_id = $1 AND id = ANY ($2::bytea[]) ORDER BY epoch',
      [stream.streamId, byteaArray(ids)],
    );
    if (rows.length === 0) return published;
    const others = await presentEntries(
      connection,
      stream,
      rows.map(({ id }) => id),
    );
    for (const row of rows) {
      const id = row.id.toString('latin1');
      if (row.id.compare(lastDeliveredId) > 0 || !others.has(id)) published.set(id, row.published_id);
    }
    if (published.size === 0) return published;
    const newIds = [...published.values()].map(formatEntryId);
    await connection.command(stream.database, ['XACK', stream.name, group.name, ...newIds]);
    return published;
  }
}
