/** Keys of what fleets' devices share of external sources. A device without a fleet uses none. */
import { createHash } from 'node:crypto';

/** Of one template version: everything that its devices share lies below. */
export interface CacheScope {
  readonly orgId: string;
  readonly fleet: string;
  readonly templateVersion: string;
}

function below({ orgId, fleet, templateVersion }: CacheScope, ...parts: readonly string[]): string {
  return ['v1', orgId, fleet, templateVersion, ...parts].join('/');
}

/** What begins all keys of a fleet, of whatever template version. */
export function fleetKeyPrefix({ orgId, fleet }: Omit<CacheScope, 'templateVersion'>): string {
  return `v1/${orgId}/${fleet}/`;
}

/** Holds the URL as text. */
export function repositoryUrlKey(scope: CacheScope, repository: string): string {
  return below(scope, 'repo-url', repository);
}

/** Holds 40 hex digits. */
export function gitHashKey(scope: CacheScope, repository: string, targetRevision: string): string {
  return below(scope, 'git-hash', repository, targetRevision);
}

/**
 * Holds JSON. Revision `a/b` with path `/c` and revision `a` with path `b//c` have one key: a value names what it is of, and a reader checks that.
 */
export function gitDataKey(scope: CacheScope, repository: string, targetRevision: string, path: string): string {
  return below(scope, 'git-data', repository, targetRevision, path);
}

/** Holds JSON. */
export function secretKey(scope: CacheScope, namespace: string, name: string): string {
  return below(scope, 'k8ssecret-data', namespace, name);
}

/** Holds the raw body. `url`: suffix included. */
export function httpKey(scope: CacheScope, url: string): string {
  return below(scope, 'http-data', createHash('md5').update(url).digest('hex'));
}
