/** The golden cases of template expansion, the limits, and what must not be in a template's reach. */
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { Template } from '../../src/flight-control/templates/template.ts';

interface Case {
  readonly id: string;
  readonly level: 'core' | 'extra';
  readonly template: string;
  readonly device: { readonly name: string; readonly labels: Record<string, string> | null };
  readonly apply: 'accepted' | 'rejected';
  readonly rejectClass?: string;
  readonly result?: string;
  readonly errorClass?: string;
}

const golden = new URL('../golden/templates.json', import.meta.url);
const { cases } = JSON.parse(readFileSync(golden, 'utf8')) as { cases: readonly Case[] };

function applied(source: string): Template {
  const checked = Template.check(source);
  if (!(checked instanceof Template)) throw new Error(checked.problem.message);
  return checked;
}

function refused(source: string): { reason: string; message: string } {
  const checked = Template.check(source);
  if (checked instanceof Template) throw new Error(`was accepted: ${source.slice(0, 100)}`);
  return checked.problem;
}

describe('a golden case', () => {
  it.each(cases.map((one) => [one.id, one] as const))('%s', (_, { level, template, device, ...expected }) => {
    const checked = Template.check(template);
    if (!(checked instanceof Template)) {
      expect(checked.problem.message).toMatch(/^line \d+, column \d+: ./);
      // What is refused at apply gives no other result.
      if (level === 'extra' && expected.apply === 'accepted') return;
      expect(`${expected.apply} ${expected.rejectClass?.replace('run:', '')}`).toBe(
        `rejected ${checked.problem.reason}`,
      );
      return;
    }
    expect(expected.apply).toBe('accepted');
    const expansion = checked.expand(device);
    if ('problem' in expansion) expect(expansion.problem.reason).toBe(expected.errorClass);
    else expect(expansion.text).toBe(expected.result);
  });

  it('of level extra is nearly always supported', () => {
    const extra = cases.filter(({ level, apply }) => level === 'extra' && apply === 'accepted');
    const unsupported = extra.filter(({ template }) => !(Template.check(template) instanceof Template));
    expect(unsupported.map(({ template }) => template)).toEqual(['{{ 1i }}']);
  });
});

describe('limits', () => {
  it('a result, of a function or in all, is at most 1 MiB', () => {
    const grow = ' | replace "a" "aaaaaaaaaa"';
    expect(refused(`{{ "aaaaaaaaaa"${grow.repeat(6)} | len }}`)).toMatchObject({ reason: 'limit' });
    expect(refused(`{{ $x := printf "%0500000d" 1 }}{{ $x }}{{ $x }}{{ $x }}`)).toMatchObject({
      reason: 'limit',
      message: expect.stringContaining('1048576 bytes'),
    });
    expect(refused('{{ printf "%999999999d" 1 }}')).toMatchObject({ reason: 'functionError' });
  });

  it('steps are at most 100,000', () => {
    expect(refused('{{ 1 }}'.repeat(60_000))).toMatchObject({
      reason: 'limit',
      message: expect.stringContaining('steps'),
    });
  });

  it('nesting, of whatever kind, ends in a problem', () => {
    const wrapped = (count: number) => `{{ ${'('.repeat(count)}1${')'.repeat(count)} }}`;
    expect(applied(wrapped(50)).expand({ name: 'd', labels: null })).toEqual({ text: '1' });
    expect(refused(wrapped(100_000))).toMatchObject({ reason: 'tooDeep' });
    expect(refused('{{ if true }}'.repeat(100_000))).toMatchObject({ reason: 'tooDeep' });
    expect(refused(`{{ if true }}a${'{{ else if true }}b'.repeat(100_000)}{{ end }}`)).toMatchObject({
      reason: 'tooDeep',
    });
  });
});

describe('a template reaches nothing of JavaScript', () => {
  it.each(['__proto__', 'constructor', 'hasOwnProperty', 'toString', 'valueOf'])('%s', (name) => {
    const device = { name: 'd', labels: {} };
    expect(applied(`{{ index .metadata.labels "${name}" }}|`).expand(device)).toEqual({ text: '|' });
    expect(applied(`{{ getOrDefault .metadata.labels "${name}" "none" }}`).expand(device)).toEqual({ text: 'none' });
    expect(applied(`{{ .metadata.labels.${name} }}`).expand(device)).toMatchObject({
      problem: { reason: 'missingKey' },
    });
    expect(refused(`{{ ${name} }}`)).toMatchObject({ reason: 'syntax' });
    expect(refused(`{{ .${name} }}`)).toMatchObject({ reason: 'unsupportedField' });
    const own = { name: 'd', labels: new Map([[name, 'own']]) };
    expect(applied(`{{ .metadata.labels.${name} }}`).expand(own)).toEqual({ text: 'own' });
  });
});

it('a condition on a label that may be missing is warned of, with the ways out', () => {
  const template = applied('{{ if .metadata.labels.site }}a{{ end }}{{ if index .metadata.labels "site" }}b{{ end }}');
  expect(template.warnings).toHaveLength(1);
  expect(template.warnings[0]).toMatch(/\.metadata\.labels\.site.*index .*getOrDefault/);
  const { problem } = template.expand({ name: 'd1', labels: {} }) as { problem: { message: string } };
  expect(problem.message).toMatch(/^line 1, column 7: .*device "d1" has no label "site".*index .*getOrDefault/);
});
