import { expect, test } from 'vitest';
import type { JsonValue } from '../../src/flight-control/manifest/json-value.ts';
import { type Comparable, changeOf } from '../../src/flight-control/resources/compare-resources.ts';
import { judgeFleetConfig, templateVersionName } from '../../src/flight-control/validation/fleet-condition.ts';
import { validateResource } from '../../src/flight-control/validation/validate-resource.ts';
import golden from '../golden/validation.json' with { type: 'json' };

interface Case {
  readonly id: string;
  readonly group: string;
  readonly kind: string;
  readonly document?: JsonValue;
  readonly field?: string;
  readonly why?: string;
  readonly config: JsonValue;
  readonly world: { readonly repositories: Record<string, string>; readonly secrets: readonly string[] };
  readonly referencedRepositories: readonly string[];
  readonly generation: number;
  readonly fingerprint: string;
  readonly name: string;
  readonly before: Comparable | null;
  readonly after: Comparable;
  readonly expect: unknown;
}

const cases = golden.cases as unknown as Case[];

function generated(value: JsonValue): JsonValue {
  if (typeof value === 'string') {
    const match = /^GENERATE: '(.*)' repeated (\d+) times$/.exec(value);
    return match === null ? value : match[1]!.repeat(Number(match[2]));
  }
  if (Array.isArray(value)) return value.map(generated);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, member]) => [key, generated(member as JsonValue)]));
}

test.each(cases.filter(({ document }) => document !== undefined))('$id $group $field $why', (given) => {
  const { problems } = validateResource(generated(given.document!));
  if (given.expect === 'accept') expect(problems).toEqual([]);
  else expect(problems.map(({ field }) => field)).toContain(given.field);
});

test.each(cases.filter(({ group }) => group === 'fleetCondition'))('$id $group', (given) => {
  const { condition, repositories } = judgeFleetConfig(given.config, {
    repositoryType: (name) => given.world.repositories[name],
    hasSecret: (namespace, name) => given.world.secrets.includes(`${namespace}/${name}`),
  });
  const { messageShape, ...expected } = given.expect as { messageShape?: string; message?: string };
  expect(condition).toMatchObject(expected);
  if (messageShape !== undefined) {
    const shape = messageShape.replace(/[.*+?^$()[\]\\]/g, '\\$&').replace(/<[^>]*>/g, '.+');
    expect(condition.message).toMatch(new RegExp(`^${shape}$`));
  }
  expect(repositories).toEqual(given.referencedRepositories);
});

test.each(cases.filter(({ group }) => group === 'templateVersionName'))('$id $group', (given) => {
  expect(templateVersionName(given.generation, given.fingerprint)).toBe(given.name);
});

test.each(cases.filter(({ group }) => group === 'updatedFields'))('$id $group', (given) => {
  expect(changeOf(given.kind, given.before, given.after)).toEqual(given.expect);
});

test('lists all that is wrong with a document', () => {
  const { problems } = validateResource({
    apiVersion: 'v7',
    kind: 'Fleet',
    metadata: { name: 'A', labels: { a: true } },
    extra: 1,
    spec: { selector: {}, template: { spec: { config: [{ name: '', inline: [{ path: 'x', mode: -1 }] }] } } },
  });
  expect(problems.map(({ field }) => field)).toEqual([
    'apiVersion',
    'metadata.name',
    'metadata.labels.a',
    'extra',
    'spec.selector',
    'spec.template.spec.config[0].name',
    'spec.template.spec.config[0].inline[0].path',
    'spec.template.spec.config[0].inline[0].content',
    'spec.template.spec.config[0].inline[0].mode',
  ]);
});

test('never shows what may be a secret', () => {
  const secrets = { password: 'hunter2', token: 'hunter2', 'tls.key': 'hunter2!', tlsKey: 'hunter2' };
  const { problems } = validateResource({
    apiVersion: 'flightctl.io/v1beta1',
    kind: 'Repository',
    metadata: { name: 'r' },
    spec: { type: 'git', url: 'x', httpConfig: secrets, sshConfig: { sshPrivateKey: 'hunter2!' }, password: 'hunter2' },
  });
  expect(problems.length).toBeGreaterThan(4);
  expect(JSON.stringify(problems)).not.toContain('hunter2');
});
