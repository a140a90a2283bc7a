import { expect, it } from 'vitest';
import {
  fleetKeyPrefix,
  gitDataKey,
  gitHashKey,
  httpKey,
  repositoryUrlKey,
  secretKey,
} from '../../src/flight-control/cache-key.ts';
import { type GoldenCase, goldenCases } from './golden.ts';

interface Case extends GoldenCase {
  readonly kind: string;
  readonly orgId: string;
  readonly fleet: string;
  readonly templateVersion: string;
  readonly repository: string;
  readonly targetRevision: string;
  readonly path: string;
  readonly namespace: string;
  readonly name: string;
  readonly url: string;
  readonly key: string | null;
}

function keyOf(one: Case): string | null {
  const { repository, targetRevision } = one;
  switch (one.kind) {
    case 'repo-url':
      return repositoryUrlKey(one, repository);
    case 'git-hash':
      return gitHashKey(one, repository, targetRevision);
    case 'git-data':
      return gitDataKey(one, repository, targetRevision, one.path);
    case 'k8ssecret-data':
      return secretKey(one, one.namespace, one.name);
    case 'http-data':
      return httpKey(one, one.url);
    case 'scope':
      return fleetKeyPrefix(one);
    default:
      throw new Error(`no such kind: ${one.kind}`);
  }
}

// The cases of standalone devices, and of two names with one key, are about who asks for keys and what a value says.
const cases = goldenCases<Case>('cache-keys').filter(([, { group }]) => group !== 'none');

it.each(cases)('%s', (_, one) => expect(keyOf(one)).toBe(one.key));

it('two names may have one key: values say what they are of', () => {
  const scope = { orgId: '00000000-0000-0000-0000-000000000000', fleet: 'f', templateVersion: 'v1' };
  const [, collision] = goldenCases<Case>('cache-keys').find(([, { kind }]) => kind === 'collide')!;
  expect([gitDataKey(scope, 'cfg', 'a/b', '/c'), gitDataKey(scope, 'cfg', 'a', 'b//c')]).toEqual([
    collision.key,
    collision.key,
  ]);
});
