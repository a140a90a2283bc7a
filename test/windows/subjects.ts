/**
 * The commands of the matrix: for each command of the table that may write to a key that can be a stream, requests that do something
 * (`allowed`), that do nothing (`noop`), and that the KV store refuses for the type of a key (`wrongtype`), with what a plain server makes of
 * them. A test asserts that the table has no further such command.
 *
 * The stage, in each of two databases: `s`, a stream of five entries, of which group `g` has acknowledged the first and been given the second,
 * and `h` has been given none; `t`, a stream of two with a group `g`; a string `v`, a set `k`, a sorted set `z`, a list `l`, a geo set `geo`; no `x`.
 */
import {
  acknowledge,
  add,
  type Conclusion,
  copy,
  destroyGroup,
  type Effect,
  end,
  flush,
  group,
  inOrder,
  move,
  NO_EFFECT,
  put,
  remove,
  replace,
  type StreamModel,
  swap,
  trim,
} from './model.ts';
import type { Word } from './raw-talk.ts';

/** Where a command acts. */
export interface Stage {
  readonly database: number;
  /** Has the same keys. */
  readonly otherDatabase: number;
  /** Has none. */
  readonly emptyDatabase: number;
  key(role: string): string;
  /** As the model names it. */
  place(role: string, database?: number): string;
  /** Of an entry of the stage, such as `s4`. */
  label(name: string): string;
  id(name: string): string;
  /** DUMP of `t`, and what it holds. */
  readonly dump: Buffer;
  readonly dumped: StreamModel;
  /** Of the script that deletes its key. */
  readonly deletingSha: string;
  readonly kvPort: number;
}

export type SubjectKind = 'allowed' | 'noop' | 'wrongtype';

export interface Subject {
  /** Name in case IDs. */
  readonly name: string;
  /** In the command table. */
  readonly command: string;
  readonly kind: SubjectKind;
  words(stage: Stage): readonly Word[];
  readonly effect: (stage: Stage) => Effect;
  /** What a reply that is no error says. */
  readonly isDone?: (value: unknown) => Conclusion;
  /** May not stand in a script. */
  readonly noScript: boolean;
  /** Commands that the sidecar sends in its place for a scope. */
  readonly alsoSentAs?: readonly string[];
}

/** The label of the entry that the command adds. */
export const ADDED = 'new';
export const FUNCTION_LIBRARY = `#!lua name=matrix
redis.register_function('matrix_delete', function(keys) return redis.call('DEL', keys[1]) end)`;
export const DELETING_SCRIPT = "return redis.call('DEL', KEYS[1])";

const FAR_SECONDS = 86_400;
const done = (): Conclusion => 'done';
const SOURCES: Readonly<Record<string, readonly string[]>> = {
  expire: [String(FAR_SECONDS), '-1'],
  pexpire: [String(FAR_SECONDS * 1000), '-1'],
  expireat: ['4102444800', '1'],
  pexpireat: ['4102444800000', '1'],
};

type Words = (stage: Stage) => readonly Word[];

function build(): Subject[] {
  const subjects: Subject[] = [];
  function subject(
    command: string,
    kind: SubjectKind,
    variant: string,
    words: Words,
    effect: (stage: Stage) => Effect = () => NO_EFFECT,
    more: Partial<Subject> = {},
  ): void {
    const name = [command.replace('|', '-'), variant].filter((part) => part !== '').join('-');
    subjects.push({ name, command, kind, words, effect, noScript: false, ...more });
  }
  const S = ({ key }: Stage) => key('s');
  const onS =
    (effect: (place: string, stage: Stage) => Effect) =>
    (stage: Stage): Effect =>
      effect(stage.place('s'), stage);

  // Entries.
  const addTo = (role: string, ...between: (string | ((stage: Stage) => string))[]): Words => {
    return (stage) => [
      ...['XADD', stage.key(role)],
      ...between.map((word) => (typeof word === 'string' ? word : word(stage))),
      ...['n', stage.label(ADDED)],
    ];
  };
  const added = onS((place, { label }) => add(place, label(ADDED)));
  subject('xadd', 'allowed', '', addTo('s', '*'), added);
  subject('xadd', 'allowed', 'nomkstream', addTo('s', 'NOMKSTREAM', '*'), added);
  subject('xadd', 'allowed', 'explicit', addTo('s', '9999999999999-7'), added);
  subject('xadd', 'allowed', 'partial', addTo('s', '9999999999999-*'), added);
  subject('xadd', 'allowed', 'maxlen', addTo('s', 'MAXLEN', '2', '*'), (stage) =>
    inOrder(added(stage), trim(stage.place('s'), 2)),
  );
  const lastTwo = (stage: Stage) => stage.id('s4');
  subject('xadd', 'allowed', 'minid', addTo('s', 'MINID', lastTwo, '*'), (stage) =>
    inOrder(added(stage), remove(stage.place('s'), ['s1', 's2', 's3'].map(stage.label))),
  );
  subject('xadd', 'allowed', 'new-stream', addTo('x', '*'), ({ place, label }) => add(place('x'), label(ADDED)));
  subject('xadd', 'noop', 'nomkstream-absent', addTo('x', 'NOMKSTREAM', '*'));
  subject('xadd', 'wrongtype', 'onto-string', addTo('v', '*'));

  const xdel = (...names: string[]): Words => {
    return (stage) => ['XDEL', S(stage), ...names.map(stage.id)];
  };
  subject(
    'xdel',
    'allowed',
    '',
    xdel('s4'),
    onS((place, { label }) => remove(place, [label('s4')])),
  );
  subject(
    'xdel',
    'allowed',
    'several',
    xdel('s3', 's4', 's5'),
    onS((place, { label }) => remove(place, ['s3', 's4', 's5'].map(label))),
    { isDone: (value) => (value === 3 ? 'done' : value === 0 ? 'unchanged' : 'either') },
  );
  subject('xdel', 'noop', 'absent', (stage) => ['XDEL', S(stage), '1-1']);
  subject('xdel', 'wrongtype', 'string', ({ key }) => ['XDEL', key('v'), '1-1']);
  subject(
    'xtrim',
    'allowed',
    '',
    (stage) => ['XTRIM', S(stage), 'MAXLEN', '2'],
    onS((place) => trim(place, 2)),
  );
  subject(
    'xtrim',
    'allowed',
    'minid',
    (stage) => ['XTRIM', S(stage), 'MINID', stage.id('s4')],
    onS((place, { label }) => remove(place, ['s1', 's2', 's3'].map(label))),
  );
  subject('xtrim', 'noop', 'long', (stage) => ['XTRIM', S(stage), 'MAXLEN', '1000']);
  subject('xtrim', 'wrongtype', 'string', ({ key }) => ['XTRIM', key('v'), 'MAXLEN', '2']);
  subject('xsetid', 'allowed', '', (stage) => ['XSETID', S(stage), '9999999999999-1']);
  subject('xsetid', 'noop', 'same', (stage) => ['XSETID', S(stage), stage.id('s5')]);
  subject('xsetid', 'wrongtype', 'string', ({ key }) => ['XSETID', key('v'), '9999999999999-1']);

  // Groups.
  for (const from of ['0', '$'] as const) {
    const variant = from === '0' ? '' : 'at-end';
    subject(
      'xgroup|create',
      'allowed',
      variant,
      (stage) => ['XGROUP', 'CREATE', S(stage), 'made', from],
      onS((place) => group(place, 'made', from)),
    );
  }
  subject(
    'xgroup|create',
    'allowed',
    'mkstream',
    ({ key }) => ['XGROUP', 'CREATE', key('x'), 'made', '0', 'MKSTREAM'],
    ({ place }) => group(place('x'), 'made', '0'),
  );
  subject('xgroup|create', 'noop', 'busy', (stage) => ['XGROUP', 'CREATE', S(stage), 'g', '0']);
  subject('xgroup|create', 'wrongtype', 'string', ({ key }) => ['XGROUP', 'CREATE', key('v'), 'made', '0']);
  subject(
    'xgroup|setid',
    'allowed',
    '',
    (stage) => ['XGROUP', 'SETID', S(stage), 'h', '$'],
    onS((place) => group(place, 'h', '$')),
  );
  subject(
    'xgroup|setid',
    'allowed',
    'to-begin',
    (stage) => ['XGROUP', 'SETID', S(stage), 'g', '0'],
    onS((place) => group(place, 'g', '0')),
  );
  subject('xgroup|setid', 'noop', 'absent', (stage) => ['XGROUP', 'SETID', S(stage), 'nobody', '0']);
  subject('xgroup|setid', 'wrongtype', 'string', ({ key }) => ['XGROUP', 'SETID', key('v'), 'g', '0']);
  subject(
    'xgroup|destroy',
    'allowed',
    '',
    (stage) => ['XGROUP', 'DESTROY', S(stage), 'h'],
    onS((place) => destroyGroup(place, 'h')),
  );
  subject('xgroup|destroy', 'noop', 'absent', (stage) => ['XGROUP', 'DESTROY', S(stage), 'nobody']);
  subject('xgroup|destroy', 'wrongtype', 'string', ({ key }) => ['XGROUP', 'DESTROY', key('v'), 'g']);
  subject('xgroup|createconsumer', 'allowed', '', (stage) => ['XGROUP', 'CREATECONSUMER', S(stage), 'g', 'd']);
  subject('xgroup|createconsumer', 'noop', 'there', (stage) => ['XGROUP', 'CREATECONSUMER', S(stage), 'g', 'c']);
  subject('xgroup|createconsumer', 'wrongtype', 'string', ({ key }) => [
    ...['XGROUP', 'CREATECONSUMER', key('v'), 'g', 'd'],
  ]);
  subject(
    'xgroup|delconsumer',
    'allowed',
    '',
    (stage) => ['XGROUP', 'DELCONSUMER', S(stage), 'g', 'c'],
    onS((place, { label }) => acknowledge(place, 'g', [label('s2')])),
  );
  subject('xgroup|delconsumer', 'noop', 'absent', (stage) => ['XGROUP', 'DELCONSUMER', S(stage), 'g', 'nobody']);
  subject('xgroup|delconsumer', 'wrongtype', 'string', ({ key }) => ['XGROUP', 'DELCONSUMER', key('v'), 'g', 'c']);
  subject(
    'xack',
    'allowed',
    '',
    (stage) => ['XACK', S(stage), 'g', stage.id('s2')],
    onS((place, { label }) => acknowledge(place, 'g', [label('s2')])),
  );
  subject('xack', 'noop', 'again', (stage) => ['XACK', S(stage), 'g', stage.id('s1')]);
  subject('xack', 'wrongtype', 'string', ({ key }) => ['XACK', key('v'), 'g', '1-1']);
  subject('xclaim', 'allowed', '', (stage) => ['XCLAIM', S(stage), 'g', 'd', '0', stage.id('s2')]);
  subject('xclaim', 'noop', 'absent', (stage) => ['XCLAIM', S(stage), 'g', 'd', '0', '1-1']);
  subject('xclaim', 'wrongtype', 'string', ({ key }) => ['XCLAIM', key('v'), 'g', 'd', '0', '1-1']);
  subject('xautoclaim', 'allowed', '', (stage) => ['XAUTOCLAIM', S(stage), 'g', 'd', '0', '0']);
  subject('xautoclaim', 'noop', 'young', (stage) => ['XAUTOCLAIM', S(stage), 'g', 'd', '86400000', '0']);
  subject('xautoclaim', 'wrongtype', 'string', ({ key }) => ['XAUTOCLAIM', key('v'), 'g', 'd', '0', '0']);
  const read = (role: string, from: string): Words => {
    return ({ key }) => ['XREADGROUP', 'GROUP', 'g', 'd', 'COUNT', '1', 'STREAMS', key(role), from];
  };
  subject('xreadgroup', 'allowed', '', read('s', '>'));
  subject('xreadgroup', 'noop', 'own', read('s', '0'));
  subject('xreadgroup', 'wrongtype', 'string', read('v', '>'));

  // Whole keys.
  for (const command of ['del', 'unlink']) {
    const word = command.toUpperCase();
    subject(
      command,
      'allowed',
      '',
      (stage) => [word, S(stage)],
      onS((place) => end(place)),
    );
    subject(
      command,
      'allowed',
      'several',
      ({ key }) => [word, key('s'), key('t')],
      ({ place }) => inOrder(end(place('s')), end(place('t'))),
      { isDone: (value) => (value === 2 ? 'done' : value === 0 ? 'unchanged' : 'either') },
    );
    subject(command, 'noop', 'absent', ({ key }) => [word, key('x')]);
  }
  subject(
    'rename',
    'allowed',
    '',
    ({ key }) => ['RENAME', key('s'), key('x')],
    ({ place }) => move(place('s'), place('x')),
  );
  subject(
    'rename',
    'allowed',
    'onto',
    ({ key }) => ['RENAME', key('t'), key('s')],
    ({ place }) => move(place('t'), place('s')),
  );
  subject(
    'rename',
    'allowed',
    'string-onto',
    ({ key }) => ['RENAME', key('v'), key('s')],
    ({ place }) => replace(place('s')),
  );
  subject('rename', 'noop', 'absent', ({ key }) => ['RENAME', key('x'), key('s')]);
  subject('rename', 'noop', 'itself', ({ key }) => ['RENAME', key('s'), key('s')]);
  subject(
    'renamenx',
    'allowed',
    '',
    ({ key }) => ['RENAMENX', key('s'), key('x')],
    ({ place }) => move(place('s'), place('x')),
  );
  subject('renamenx', 'noop', 'there', ({ key }) => ['RENAMENX', key('s'), key('t')]);
  subject('renamenx', 'noop', 'onto', ({ key }) => ['RENAMENX', key('t'), key('s')]);
  subject(
    'copy',
    'allowed',
    '',
    ({ key }) => ['COPY', key('s'), key('x')],
    ({ place }) => copy(place('s'), place('x')),
  );
  subject(
    'copy',
    'allowed',
    'replace',
    ({ key }) => ['COPY', key('t'), key('s'), 'REPLACE'],
    ({ place }) => copy(place('t'), place('s')),
  );
  subject(
    'copy',
    'allowed',
    'database',
    ({ key, emptyDatabase }) => ['COPY', key('s'), key('s'), 'DB', String(emptyDatabase)],
    ({ place, emptyDatabase }) => copy(place('s'), place('s', emptyDatabase)),
  );
  subject('copy', 'noop', 'there', ({ key }) => ['COPY', key('t'), key('s')]);
  subject('copy', 'noop', 'absent', ({ key }) => ['COPY', key('x'), key('s'), 'REPLACE']);
  subject(
    'move',
    'allowed',
    '',
    ({ key, emptyDatabase }) => ['MOVE', key('s'), String(emptyDatabase)],
    ({ place, emptyDatabase }) => move(place('s'), place('s', emptyDatabase)),
  );
  subject('move', 'noop', 'there', ({ key, otherDatabase }) => ['MOVE', key('s'), String(otherDatabase)]);
  subject(
    'swapdb',
    'allowed',
    '',
    ({ database, otherDatabase }) => ['SWAPDB', String(database), String(otherDatabase)],
    ({ database, otherDatabase }) => swap(database, otherDatabase),
  );
  subject('swapdb', 'noop', 'itself', ({ database }) => ['SWAPDB', String(database), String(database)]);
  for (const command of ['restore', 'restore-asking']) {
    const word = command.toUpperCase();
    subject(
      command,
      'allowed',
      '',
      ({ key, dump }) => [word, key('x'), '0', dump],
      ({ place, dumped }) => put(place('x'), dumped),
    );
    subject(
      command,
      'allowed',
      'replace',
      ({ key, dump }) => [word, key('s'), '0', dump, 'REPLACE'],
      ({ place, dumped }) => put(place('s'), dumped),
    );
    subject(command, 'noop', 'busy', ({ key, dump }) => [word, key('s'), '0', dump]);
  }
  subject('migrate', 'noop', 'absent', ({ key, kvPort }) => [
    ...['MIGRATE', '127.0.0.1', String(kvPort), key('x'), '9', '1000'],
  ]);
  for (const [command, [far, past]] of Object.entries(SOURCES)) {
    const word = command.toUpperCase();
    subject(command, 'allowed', '', (stage) => [word, S(stage), far!]);
    subject(
      command,
      'allowed',
      'past',
      (stage) => [word, S(stage), past!],
      onS((place) => end(place)),
    );
    subject(command, 'noop', 'absent', ({ key }) => [word, key('x'), far!]);
    subject(command, 'noop', 'condition', (stage) => [word, S(stage), far!, 'XX']);
  }
  subject('persist', 'noop', '', (stage) => ['PERSIST', S(stage)]);
  subject('persist', 'noop', 'absent', ({ key }) => ['PERSIST', key('x')]);
  subject(
    'flushdb',
    'allowed',
    '',
    () => ['FLUSHDB'],
    ({ database }) => flush(database),
    {
      alsoSentAs: ['UNLINK', 'SCAN'],
    },
  );
  subject(
    'flushall',
    'allowed',
    '',
    () => ['FLUSHALL'],
    () => flush(),
    { alsoSentAs: ['UNLINK', 'SCAN'] },
  );

  // Another key in its place.
  const onto = (command: string, variant: string, words: Words, more: Partial<Subject> = {}) =>
    subject(
      command,
      'allowed',
      variant,
      words,
      onS((place) => replace(place)),
      { isDone: done, ...more },
    );
  onto('set', '', (stage) => ['SET', S(stage), 'v']);
  onto('setex', '', (stage) => ['SETEX', S(stage), '1000', 'v']);
  onto('psetex', '', (stage) => ['PSETEX', S(stage), '1000000', 'v']);
  onto('mset', '', (stage) => ['MSET', S(stage), 'v']);
  onto('bitop', '', ({ key }) => ['BITOP', 'NOT', key('s'), key('v')]);
  onto('sdiffstore', '', ({ key }) => ['SDIFFSTORE', key('s'), key('k')]);
  onto('sinterstore', '', ({ key }) => ['SINTERSTORE', key('s'), key('k')]);
  onto('sunionstore', '', ({ key }) => ['SUNIONSTORE', key('s'), key('k')]);
  onto('zdiffstore', '', ({ key }) => ['ZDIFFSTORE', key('s'), '1', key('z')]);
  onto('zinterstore', '', ({ key }) => ['ZINTERSTORE', key('s'), '1', key('z')]);
  onto('zunionstore', '', ({ key }) => ['ZUNIONSTORE', key('s'), '1', key('z')]);
  onto('zrangestore', '', ({ key }) => ['ZRANGESTORE', key('s'), key('z'), '0', '-1']);
  onto('sort', '', ({ key }) => ['SORT', key('l'), 'STORE', key('s')]);
  onto('geosearchstore', '', ({ key }) => [
    ...['GEOSEARCHSTORE', key('s'), key('geo'), 'FROMLONLAT', '1', '1', 'BYRADIUS', '999', 'km'],
  ]);
  onto('georadius', '', ({ key }) => ['GEORADIUS', key('geo'), '1', '1', '999', 'km', 'STORE', key('s')]);
  onto('georadiusbymember', '', ({ key }) => [
    ...['GEORADIUSBYMEMBER', key('geo'), 'here', '999', 'km', 'STORE', key('s')],
  ]);
  // An empty result deletes the key.
  subject(
    'sinterstore',
    'allowed',
    'empty',
    ({ key }) => ['SINTERSTORE', key('s'), key('x')],
    onS((place) => end(place)),
    {
      isDone: done,
    },
  );
  subject('set', 'noop', 'nx', (stage) => ['SET', S(stage), 'v', 'NX']);
  subject('set', 'wrongtype', 'get', (stage) => ['SET', S(stage), 'v', 'GET']);
  subject('setnx', 'noop', '', (stage) => ['SETNX', S(stage), 'v']);
  subject('msetnx', 'noop', '', ({ key }) => ['MSETNX', key('x'), 'v', key('s'), 'v']);
  subject('sunionstore', 'wrongtype', 'of-stream', ({ key }) => ['SUNIONSTORE', key('s'), key('t')]);
  subject('zunionstore', 'wrongtype', 'of-stream', ({ key }) => ['ZUNIONSTORE', key('s'), '1', key('t')]);
  subject('bitop', 'wrongtype', 'of-stream', ({ key }) => ['BITOP', 'NOT', key('s'), key('t')]);
  subject('sort', 'wrongtype', 'of-stream', ({ key }) => ['SORT', key('t'), 'STORE', key('s')]);

  // Scripts that are commands themselves; the form `script` has all others.
  const deleting = {
    noScript: true,
    alsoSentAs: ['EVAL', 'EVALSHA', 'FCALL'],
  };
  const deleted = onS((place) => end(place));
  subject('eval', 'allowed', '', (stage) => ['EVAL', DELETING_SCRIPT, '1', S(stage)], deleted, deleting);
  subject('evalsha', 'allowed', '', (stage) => ['EVALSHA', stage.deletingSha, '1', S(stage)], deleted, deleting);
  subject('fcall', 'allowed', '', (stage) => ['FCALL', 'matrix_delete', '1', S(stage)], deleted, deleting);

  // What cannot be done to a stream at all.
  for (const [command, words] of Object.entries(OF_OTHER_TYPES)) {
    subject(
      command,
      'wrongtype',
      '',
      ({ key }) => {
        const role = (word: string) => (word.startsWith('@') ? key(word.slice(1)) : word);
        return [...command.toUpperCase().split('|'), ...words.split(' ').map(role)];
      },
      undefined,
      { noScript: NO_SCRIPT.has(command) },
    );
  }
  return subjects;
}

const NO_SCRIPT = new Set(['blmove', 'blpop', 'brpop', 'brpoplpush', 'bzpopmax', 'bzpopmin', 'getorset']);

/** Commands for keys of other types, with `@` before a key. */
const OF_OTHER_TYPES: Readonly<Record<string, string>> = {
  append: '@s a',
  bitfield: '@s SET u8 0 1',
  blmove: '@s @x LEFT LEFT 0.01',
  blmpop: '0.01 1 @s LEFT',
  blpop: '@s 0.01',
  brpop: '@s 0.01',
  brpoplpush: '@s @x 0.01',
  bzmpop: '0.01 1 @s MIN',
  bzpopmax: '@s 0.01',
  bzpopmin: '@s 0.01',
  decr: '@s',
  decrby: '@s 2',
  geoadd: '@s 1 1 here',
  getdel: '@s',
  getex: '@s PERSIST',
  getorset: '@s v',
  getset: '@s v',
  hdel: '@s f',
  hincrby: '@s f 1',
  hincrbyfloat: '@s f 1',
  hmset: '@s f v',
  hset: '@s f v',
  hsetnx: '@s f v',
  incr: '@s',
  incrby: '@s 2',
  incrbyfloat: '@s 2',
  linsert: '@s BEFORE a b',
  lmove: '@s @x LEFT LEFT',
  lmpop: '1 @s LEFT',
  lpop: '@s',
  lpush: '@s a',
  lpushx: '@s a',
  lrem: '@s 0 a',
  lset: '@s 0 a',
  ltrim: '@s 0 1',
  pfadd: '@s a',
  pfdebug: 'GETREG @s',
  pfmerge: '@s @x',
  rpop: '@s',
  rpoplpush: '@s @x',
  rpush: '@s a',
  rpushx: '@s a',
  sadd: '@s a',
  setbit: '@s 1 1',
  setrange: '@s 1 a',
  smove: '@s @x a',
  spop: '@s',
  srem: '@s a',
  zadd: '@s 1 a',
  zincrby: '@s 1 a',
  zmpop: '1 @s MIN',
  zpopmax: '@s',
  zpopmin: '@s',
  zrem: '@s a',
  zremrangebylex: '@s - +',
  zremrangebyrank: '@s 0 1',
  zremrangebyscore: '@s 0 1',
};

/** Commands with write access that touch no key, with the reason. */
export const WITHOUT_KEYS: ReadonlySet<string> = new Set([
  'function|delete',
  'function|flush',
  'function|load',
  'function|restore',
]);

export const SUBJECTS: readonly Subject[] = build();
