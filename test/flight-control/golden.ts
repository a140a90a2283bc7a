/** The golden cases, as data. */
import { readFileSync } from 'node:fs';

export interface GoldenCase {
  readonly id: string;
  readonly group: string;
}

export function goldenCases<Case extends GoldenCase>(name: string): readonly (readonly [string, Case])[] {
  const file = new URL(`../golden/${name}.json`, import.meta.url);
  const { cases } = JSON.parse(readFileSync(file, 'utf8')) as { cases: readonly Case[] };
  return cases.map((one) => [`${one.id} ${one.group}`, one] as const);
}
