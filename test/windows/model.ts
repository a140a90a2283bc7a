/**
 * What a client may conclude from the replies that it got: a plain sequential key space, and the set of those that are possible.
 * It knows streams, groups and names, and nothing of Holdfast. A reply that says "done" maps each possible world to the one after the
 * command; a refusal or a no-op leaves all as they are; no reply, or an error that leaves the outcome open, keeps both.
 *
 * Entries are known by a label that stands in their field, not by ID: after a loss an entry may come back under another ID.
 */

export interface GroupModel {
  /** Labels of what the group is still to be given, or to acknowledge. */
  owed: ReadonlySet<string>;
}

export interface StreamModel {
  /** Labels, oldest first. */
  entries: readonly string[];
  groups: ReadonlyMap<string, GroupModel>;
}

/** A place is `database/role`. `other`: a key of another type. A place that is not in the map has no key. */
export type World = Map<string, StreamModel | 'other'>;

export type Effect = (world: World) => void;

/** What a reply says of its command. */
export type Conclusion = 'done' | 'unchanged' | 'either';

export const NO_EFFECT: Effect = () => {};

function streamAt(world: World, place: string): StreamModel | undefined {
  const value = world.get(place);
  return value === 'other' ? undefined : value;
}

/** XADD. A key that is not there is made: one of another type too, which no promise keeps from being lost. */
export function add(place: string, label: string): Effect {
  return (world) => {
    const { entries, groups } = streamAt(world, place) ?? { entries: [], groups: new Map() };
    const owing = [...groups].map(([name, { owed }]) => [name, { owed: new Set([...owed, label]) }] as const);
    world.set(place, { entries: [...entries, label], groups: new Map(owing) });
  };
}

function keep(place: string, wanted: (label: string, at: number, count: number) => boolean): Effect {
  return (world) => {
    const stream = streamAt(world, place);
    if (stream === undefined) return;
    const entries = stream.entries.filter((label, at, all) => wanted(label, at, all.length));
    const groups = [...stream.groups].map(
      ([name, { owed }]) => [name, { owed: new Set([...owed].filter((label) => entries.includes(label))) }] as const,
    );
    world.set(place, { entries, groups: new Map(groups) });
  };
}

/** XDEL. */
export function remove(place: string, labels: readonly string[]): Effect {
  return keep(place, (label) => !labels.includes(label));
}

/** XTRIM MAXLEN. */
export function trim(place: string, length: number): Effect {
  return keep(place, (_, at, count) => at >= count - length);
}

/** DEL, expiry. */
export function end(place: string): Effect {
  return (world) => void world.delete(place);
}

/** SET and its kin. */
export function replace(place: string): Effect {
  return (world) => void world.set(place, 'other');
}

/** COPY, RESTORE: `from` need not be there any more. */
export function put(place: string, value: StreamModel | 'other' | undefined): Effect {
  return (world) => {
    if (value === undefined) world.delete(place);
    else world.set(place, value);
  };
}

export function copy(from: string, to: string): Effect {
  return (world) => {
    const value = world.get(from);
    if (value !== undefined) world.set(to, value);
  };
}

/** RENAME, MOVE. */
export function move(from: string, to: string): Effect {
  return (world) => {
    const value = world.get(from);
    if (value === undefined || from === to) return;
    world.set(to, value);
    world.delete(from);
  };
}

/** FLUSHDB, or FLUSHALL without a database. */
export function flush(database?: number): Effect {
  return (world) => {
    for (const place of [...world.keys()]) {
      if (database === undefined || place.startsWith(`${database}/`)) world.delete(place);
    }
  };
}

export function swap(first: number, second: number): Effect {
  return (world) => {
    const before = [...world];
    world.clear();
    for (const [place, value] of before) {
      const [database, role] = place.split('/') as [string, string];
      const to = Number(database) === first ? second : Number(database) === second ? first : database;
      world.set(`${to}/${role}`, value);
    }
  };
}

/** XGROUP CREATE and SETID: from the beginning (`0`) or from the end (`$`). */
export function group(place: string, name: string, from: '0' | '$'): Effect {
  return (world) => {
    const stream = streamAt(world, place) ?? (world.has(place) ? undefined : { entries: [], groups: new Map() });
    if (stream === undefined) return;
    const owed = new Set(from === '0' ? stream.entries : []);
    world.set(place, { ...stream, groups: new Map([...stream.groups, [name, { owed }]]) });
  };
}

export function destroyGroup(place: string, name: string): Effect {
  return (world) => {
    const stream = streamAt(world, place);
    if (stream === undefined) return;
    world.set(place, { ...stream, groups: new Map([...stream.groups].filter(([other]) => other !== name)) });
  };
}

/** XACK, and what takes an entry from the pending ones. */
export function acknowledge(place: string, name: string, labels: readonly string[]): Effect {
  return (world) => {
    const stream = streamAt(world, place);
    const known = stream?.groups.get(name);
    if (stream === undefined || known === undefined) return;
    const owed = new Set([...known.owed].filter((label) => !labels.includes(label)));
    world.set(place, { ...stream, groups: new Map([...stream.groups, [name, { owed }]]) });
  };
}

export function inOrder(...effects: readonly Effect[]): Effect {
  return (world) => {
    for (const effect of effects) effect(world);
  };
}

/** The worlds that are possible for a client. Never empty. */
export class Model {
  #worlds: World[] = [new Map()];
  /** Per place: entries that nothing was promised of, such as those of a client that goes past Holdfast. */
  readonly #strays = new Map<string, Set<string>>();

  get worlds(): readonly World[] {
    return this.#worlds;
  }

  conclude(conclusion: Conclusion, effect: Effect): void {
    if (conclusion === 'unchanged') return;
    const after = this.#worlds.map((world) => {
      const next = new Map(world);
      effect(next);
      return next;
    });
    this.#worlds = conclusion === 'done' ? after : [...this.#worlds, ...after];
  }

  /** An entry that may be found at this place or not. */
  stray(place: string, label: string): void {
    this.#strays.set(place, (this.#strays.get(place) ?? new Set()).add(label));
  }

  isStray(place: string, label: string): boolean {
    return this.#strays.get(place)?.has(label) === true;
  }

  /** Whether this group exists at this place in every possible world. */
  isKnownGroup(place: string, name: string): boolean {
    return this.#worlds.every((world) => streamAt(world, place)?.groups.has(name) === true);
  }

  /** What breaks a promise in the world that fits best: nothing where one fits. */
  violations(observed: readonly Observation[]): readonly string[] {
    const all = this.#worlds.map((world) => observed.flatMap((seen) => this.#violationsIn(world, seen)));
    return all.reduce((best, violations) => (violations.length < best.length ? violations : best));
  }

  #violationsIn(world: World, { place, range, groups, added }: Observation): string[] {
    const value = world.get(place);
    const found: string[] = [];
    const entries = value === undefined || value === 'other' ? [] : value.entries;
    if (added !== undefined && !(value === 'other' && added.startsWith('WRONGTYPE'))) {
      found.push(`XADD to ${place} at rest: ${added}`);
    }
    const strange = (label: string) => !entries.includes(label) && !this.isStray(place, label);
    for (const label of range.filter(strange)) found.push(`${label} is in ${place}, where it should not be`);
    if (value === undefined || value === 'other') return found;
    for (const [name, { owed }] of value.groups) {
      // Where nobody has read, what is owed is at least to be there.
      const given = groups === undefined ? range : (groups.get(name) ?? 'nobody asked for it');
      if (typeof given === 'string') {
        found.push(`group ${name} of ${place}: ${given}`);
        continue;
      }
      for (const label of owed)
        if (!given.includes(label)) found.push(`${label} of ${place} is lost for group ${name}`);
      for (const label of groups === undefined ? [] : given.filter(strange))
        found.push(`${label} came to group ${name} of ${place}, and should not`);
    }
    // Without a group everything that was not deleted is to be there.
    const needed = value.groups.size === 0 ? entries : [];
    for (const label of needed) if (!range.includes(label)) found.push(`${label} of ${place} is lost`);
    return found;
  }
}

/** What is found at a place when everything has come to rest. */
export interface Observation {
  readonly place: string;
  /** Labels that XRANGE gives. */
  readonly range: readonly string[];
  /** By group: labels that it was given, or the error that its reader got. Absent where nobody has read. */
  readonly groups?: ReadonlyMap<string, readonly string[] | string> | undefined;
  /** What was wrong with an XADD there; nothing where it succeeded. */
  readonly added?: string | undefined;
}

/** What the reply to a command says. `undefined`: the connection broke first. */
export function concludeFrom(
  reply: unknown,
  isDone: (value: unknown) => Conclusion = (value) => (value === 0 || value === null ? 'unchanged' : 'done'),
): Conclusion {
  if (reply === undefined) return 'either';
  if (reply instanceof Error) return isRefusal(reply.message) ? 'unchanged' : 'either';
  return isDone(reply);
}

/** The KV store's judgement, or Holdfast's word that it did nothing. */
function isRefusal(text: string): boolean {
  return (
    /^(NOPERM|NOAUTH|WRONGPASS|WRONGTYPE|EXECABORT|NOGROUP|BUSYGROUP|BUSYKEY|NOSCRIPT|IOERR|ERR) ?/.test(text) ||
    /nothing was \w+/.test(text)
  );
}
