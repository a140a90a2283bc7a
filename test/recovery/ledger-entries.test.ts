import pino from 'pino';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { decodeFields, encodeFields } from '../../src/ledger/encoding/entry-fields.ts';
import { ENTRY_ID_ZERO, entryIdFrom, formatEntryId } from '../../src/ledger/encoding/entry-id.ts';
import { type Ledger, openLedger } from '../../src/ledger/ledger.ts';
import { ledgerEntries } from '../../src/recovery/restore/ledger-entries.ts';
import { postgresVersions, startTestPostgres } from '../support/servers.ts';

const MEGABYTE = 1024 * 1024;

describe.each(postgresVersions)('entries out of the ledger, with Postgres %s,', (version) => {
  let ledger: Ledger;

  beforeEach(async () => {
    const { url } = await startTestPostgres({ version });
    ledger = await openLedger({ databaseUrl: url, name: 'test', log: pino({ level: 'silent' }) });
  });

  afterEach(async () => {
    await ledger.close();
  });

  async function insert(count: number, bytes: number, from = 1): Promise<void> {
    const fields = encodeFields([Buffer.from('value'), Buffer.alloc(bytes, 0xff)]);
    await ledger.pool.query(
      `INSERT INTO holdfast.entry (part, stream_id, epoch, id, fields, maxlen)
       SELECT 1, 1, 1, int8send(n) || int8send(7), $2, CASE WHEN n % 2 = 0 THEN 5000000000 + n END
         FROM generate_series($3::integer, $3 + $1 - 1) AS n`,
      [count, fields, from],
    );
  }

  test('come whole, in order, and all of them, however many', async () => {
    await insert(25_000, 10);
    let next = 1;
    for await (const page of ledgerEntries(ledger, 1, ENTRY_ID_ZERO, false)) {
      for (const { id, fields, maxlen } of page) {
        if (formatEntryId(id) !== `${next}-7`) throw new Error(`${formatEntryId(id)} in place of ${next}`);
        if (maxlen !== (next % 2 === 0 ? 5_000_000_000 + next : undefined)) throw new Error(`maxlen ${maxlen}`);
        if (!decodeFields(fields)[1]!.equals(Buffer.alloc(10, 0xff))) throw new Error('other fields');
        next += 1;
      }
    }
    expect(next).toBe(25_001);
  });

  test('come in pages of bounded bytes, from above an ID on, and need not be read to the end', async () => {
    await insert(20, MEGABYTE);
    await insert(1, 9 * MEGABYTE, 21);
    const sizes: number[] = [];
    for await (const page of ledgerEntries(ledger, 1, entryIdFrom(1, 7), false)) {
      sizes.push(page.reduce((sum, { fields }) => sum + fields.length, 0) / MEGABYTE);
    }
    expect(sizes.reduce((sum, size) => sum + size, 0)).toBeCloseTo(28, 1);
    for (const size of sizes.slice(0, -1)) expect(size).toBeLessThan(5.1);
    for (let time = 0; time < 50; time += 1) {
      for await (const page of ledgerEntries(ledger, 1, ENTRY_ID_ZERO, false)) {
        expect(page.length).toBeGreaterThan(0);
        break;
      }
    }
    expect((await ledger.pool.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
  });

  test('end with what Postgres said', async () => {
    await ledger.pool.query('DROP TABLE holdfast.entry CASCADE');
    await expect(ledgerEntries(ledger, 1, ENTRY_ID_ZERO, false).next()).rejects.toThrow(/holdfast\.entry/);
    expect((await ledger.pool.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
  });
});
