/**
 * One case: the stage is set, brought into its state, the command sent in its form, and the fault falls. When all is at rest, XADD and what
 * stands there are looked at; then the KV store is emptied once more, so that what the ledger believes is seen, and every group is read out.
 */
import { until } from '../chaos/process-control.ts';
import { armFault, type BackgroundStatements } from './faults.ts';
import type { Message } from './frames.ts';
import { type Hold, holdLooks, holdRestore } from './holds.ts';
import { LIMITED_USER, PASSWORD } from './kv-store.ts';
import { type Lane, SCOPED_USER } from './lane.ts';
import { type Case, idOf } from './matrix.ts';
import {
  acknowledge,
  add,
  concludeFrom,
  type Effect,
  end,
  group,
  inOrder,
  Model,
  NO_EFFECT,
  type Observation,
  replace,
} from './model.ts';
import { type Answer, demand, Hang, type Talker, type Word } from './raw-talk.ts';
import { ADDED, DELETING_SCRIPT, FUNCTION_LIBRARY, type Stage } from './subjects.ts';

export interface Verdict {
  readonly id: string;
  /** Empty: what was found is what a client may expect. */
  readonly violations: readonly string[];
  /** Whether the fault found its moment; `none` always does. */
  readonly fell: boolean;
  /** What the client was told. */
  readonly answers: readonly string[];
  readonly tookMs: number;
}

const DATABASES = [0, 3] as const;
const EMPTY_DATABASE = 5;
const S_LABELS = ['s1', 's2', 's3', 's4', 's5'];
const T_LABELS = ['t1', 't2'];
const OUTAGE_MS_MAX = 10_000;
const OUTAGE_GOES_ON_MS = 150;
const RESTORE_HELD_MS = 60;
const HELD_LOOK_MS_MAX = 150;
const EXPIRES_MS = 40;
const LEARNING_LOOKS = 6;

const SCRIPT = 'return redis.call(unpack(ARGV))';
const LEFT_BEHIND_FOR = '2 minutes';

let cases = 0;

export async function play(played: Case, lane: Lane, background: BackgroundStatements): Promise<Verdict> {
  const began = Date.now();
  cases += 1;
  const act = new Act(played, lane, background, `c${cases}:`);
  try {
    await act.run();
  } finally {
    lane.dropClients();
  }
  return {
    id: idOf(played),
    violations: act.violations,
    fell: act.fell,
    answers: act.answers.map(show),
    tookMs: Date.now() - began,
  };
}

function show(answer: Answer): string {
  if (answer === undefined) return '(connection broke)';
  if (answer instanceof Error) return `-${answer.message}`;
  if (Array.isArray(answer)) return `[${answer.map(show).join(' ')}]`;
  return String(answer).slice(0, 60);
}

class Act {
  readonly violations: string[] = [];
  answers: Answer[] = [];
  fell = true;
  readonly #case: Case;
  readonly #lane: Lane;
  readonly #background: BackgroundStatements;
  readonly #prefix: string;
  readonly #model = new Model();
  readonly #ids = new Map<string, string>();
  #dump: Buffer = Buffer.alloc(0);
  #deletingSha = '';

  constructor(played: Case, lane: Lane, background: BackgroundStatements, prefix: string) {
    this.#case = played;
    this.#lane = lane;
    this.#background = background;
    this.#prefix = prefix;
  }

  async run(): Promise<void> {
    const { state, fault } = this.#case;
    const lane = this.#lane;
    await lane.staff(this.#case.sidecars);
    const admin = await this.#login(0);
    await this.#setStage(admin);
    const client = await this.#connectSender();
    const stage = this.#stage(state === 'otherdb' || this.#case.form === 'multi-select' ? 3 : 0);
    if (this.#background.empty) await this.#learnBackground();
    const hold = await this.#bringAbout(admin);
    const armed = await armFault(fault, lane, this.#matcher(stage), this.#background);
    const release = () => {
      hold?.release();
      if (state === 'outage') return lane.kv.start();
    };
    const holdMs = state === 'outage' ? OUTAGE_GOES_ON_MS : state === 'restoring' ? RESTORE_HELD_MS : HELD_LOOK_MS_MAX;
    const released = new Promise((resolve) => setTimeout(resolve, holdMs)).then(release);
    this.answers = await this.#send(client, stage);
    await released;
    await armed.settle();
    this.fell = armed.fell || fault === 'none';
    await this.#judge();
  }

  #violation(text: string): void {
    if (!this.violations.includes(text)) this.violations.push(text);
  }

  #key(role: string): string {
    return `${this.#prefix}${role}`;
  }

  /** As the KV store has it. */
  #realKey(role: string): string {
    return this.#case.form === 'scope' ? `sc:${this.#key(role)}` : this.#key(role);
  }

  #stage(database: number): Stage {
    return {
      database,
      otherDatabase: database === 0 ? 3 : 0,
      emptyDatabase: EMPTY_DATABASE,
      key: (role) => this.#key(role),
      place: (role, at = database) => `${at}/${role}`,
      label: (name) => `${database}${name}`,
      id: (name) => this.#ids.get(`${database}${name}`)!,
      dump: this.#dump,
      dumped: {
        entries: T_LABELS.map((name) => `${database}${name}`),
        groups: new Map([['g', { owed: new Set(T_LABELS.map((name) => `${database}${name}`)) }]]),
      },
      deletingSha: this.#deletingSha,
      kvPort: this.#lane.kv.port,
    };
  }

  /** A client that may do everything with the keys of the stage, in this database. */
  async #login(database: number, at = 0): Promise<Talker> {
    const talker = await this.#lane.client(this.#lane.sidecars.at(at)!.port);
    const login = this.#case.form === 'scope' ? ['AUTH', SCOPED_USER, PASSWORD] : ['AUTH', PASSWORD];
    await demand(talker, [login, ['SELECT', String(database)]]);
    return talker;
  }

  async #connectSender(): Promise<Talker> {
    const { sender, state } = this.#case;
    const database = state === 'otherdb' ? 3 : 0;
    if (sender === 'admitted') return this.#login(database);
    const talker = await this.#lane.client(this.#lane.sidecars[0]!.port);
    if (sender === 'noperm') {
      await demand(talker, [
        ['AUTH', LIMITED_USER, PASSWORD],
        ['SELECT', String(database)],
      ]);
    }
    return talker;
  }

  async #setStage(admin: Talker): Promise<void> {
    for (const database of DATABASES) {
      const { key, label, place } = this.#stage(database);
      const xadd = (role: string, name: string): Word[] => ['XADD', key(role), '*', 'n', label(name)];
      const added = await demand(admin, [
        ['SELECT', String(database)],
        ['XGROUP', 'CREATE', key('s'), 'g', '0', 'MKSTREAM'],
        ['XGROUP', 'CREATE', key('s'), 'h', '0'],
        ['XGROUP', 'CREATE', key('t'), 'g', '0', 'MKSTREAM'],
        ...S_LABELS.map((name) => xadd('s', name)),
        ...T_LABELS.map((name) => xadd('t', name)),
      ]);
      const ids = added.slice(4).map(String);
      for (const [at, name] of [...S_LABELS, ...T_LABELS].entries()) this.#ids.set(label(name), ids[at]!);
      await demand(admin, [
        ['XREADGROUP', 'GROUP', 'g', 'c', 'COUNT', '2', 'STREAMS', key('s'), '>'],
        ['XACK', key('s'), 'g', ids[0]!],
        ['SET', key('v'), 'v'],
        ['SADD', key('k'), 'a'],
        ['ZADD', key('z'), '1', 'a'],
        ['RPUSH', key('l'), '1'],
        ['GEOADD', key('geo'), '1', '1', 'here'],
      ]);
      this.#model.conclude(
        'done',
        inOrder(
          ...['g', 'h'].map((name) => group(place('s'), name, '0')),
          group(place('t'), 'g', '0'),
          ...S_LABELS.map((name) => add(place('s'), label(name))),
          ...T_LABELS.map((name) => add(place('t'), label(name))),
          acknowledge(place('s'), 'g', [label('s1')]),
          ...['v', 'k', 'z', 'l', 'geo'].map((role) => replace(place(role))),
        ),
      );
    }
    const { command } = this.#case.subject;
    if (command.startsWith('restore')) {
      const database = this.#case.state === 'otherdb' || this.#case.form === 'multi-select' ? 3 : 0;
      await demand(admin, [['SELECT', String(database)]]);
      const [dump] = await demand(admin, [['DUMP', this.#key('t')]]);
      this.#dump = Buffer.from(String(dump), 'latin1');
    }
    if (command === 'evalsha') {
      const [sha] = await demand(admin, [['SCRIPT', 'LOAD', DELETING_SCRIPT]]);
      this.#deletingSha = String(sha);
    }
    if (command === 'fcall') await this.#lane.direct([['FUNCTION', 'LOAD', 'REPLACE', FUNCTION_LIBRARY]]);
    await demand(admin, [['SELECT', '0']]);
  }

  async #learnBackground(): Promise<void> {
    const endings = this.#lane.sidecars.map(({ ledgerProxy }) => this.#background.learn(ledgerProxy));
    const from = this.#lane.sidecars.map(({ looks }) => looks);
    await until('looks', OUTAGE_MS_MAX, () =>
      this.#lane.sidecars.every(({ looks }, at) => looks >= from[at]! + LEARNING_LOOKS),
    );
    for (const ending of endings) ending();
  }

  /** Gives what keeps the sidecars from noticing, or from ending what they do. */
  async #bringAbout(admin: Talker): Promise<Hold | undefined> {
    const lane = this.#lane;
    const { state } = this.#case;
    const streams = ['s', 't'].map((role) => this.#realKey(role));
    if (state === 'lost' || state === 'remade') {
      const hold = await holdLooks(lane.sidecars);
      for (const database of DATABASES) {
        const label = `${database}stray`;
        await lane.direct([
          ['SELECT', String(database)],
          ['DEL', ...streams],
          ...(state === 'remade' ? [['XADD', streams[0]!, '*', 'n', label]] : []),
        ]);
        if (state === 'remade') this.#model.stray(`${database}/s`, label);
      }
      return hold;
    }
    if (state === 'outage') {
      await lane.killKv();
      await this.#addInOutage(admin);
    }
    if (state === 'restoring') {
      const hold = holdRestore(lane.sidecars);
      await lane.direct([['FLUSHALL']]);
      await until('a restore', OUTAGE_MS_MAX, () => hold.held > 0, 2);
      return hold;
    }
    if (state === 'expired') {
      await demand(admin, [['PEXPIRE', this.#key('s'), String(EXPIRES_MS)]]);
      this.#model.conclude('done', end('0/s'));
      await until('expiry', OUTAGE_MS_MAX, async () => {
        const [, there] = await lane.direct([
          ['SELECT', '0'],
          ['EXISTS', streams[0]!],
        ]);
        return there === 0;
      });
    }
    return undefined;
  }

  /** Until the ledger takes one alone. */
  async #addInOutage(admin: Talker): Promise<void> {
    let at = 0;
    await until('an XADD in an outage', OUTAGE_MS_MAX, async () => {
      at += 1;
      const label = `0outage${at}`;
      const [answer] = await admin.talk([['XADD', this.#key('s'), '*', 'n', label]]);
      if (answer instanceof Hang) this.#violation(answer.message);
      this.#model.conclude(concludeFrom(answer), add('0/s', label));
      return typeof answer === 'string';
    });
  }

  /** Which request to the KV store is the command. */
  #matcher(stage: Stage): (request: Message) => boolean {
    const { subject, form } = this.#case;
    const names = new Set(
      form.startsWith('multi')
        ? ['EXEC']
        : form === 'script'
          ? ['EVAL', 'EVALSHA']
          : [String(subject.words(stage)[0]).toUpperCase(), ...(subject.alsoSentAs ?? [])],
    );
    return ({ words }) => names.has(words[0]?.toUpperCase() ?? '');
  }

  async #send(client: Talker, stage: Stage): Promise<Answer[]> {
    const { form, subject } = this.#case;
    const words = subject.words(stage);
    const effect = subject.effect(stage);
    const before: Word[] = ['XADD', stage.key('s'), '*', 'n', stage.label('beside')];
    const addBeside = add(stage.place('s'), stage.label('beside'));
    const known = ['g', 'h'].filter((name) => this.#model.isKnownGroup(stage.place('s'), name));
    const model = this.#model;
    const ofCommand = (answer: Answer): void => model.conclude(concludeFrom(answer, subject.isDone), effect);
    let answers: Answer[];
    if (form === 'plain' || form === 'scope') {
      answers = await client.talk([words]);
      ofCommand(answers[0]);
    } else if (form === 'behind-xadd') {
      answers = await client.talk([before, words]);
      model.conclude(concludeFrom(answers[0]), addBeside);
      ofCommand(answers[1]);
    } else if (form === 'script') {
      answers = await client.talk([['EVAL', SCRIPT, '1', stage.key('s'), ...words]]);
      ofCommand(answers[0]);
      // Of an XADD inside a script nothing is promised before it was taken in.
      for (const role of ['s', 'x']) this.#unpromised(stage.place(role), stage.label(ADDED));
    } else {
      const between = form === 'multi-select' ? [['SELECT', '3']] : [];
      const behind = form === 'multi-xadd' ? [before] : [];
      answers = await client.talk([['MULTI'], ...between, words, ...behind, ['EXEC']]);
      const executed = answers.at(-1);
      if (Array.isArray(executed)) {
        ofCommand(executed[between.length]);
        if (form === 'multi-xadd') model.conclude(concludeFrom(executed[1]), addBeside);
      } else {
        // All or nothing.
        model.conclude(concludeFrom(executed), inOrder(effect, form === 'multi-xadd' ? addBeside : NO_EFFECT));
      }
    }
    for (const answer of answers.flat(1)) {
      if (answer instanceof Hang) this.#violation(answer.message);
      const noGroup = answer instanceof Error ? /^NOGROUP .*consumer group '(.)'/.exec(answer.message) : null;
      if (noGroup !== null && known.includes(noGroup[1]!) && !answers.flat(1).some(isDeletion)) {
        this.#violation(
          `a client was told of a group that is known: ${(answer as Error).message}`.replace(this.#prefix, ''),
        );
      }
    }
    return answers;
  }

  #unpromised(place: string, label: string): void {
    const dropped: Effect = (world) => {
      const value = world.get(place);
      if (value === undefined || value === 'other') return;
      const without = (labels: Iterable<string>) => [...labels].filter((other) => other !== label);
      const groups = [...value.groups].map(([name, { owed }]) => [name, { owed: new Set(without(owed)) }] as const);
      world.set(place, { entries: without(value.entries), groups: new Map(groups) });
    };
    this.#model.conclude('done', dropped);
    this.#model.stray(place, label);
  }

  async #judge(): Promise<void> {
    const lane = this.#lane;
    const rest = async (when: string): Promise<void> => {
      const unrest = await lane.rest();
      if (unrest !== undefined) this.#violation(`no rest ${when}: ${unrest.replaceAll(this.#prefix, '')}`);
    };
    await rest('after the fault');
    // What was left behind is looked after when it is old.
    const aged = await lane.sql(`UPDATE holdfast.intention SET opened_at = opened_at - interval '${LEFT_BEHIND_FOR}'`);
    if (aged > 0) await rest('after what was left behind became old');
    const standing = await this.#lookAround('probe1');
    await lane.direct([['FLUSHALL']]);
    await rest('after the last loss');
    const read = await this.#readOut();
    for (const violation of this.#model.violations([...standing, ...read])) this.#violation(violation);
    if (this.violations.length > 0) return;
    const admin = await lane.client(lane.sidecars[0]!.port);
    await demand(admin, [['AUTH', PASSWORD], ['FLUSHALL']]);
  }

  /** Where an XADD goes, and what stands there. */
  async #lookAround(label: string): Promise<Observation[]> {
    const observed: Observation[] = [];
    for (const database of DATABASES) {
      const talker = await this.#login(database, -1);
      for (const role of ['s', 't']) {
        const place = `${database}/${role}`;
        const [answer] = await talker.talk([['XADD', this.#key(role), '*', 'n', `${database}${role}${label}`]]);
        this.#model.conclude(concludeFrom(answer), add(place, `${database}${role}${label}`));
        const added = typeof answer === 'string' ? undefined : show(answer).replace(/^-/, '');
        const [range] = await talker.talk([['XRANGE', this.#key(role), '-', '+']]);
        observed.push({ place, range: labelsOf(range), added });
      }
      talker.close();
    }
    return observed;
  }

  async #readOut(): Promise<Observation[]> {
    const observed: Observation[] = [];
    for (const [database, roles] of [
      [0, ['s', 't', 'x']],
      [3, ['s', 't', 'x']],
      [EMPTY_DATABASE, ['s']],
    ] as const) {
      const talker = await this.#login(database, -1);
      for (const role of roles) {
        const place = `${database}/${role}`;
        const key = this.#key(role);
        const [range] = await talker.talk([['XRANGE', key, '-', '+']]);
        const groups = new Map<string, readonly string[] | string>();
        for (const name of this.#groupsAt(place)) groups.set(name, await readGroup(talker, key, name, this.#prefix));
        observed.push({ place, range: labelsOf(range), groups });
      }
      talker.close();
    }
    return observed;
  }

  #groupsAt(place: string): ReadonlySet<string> {
    return new Set(
      this.#model.worlds.flatMap((world) => {
        const value = world.get(place);
        return value === undefined || value === 'other' ? [] : [...value.groups.keys()];
      }),
    );
  }
}

/** Behind a command that ended the stream no group is known. */
function isDeletion(answer: Answer): boolean {
  return answer === 'OK' || (typeof answer === 'number' && answer > 0);
}

function labelsOf(entries: Answer): string[] {
  if (!Array.isArray(entries)) return [];
  return entries.flatMap((entry: unknown) =>
    Array.isArray(entry) && Array.isArray(entry[1]) ? [String(entry[1][1])] : [],
  );
}

/** All that a group is given: what is pending, whoever has it, and what is new. */
async function readGroup(
  talker: Talker,
  key: string,
  name: string,
  prefix: string,
): Promise<readonly string[] | string> {
  const told = (answer: Answer): string => show(answer).replaceAll(prefix, '');
  const [claimed] = await talker.talk([['XAUTOCLAIM', key, name, 'judge', '0', '0', 'COUNT', '1000']]);
  if (!Array.isArray(claimed)) return told(claimed);
  const labels = labelsOf(claimed[1]);
  for (;;) {
    const [reply] = await talker.talk([['XREADGROUP', 'GROUP', name, 'judge', 'COUNT', '1000', 'STREAMS', key, '>']]);
    if (reply === null) return labels;
    if (!Array.isArray(reply)) return told(reply);
    const read = labelsOf((reply[0] as unknown[])[1]);
    if (read.length === 0) return labels;
    labels.push(...read);
  }
}
