/** Whatever an app's own functions do or an entry holds, no entry stays in hand for ever, and none holds up the others. */
import { expect, test } from 'vitest';
import { type AppDefinition, defineApp } from '../../src/worker/app.ts';
import { dead } from '../../src/worker/dead-command.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { startSidecar } from '../support/sidecar.ts';
import { addAll, client, deadLettersOf, drained, runWorker, until } from './worker-harness.ts';

type Fields = Record<string, string>;

/** What comes of the entries: the events handled, and the dead letters. */
async function outcomeOf(
  app: Partial<AppDefinition<Fields>>,
  entries: Fields[],
): Promise<{ handled: string[]; letters: Fields[] }> {
  const kv = await startKv(kvKinds[0]!);
  const redis = client(kv.url);
  const handled: string[] = [];
  const handle = (event: Fields): void => {
    if (event.fails !== undefined) throw new Error('as told');
    handled.push(event.n!);
  };
  await addAll(redis, 'events', entries);
  await runWorker(
    defineApp<Fields>({
      streams: 'events',
      retry: { attempts: 1 },
      handlers: { any: { run: 'in-process', handle } },
      ...app,
    }),
    { kv: kv.url },
  );
  await until('all settled', () => drained(redis, 'events'));
  return { handled, letters: await deadLettersOf(redis, 'events') };
}

test('a route that gives nothing is a permanent failure', async () => {
  const route = ((event: Fields) => (event.n === '1' ? undefined : 'any')) as unknown as () => string;
  const { handled, letters } = await outcomeOf({ route }, [{ n: '1' }, { n: '2' }]);
  expect(handled).toEqual(['2']);
  expect(letters).toMatchObject([{ error: 'malformed: route gave neither a name nor a list of names' }]);
});

test('a key that is no text is one all the same', async () => {
  const orderBy = ((event: Fields) => (event.n === '1' ? undefined : Number(event.n) % 2)) as unknown as () => string;
  const entries = ['1', '1', '2', '3', '1'].map((n) => ({ n }));
  const { handled } = await outcomeOf({ orderBy }, entries);
  expect(handled.sort()).toEqual(['1', '1', '1', '2', '3']);
});

test('a report is made without the fields that cannot be had', async () => {
  const failureFields = (): Fields => {
    throw new Error('no fields today');
  };
  const { letters } = await outcomeOf({ failureFields }, [{ n: '1', fails: '1' }]);
  expect(letters).toMatchObject([{ failureFieldsError: 'no fields today', original: '["n","1","fails","1"]' }]);
});

test('functions that are called for their value must not be async', () => {
  for (const name of ['route', 'decode', 'orderBy', 'failureFields', 'deadLetterStream']) {
    const definition = { streams: 'events', handlers: { any: () => {} }, [name]: async () => 'any' };
    expect(() => defineApp(definition as never)).toThrow(`${name}: must not be async`);
  }
});

test('an entry too large for its report gets a smaller one', async () => {
  const kv = await startKv(kvKinds[0]!);
  const { url: databaseUrl } = await startTestPostgres();
  const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl });
  const url = `redis://127.0.0.1:${sidecar.port}`;
  const redis = client(url);
  const app = defineApp({
    streams: 'events',
    retry: { attempts: 1 },
    handlers: {
      any: {
        run: 'in-process',
        handle() {
          throw new Error('as told');
        },
      },
    },
  });
  // 16 MB is the most. Twice in its report is too much for the first one; once, in base64, for the second.
  const large = String(await redis.call('XADD', 'events', '*', 'text', 'x'.repeat(10_000_000)));
  const largest = String(await redis.call('XADD', 'events', '*', 'bytes', Buffer.alloc(15_000_000, 255)));
  const [small] = await addAll(redis, 'events', [{ n: '3' }]);
  await runWorker(app, { kv: url, database: databaseUrl });
  await until('all reported', async () => (await deadLettersOf(redis, 'events')).length === 3, 60_000);
  await until('acknowledged', () => drained(redis, 'events'));
  const letters = new Map((await deadLettersOf(redis, 'events')).map((letter) => [letter.id, letter]));
  expect(JSON.parse(letters.get(small!)!.body!).details.originalEvent).toEqual({ n: '3' });
  expect(letters.get(large)!.original).toHaveLength(10_000_000 + '["text",""]'.length);
  expect(letters.get(largest)).toMatchObject({ attempts: '1', error: expect.stringContaining('as told') });
  expect(letters.get(largest)).not.toHaveProperty('originalBase64');
  const retry = dead.run({
    args: ['retry', largest, '--connect', url],
    env: {},
    workingDirectory: process.cwd(),
    terminal: false,
    write: () => {},
    stopRequested: new Promise(() => {}),
  });
  await expect(retry).rejects.toThrow('came without its entry, which was too large');
}, 90_000);
