/** A whole document: what every kind has, then its spec. */
import { field, isObject, type JsonValue } from '../manifest/json-value.ts';
import { API_VERSION, apiVersionsOf, isStoredKind, UNSTORED_KINDS } from '../resources/kinds.ts';
import { isDnsSubdomain } from './formats.ts';
import { type Findings, Report } from './problems.ts';
import { validateDeviceSpec } from './validate-device-spec.ts';
import { validateFleet } from './validate-fleet.ts';
import { validateLabels } from './validate-labels.ts';
import { validateRepository } from './validate-repository.ts';

const TOP = ['apiVersion', 'kind', 'metadata', 'spec', 'status'];
const METADATA = [
  'name',
  'labels',
  'annotations',
  'owner',
  'generation',
  'resourceVersion',
  'creationTimestamp',
  'deletionTimestamp',
];

export function validateResource(document: JsonValue): Findings {
  const report = new Report();
  if (!isObject(document)) {
    report.refuse('document', 'must be a map with apiVersion, kind, metadata and spec', document);
    return report;
  }
  const kind = field(document, 'kind');
  validateHead(report, document);
  for (const key of Object.keys(document)) if (!TOP.includes(key)) report.refuse(key, 'is not known');
  const spec = field(document, 'spec');
  switch (kind) {
    case 'Device':
      validateDeviceSpec({ report, template: false }, 'spec', spec);
      break;
    case 'Fleet':
      validateFleet(report, spec);
      break;
    case 'Repository':
      validateRepository(report, spec);
      break;
    default:
      if (spec !== undefined && spec !== null && !isObject(spec)) report.refuse('spec', 'must be a map', spec);
  }
  return report;
}

function validateHead(report: Report, document: JsonValue): void {
  const kind = field(document, 'kind');
  const version = field(document, 'apiVersion');
  if (version === undefined) report.refuse('apiVersion', `is missing: it is ${API_VERSION}`);
  else if (typeof version !== 'string' || !apiVersionsOf(kind).includes(version)) {
    report.refuse('apiVersion', `is not known: it is ${API_VERSION}`, version);
  }
  if (kind === undefined || kind === '') report.refuse('kind', 'is missing');
  else if (!isStoredKind(kind) && !UNSTORED_KINDS.includes(String(kind))) report.refuse('kind', 'is not known', kind);
  const metadata = field(document, 'metadata');
  if (metadata !== undefined && !isObject(metadata)) {
    report.refuse('metadata', 'must be a map', metadata);
    return;
  }
  const name = field(metadata, 'name');
  if (name === undefined || name === null) report.refuse('metadata.name', 'is missing');
  else if (typeof name !== 'string') report.refuse('metadata.name', 'must be text (quote it in YAML)', name);
  else if (!isDnsSubdomain(name)) {
    report.refuse('metadata.name', 'is not a DNS-1123 subdomain of at most 253 characters', name);
  }
  validateLabels(report, 'metadata.labels', field(metadata, 'labels'));
  for (const key of Object.keys(metadata ?? {})) {
    if (!METADATA.includes(key)) report.warn(`metadata.${key}`, 'is not known, and has no effect');
  }
  const resourceVersion = field(metadata, 'resourceVersion');
  if (resourceVersion !== undefined && !/^[0-9]{1,18}$/.test(String(resourceVersion))) {
    report.refuse('metadata.resourceVersion', 'must be a number', resourceVersion);
  }
}
