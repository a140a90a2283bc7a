/** What a run of the matrix found, by kind. */
import type { Redness } from './lanes.ts';
import type { Verdict } from './play.ts';

export type Told = Verdict & { readonly red: Redness };

/** A violation without the labels, databases and IDs in it. */
function kindOf(violation: string): string {
  return violation
    .replace(/\b\d+-\d+\b/g, 'ID')
    .replace(/\b\d(s|t|outage|stray|beside|new)\d*(probe\d)?\b/g, (_, name: string) => `an entry (${name})`)
    .replace(/\b\d\/([a-z]+)/g, 'DB/$1')
    .replace(/group (g|h|made)\b/g, 'a group');
}

export function renderSummary(told: readonly Told[], tookMs: number): string {
  const red = told.filter((one) => one.red === 'again');
  const once = told.filter((one) => one.red === 'once');
  const fell = told.filter((one) => one.fell).length;
  const kinds = new Map<string, string[]>();
  for (const { id, violations } of red) {
    const [command, state] = id.split('/');
    for (const kind of new Set(violations.map((violation) => `${command} ${state}: ${kindOf(violation)}`))) {
      kinds.set(kind, [...(kinds.get(kind) ?? []), id]);
    }
  }
  const rows = [...kinds].sort(([, a], [, b]) => b.length - a.length);
  return [
    `${told.length} cases in ${Math.round(tookMs / 1000)} s: ${told.length - red.length - once.length} as a client may expect, ${red.length} red, ${once.length} red once; the fault fell in ${fell}`,
    ...rows.map(
      ([kind, ids]) => `${String(ids.length).padStart(5)}  ${kind}\n         ${ids.slice(0, 3).join('\n         ')}`,
    ),
  ].join('\n');
}
