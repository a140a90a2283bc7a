import { expect, test } from 'vitest';
import { type AppDefinition, appFromExport, defineApp } from '../../src/worker/app.ts';

const handle = (): void => {};

test('an app has every default filled in', () => {
  const app = defineApp({ streams: 'task-queue', handlers: { one: handle } });
  expect(app).toMatchObject({
    streams: ['task-queue'],
    group: 'task-queue-group',
    startId: '0',
    retry: { attempts: 5, baseMs: 1000, maxMs: 3_600_000, jitter: 0.1 },
    heartbeatMs: 500,
    deadAfterMs: 2000,
    trim: true,
  });
  expect(app.handlers.get('one')).toMatchObject({ run: 'thread', timeoutMs: 10_000 });
  expect(app.deadLetterStream('task-queue')).toBe('task-queue:dead');
  expect(app.route({}, {})).toBe('one');
});

test('a handler overrides the policy of the app', () => {
  const app = defineApp({
    streams: ['a', 'b'],
    timeoutMs: 500,
    retry: { attempts: 3 },
    handlers: { one: { handle, timeoutMs: 900, retry: { baseMs: 7 } }, two: handle },
  });
  expect(app.handlers.get('one')).toMatchObject({
    timeoutMs: 900,
    retry: { attempts: 3, baseMs: 7, maxMs: 3_600_000 },
  });
  expect(app.handlers.get('two')).toMatchObject({ timeoutMs: 500, retry: { attempts: 3, baseMs: 1000 } });
});

test('a module may export a plain definition, or an app made by another copy of this code', () => {
  const app = appFromExport({ streams: 's', handlers: { one: handle } });
  expect(appFromExport(app)).toBe(app);
  expect(() => appFromExport(undefined)).toThrow('export an app by default');
});

const WRONG: [string, unknown, string][] = [
  ['no streams', { handlers: { a: handle } }, 'streams: is missing'],
  ['no handlers', { streams: 's' }, 'handlers: is missing'],
  ['an empty list', { streams: [], handlers: { a: handle } }, 'streams: must be a name or a list of names'],
  ['a stream twice', { streams: ['s', 's'], handlers: { a: handle } }, 'streams: names a stream twice'],
  ['an unknown setting', { streams: 's', handlers: { a: handle }, retries: 3 }, 'retries: there is no such setting'],
  ['a member of every object', { streams: 's', handlers: { a: handle }, constructor: 3 }, 'constructor: there is no'],
  ['a handler that is none', { streams: 's', handlers: { a: 7 } }, 'handlers.a: must be an object'],
  ['neither handle nor module', { streams: 's', handlers: { a: {} } }, 'handlers.a: needs either'],
  ['both', { streams: 's', handlers: { a: { handle, module: './a.js' } } }, 'handlers.a: needs either'],
  ['a wrong run', { streams: 's', handlers: { a: { handle, run: 'fork' } } }, 'handlers.a.run: must be'],
  ['no attempts', { streams: 's', handlers: { a: { handle, retry: { attempts: 0 } } } }, 'handlers.a.retry.attempts:'],
  ['half a rate', { streams: 's', handlers: { a: { handle, rateLimit: { max: 1 } } } }, 'handlers.a.rateLimit: needs'],
  ['a timer beyond setTimeout', { streams: 's', handlers: { a: handle }, timeoutMs: 2 ** 31 }, 'timeoutMs: must be'],
  ['too few heartbeats', { streams: 's', handlers: { a: handle }, deadAfterMs: 900 }, 'deadAfterMs: must be at least'],
  [
    'dead letters into itself',
    { streams: 's', handlers: { a: handle }, deadLetterStream: () => 's' },
    'deadLetterStream: must not be',
  ],
];

test.each(WRONG)('%s is refused, naming the setting', (_what, definition, message) => {
  expect(() => defineApp(definition as AppDefinition<unknown>)).toThrow(message);
});

test('an entry without a task is malformed where several handlers could be meant', () => {
  const app = defineApp({ streams: 's', handlers: { a: handle, b: handle } });
  expect(app.route({}, { task: 'b' })).toBe('b');
  expect(() => app.route({}, {})).toThrow('no field `task`');
});
