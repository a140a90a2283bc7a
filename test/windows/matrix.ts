/**
 * The axes, and the cases: every subject with every two values of any two other axes in at least one case (a covering array of strength
 * two for each subject, so of strength three with it). The array is the same at each call; a case is known by its ID alone.
 */
import { seededRandom } from '../chaos/seeded-random.ts';
import { SUBJECTS, type Subject } from './subjects.ts';

export const STATES = ['whole', 'lost', 'remade', 'outage', 'restoring', 'expired', 'otherdb'] as const;
export type State = (typeof STATES)[number];

export const FORMS = ['plain', 'behind-xadd', 'multi', 'multi-xadd', 'multi-select', 'script', 'scope'] as const;
export type Form = (typeof FORMS)[number];

export const FAULTS = [
  'none',
  'kv-dies-before',
  'kv-dies-ran',
  'kv-dies-replied',
  'kv-cut-before',
  'kv-cut-ran',
  'kv-cut-late',
  'pg-cut-before-1',
  'pg-cut-during-1',
  'pg-cut-after-1',
  'pg-cut-before-2',
  'pg-cut-during-2',
  'pg-cut-after-2',
  'pg-readonly',
  'sidecar-dies-kv-before',
  'sidecar-dies-kv-ran',
  'sidecar-dies-pg-before-1',
  'sidecar-dies-pg-after-1',
  'sidecar-dies-pg-after-2',
] as const;
export type Fault = (typeof FAULTS)[number];

/** Who sends it: one who may; one whom the KV store refuses this; one who has not logged in. */
export const SENDERS = ['admitted', 'noperm', 'noauth'] as const;
export type Sender = (typeof SENDERS)[number];

export const SIDECARS = ['1', '2'] as const;

export interface Case {
  readonly subject: Subject;
  readonly state: State;
  readonly form: Form;
  readonly fault: Fault;
  readonly sender: Sender;
  readonly sidecars: 1 | 2;
}

type Row = readonly [State, Form, Fault, Sender, '1' | '2'];

function isPossible({ noScript, kind }: Subject, [state, form, , sender]: Row): boolean {
  if (form === 'script' && noScript) return false;
  // Whom the KV store has not let in has no scope either.
  if (form === 'scope' && sender !== 'admitted') return false;
  if (kind !== 'allowed' && sender !== 'admitted') return false;
  return !(form === 'multi-select' && state === 'otherdb');
}

export function idOf({ subject, state, form, fault, sender, sidecars }: Case): string {
  return [subject.name, state, form, fault, sender, sidecars].join('/');
}

function caseOf(subject: Subject, [state, form, fault, sender, sidecars]: Row): Case {
  return { subject, state, form, fault, sender, sidecars: sidecars === '1' ? 1 : 2 };
}

/** Throws where there is no such case. */
export function caseNamed(id: string): Case {
  const [name, ...row] = id.split('/');
  const subject = SUBJECTS.find((candidate) => candidate.name === name);
  if (subject === undefined) throw new Error(`no command of the matrix is called ${name}`);
  const axes: readonly (readonly string[])[] = [STATES, FORMS, FAULTS, SENDERS, SIDECARS];
  axes.forEach((values, at) => {
    if (!values.includes(row[at] ?? ''))
      throw new Error(`${id}: expected one of ${values.join(', ')} in place ${at + 2}`);
  });
  return caseOf(subject, row as unknown as Row);
}

function pairsOf(row: Row): string[] {
  const pairs: string[] = [];
  for (let a = 0; a < row.length; a += 1) {
    for (let b = a + 1; b < row.length; b += 1) pairs.push(`${a}${row[a]} ${b}${row[b]}`);
  }
  return pairs;
}

function allRows(subject: Subject): Row[] {
  const rows = STATES.flatMap((state) =>
    FORMS.flatMap((form) =>
      FAULTS.flatMap((fault) =>
        SENDERS.flatMap((sender) => SIDECARS.map((sidecars) => [state, form, fault, sender, sidecars] as Row)),
      ),
    ),
  );
  return rows.filter((row) => isPossible(subject, row));
}

/** How many rows are looked at for each one taken: more makes the array a little smaller. */
const CANDIDATES = 40;

function coveringRows(subject: Subject): Row[] {
  const random = seededRandom(`matrix/${subject.name}`);
  const rows = allRows(subject);
  // What the KV store refuses by type in any case needs no pairs: each value once.
  const parts = subject.kind === 'wrongtype' ? (row: Row) => row.map((value, at) => `${at}${value}`) : pairsOf;
  const open = new Map<string, Row[]>();
  for (const row of rows) {
    for (const part of parts(row)) {
      const having = open.get(part);
      if (having === undefined) open.set(part, [row]);
      else having.push(row);
    }
  }
  const taken: Row[] = [];
  for (let next = open.values().next(); next.done !== true; next = open.values().next()) {
    let best: Row = next.value[0]!;
    let bestGain = 0;
    for (let tries = 0; tries < CANDIDATES; tries += 1) {
      const candidate = random.pick(next.value);
      const gain = parts(candidate).filter((part) => open.has(part)).length;
      if (gain > bestGain) {
        best = candidate;
        bestGain = gain;
      }
    }
    taken.push(best);
    for (const part of parts(best)) open.delete(part);
  }
  return taken;
}

/** All cases of these subjects. */
export function matrixOf(subjects: readonly Subject[] = SUBJECTS): Case[] {
  return subjects.flatMap((subject) => coveringRows(subject).map((row) => caseOf(subject, row)));
}

/** In an order that the seed gives. */
export function shuffled<T>(items: readonly T[], seed: string): T[] {
  const random = seededRandom(seed);
  const result = [...items];
  for (let at = result.length - 1; at > 0; at -= 1) {
    const other = random.integer(0, at);
    [result[at], result[other]] = [result[other]!, result[at]!];
  }
  return result;
}
