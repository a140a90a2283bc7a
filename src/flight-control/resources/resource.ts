/** A resource as it is stored, and as it is shown. */
import type { JsonObject, JsonValue } from '../manifest/json-value.ts';
import type { Labels } from '../selector/label-selector.ts';
import { API_VERSION } from './kinds.ts';
import { maskSecrets } from './secrets.ts';

export interface Resource {
  readonly kind: string;
  readonly name: string;
  readonly api_version: string;
  readonly labels: Labels;
  readonly annotations: Readonly<Record<string, string>>;
  readonly owner: string | null;
  readonly spec: JsonObject;
  readonly status: JsonObject;
  /** A bigint, as text. */
  readonly generation: string;
  readonly resource_version: string;
  readonly created_at: Date;
}

export const RESOURCE_COLUMNS = `kind, name, api_version, labels, annotations, owner, spec, status, generation,
  resource_version, created_at`;

/** Secrets are masked. Applied again as it is, it changes nothing. */
export function toDocument(resource: Resource): JsonObject {
  const { labels, annotations, owner, status } = resource;
  const filled = (value: object): boolean => Object.keys(value).length > 0;
  return {
    apiVersion: resource.api_version || API_VERSION,
    kind: resource.kind,
    metadata: {
      name: resource.name,
      ...(filled(labels) ? { labels } : {}),
      ...(filled(annotations) ? { annotations } : {}),
      ...(owner === null ? {} : { owner }),
      generation: Number(resource.generation),
      resourceVersion: resource.resource_version,
      creationTimestamp: resource.created_at.toISOString(),
    },
    spec: maskSecrets(resource.kind, resource.spec) as JsonValue,
    ...(filled(status) ? { status } : {}),
  };
}
