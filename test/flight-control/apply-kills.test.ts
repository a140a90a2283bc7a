/** An apply that ends at any of its statements leaves either the changes with their events, or nothing. */
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { applyManifest } from '../../src/flight-control/resources/apply-manifest.ts';
import { openStore } from '../../src/flight-control/resources/store.ts';
import { startTestPostgres } from '../support/servers.ts';

const ORG = '00000000-0000-0000-0000-000000000000';
const DEVICES = 700;
let url: string;
let sql: pg.Pool;

beforeAll(async () => {
  ({ url } = await startTestPostgres());
  sql = await openStore(url, 2);
});
afterAll(() => sql.end());

function manifest(image: string): string {
  return Array.from(
    { length: DEVICES },
    (_, i) => `apiVersion: v1beta1\nkind: Device\nmetadata: {name: d${i}}\nspec: {os: {image: "${image}"}}\n`,
  ).join('---\n');
}

/** A pool whose session ends with statement number `last`: before it, or when it was executed and nobody heard of it. */
function endingPool(last: number, heard: boolean): { readonly pool: pg.Pool; readonly count: () => number } {
  const pool = new pg.Pool({ connectionString: url, max: 1 });
  pool.on('error', () => undefined);
  let count = 0;
  pool.on('connect', (client) => {
    client.on('error', () => undefined);
    const query = client.query.bind(client) as (...args: unknown[]) => Promise<unknown>;
    client.query = (async (...args: unknown[]) => {
      count += 1;
      if (count < last) return query(...args);
      if (count === last && heard) await query(...args);
      if (count === last) await client.end();
      throw new Error('the session ended');
    }) as typeof client.query;
  });
  return { pool, count: () => count };
}

interface Counts {
  readonly changed: number;
  readonly events: number;
  readonly queued: number;
}

async function counts(image: string): Promise<Counts> {
  const { rows } = await sql.query<Record<keyof Counts, string>>(
    `SELECT (SELECT count(*) FROM flight_control.resource WHERE spec #>> '{os,image}' = $1) AS changed,
            (SELECT count(*) FROM flight_control.event WHERE reason = $2) AS events,
            (SELECT count(*) FROM holdfast.outbox WHERE (fields[2])::jsonb #>> '{event,reason}' = $2) AS queued`,
    [image, image === 'q/a:1' ? 'ResourceCreated' : 'ResourceUpdated'],
  );
  const { changed, events, queued } = rows[0]!;
  return { changed: Number(changed), events: Number(events), queued: Number(queued) };
}

const options = { org: ORG, actor: 'user:test', dryRun: false, applied: () => undefined, remarked: () => undefined };

test.each(['q/a:1', 'q/a:2'])('whichever statement of the apply of %s is its last', async (image) => {
  const nothing = { changed: 0, events: 0, queued: 0 };
  const all = { changed: DEVICES, events: DEVICES, queued: DEVICES };
  let boundaries = 0;
  for (let last = 1; ; last += 1) {
    for (const heard of [false, true]) {
      const { pool, count } = endingPool(last, heard);
      await applyManifest(pool, 'm', manifest(image), options).catch(() => undefined);
      const ended = count() >= last;
      await pool.end().catch(() => undefined);
      const found = await counts(image);
      if (found.changed !== 0) {
        // Only the COMMIT makes it so; the rest finds nothing to do.
        expect(found).toEqual(all);
        expect(boundaries).toBeGreaterThan(10);
        return;
      }
      expect(ended).toBe(true);
      expect(found).toEqual(nothing);
      boundaries += 1;
    }
  }
});
