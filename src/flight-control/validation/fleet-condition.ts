/** The condition Valid of a fleet: whether what its configuration refers to is there. */
import { createHash } from 'node:crypto';
import { field, isList, type JsonValue } from '../manifest/json-value.ts';
import { hasPlaceholders } from './template-text.ts';

export interface FleetCondition {
  readonly status: 'True' | 'False';
  readonly reason: 'Valid' | 'Invalid';
  readonly message: string;
}

/** What there is. `undefined` where a repository does not exist, or has no URL. */
export interface World {
  repositoryType(name: string): string | undefined;
  hasSecret(namespace: string, name: string): boolean;
}

/** Also gives the repositories referred to, those that do not exist included, each once. */
export function judgeFleetConfig(
  config: JsonValue | undefined,
  world: World,
): { condition: FleetCondition; repositories: string[] } {
  const wrong: { readonly name: string; readonly why: string }[] = [];
  const repositories: string[] = [];
  for (const item of isList(config) ? config : []) {
    const name = String(field(item, 'name') ?? '');
    const repository = field(field(item, 'gitRef') ?? field(item, 'httpRef'), 'repository');
    if (typeof repository === 'string' && !repositories.includes(repository)) repositories.push(repository);
    const why = judgeItem(item, world);
    if (why !== undefined) wrong.push({ name, why });
  }
  return { condition: conditionOf(wrong), repositories };
}

function conditionOf(wrong: readonly { readonly name: string; readonly why: string }[]): FleetCondition {
  const [first] = wrong;
  if (first === undefined) return { status: 'True', reason: 'Valid', message: '' };
  const names = wrong.map(({ name }) => name).join(', ');
  const message =
    wrong.length === 1
      ? `1 invalid configuration: ${names}. Error: ${first.why}`
      : `${wrong.length} invalid configurations: ${names}. First error: ${first.why}`;
  return { status: 'False', reason: 'Invalid', message };
}

function judgeItem(item: JsonValue, world: World): string | undefined {
  for (const [key, type] of [
    ['gitRef', 'git'],
    ['httpRef', 'http'],
  ] as const) {
    const repository = field(field(item, key), 'repository');
    if (typeof repository !== 'string') continue;
    const found = world.repositoryType(repository);
    if (found === undefined) return `there is no repository ${repository}`;
    if (found !== type) return `repository ${repository} is of type ${found}, ${key} needs ${type}`;
  }
  const secret = field(item, 'secretRef');
  const name = field(secret, 'name');
  const namespace = field(secret, 'namespace');
  if (typeof name !== 'string' || typeof namespace !== 'string') return undefined;
  if (hasPlaceholders(name) || hasPlaceholders(namespace)) return undefined;
  return world.hasSecret(namespace, name) ? undefined : `there is no secret ${namespace}/${name}`;
}

/** `v<generation>`; with the fingerprint of an outside change one of its own. */
export function templateVersionName(generation: number, fingerprint: string): string {
  if (fingerprint === '') return `v${generation}`;
  return `v${generation}-${createHash('sha256').update(fingerprint).digest('hex').slice(0, 8)}`;
}
