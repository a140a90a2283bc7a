/** `spec` of a Fleet: which devices, what they are to be, and how a change reaches them. */
import { field, isList, isObject, type JsonObject } from '../manifest/json-value.ts';
import { badLabelKey, badLabelValue, isDuration, isPercentage } from './formats.ts';
import type { Report } from './problems.ts';
import { validateDeviceSpec } from './validate-device-spec.ts';
import { validateLabels } from './validate-labels.ts';

const OPERATORS = ['In', 'NotIn', 'Exists', 'DoesNotExist'];

export function validateFleet(report: Report, spec: unknown): void {
  if (spec === undefined) {
    report.refuse('spec', 'is missing');
    return;
  }
  if (!isObject(spec)) {
    report.refuse('spec', 'must be a map', spec);
    return;
  }
  refuseUnknown(report, 'spec', spec, ['selector', 'template', 'rolloutPolicy']);
  validateSelector(report, 'spec.selector', field(spec, 'selector'));
  const given = field(spec, 'template');
  if (given === undefined) report.refuse('spec.template', 'is missing');
  else if (!isObject(given)) report.refuse('spec.template', 'must be a map', given);
  else {
    refuseUnknown(report, 'spec.template', given, ['metadata', 'spec']);
    validateLabels(report, 'spec.template.metadata.labels', field(field(given, 'metadata'), 'labels'));
    validateDeviceSpec({ report, template: true }, 'spec.template.spec', field(given, 'spec'));
  }
  validateRolloutPolicy(report, 'spec.rolloutPolicy', field(spec, 'rolloutPolicy'));
}

export function refuseUnknown(report: Report, at: string, value: JsonObject, known: readonly string[]): void {
  for (const key of Object.keys(value)) if (!known.includes(key)) report.refuse(`${at}.${key}`, 'is not known');
}

function validateSelector(report: Report, at: string, selector: unknown): void {
  if (selector === undefined || selector === null) return;
  if (!isObject(selector)) {
    report.refuse(at, 'must be a map', selector);
    return;
  }
  refuseUnknown(report, at, selector, ['matchLabels', 'matchExpressions']);
  const labels = field(selector, 'matchLabels');
  const expressions = field(selector, 'matchExpressions');
  if (labels === undefined && expressions === undefined) report.refuse(at, 'needs matchLabels or matchExpressions');
  validateLabels(report, `${at}.matchLabels`, labels);
  if (expressions === undefined || expressions === null) return;
  if (!isList(expressions)) {
    report.refuse(`${at}.matchExpressions`, 'must be a list', expressions);
    return;
  }
  expressions.forEach((expression, index) => {
    validateExpression(report, `${at}.matchExpressions[${index}]`, expression);
  });
}

function validateExpression(report: Report, at: string, expression: unknown): void {
  if (!isObject(expression)) {
    report.refuse(at, 'must be a map', expression);
    return;
  }
  const key = field(expression, 'key');
  const wrong = typeof key === 'string' ? badLabelKey(key) : 'must be text';
  if (wrong !== undefined) report.refuse(`${at}.key`, key === undefined ? 'is missing' : wrong, key);
  const operator = field(expression, 'operator');
  if (typeof operator !== 'string' || !OPERATORS.includes(operator)) {
    report.refuse(`${at}.operator`, `must be one of ${OPERATORS.join(', ')}`, operator);
    return;
  }
  const values = field(expression, 'values');
  const listed = operator === 'In' || operator === 'NotIn';
  if (values !== undefined && values !== null && !isList(values)) {
    report.refuse(`${at}.values`, 'must be a list', values);
    return;
  }
  const count = isList(values) ? values.length : 0;
  if (listed && count === 0) {
    report.refuse(`${at}.values`, `${operator} needs at least one value`);
    return;
  }
  if (!listed && count > 0) {
    report.refuse(`${at}.values`, `${operator} takes no values`);
    return;
  }
  if (!isList(values)) return;
  values.forEach((value, index) => {
    const reason = typeof value === 'string' ? badLabelValue(value) : 'must be text (quote it in YAML)';
    if (reason !== undefined) report.refuse(`${at}.values[${index}]`, reason, value);
  });
}

function validateRolloutPolicy(report: Report, at: string, policy: unknown): void {
  if (policy === undefined || policy === null) return;
  if (!isObject(policy)) {
    report.refuse(at, 'must be a map', policy);
    return;
  }
  refuseUnknown(report, at, policy, [
    'deviceSelection',
    'disruptionBudget',
    'successThreshold',
    'defaultUpdateTimeout',
  ]);
  const selection = field(policy, 'deviceSelection') ?? undefined;
  const budget = field(policy, 'disruptionBudget') ?? undefined;
  if (selection === undefined && budget === undefined) report.refuse(at, 'needs deviceSelection or disruptionBudget');
  validatePercentage(report, `${at}.successThreshold`, field(policy, 'successThreshold'));
  const timeout = field(policy, 'defaultUpdateTimeout');
  if (timeout !== undefined && timeout !== null && !isDuration(timeout)) {
    report.refuse(`${at}.defaultUpdateTimeout`, 'must be a whole number above 0 with s, m or h', timeout);
  }
  if (selection !== undefined) validateDeviceSelection(report, `${at}.deviceSelection`, selection);
  if (budget !== undefined) validateBudget(report, `${at}.disruptionBudget`, budget);
}

function validatePercentage(report: Report, at: string, value: unknown): void {
  if (value === undefined || value === null || isPercentage(value)) return;
  report.refuse(at, 'must be a percentage from 0% to 100%', value);
}

function validateDeviceSelection(report: Report, at: string, selection: unknown): void {
  if (!isObject(selection)) {
    report.refuse(at, 'must be a map', selection);
    return;
  }
  refuseUnknown(report, at, selection, ['strategy', 'sequence']);
  const strategy = field(selection, 'strategy');
  if (strategy !== 'BatchSequence')
    report.refuse(`${at}.strategy`, 'must be BatchSequence, there is no other', strategy);
  const sequence = field(selection, 'sequence');
  if (sequence === undefined || sequence === null) return;
  if (!isList(sequence)) {
    report.refuse(`${at}.sequence`, 'must be a list', sequence);
    return;
  }
  if (sequence.length === 0) report.refuse(`${at}.sequence`, 'needs at least one batch; leave it out for none');
  sequence.forEach((batch, index) => {
    const place = `${at}.sequence[${index}]`;
    if (!isObject(batch)) {
      report.refuse(place, 'must be a map', batch);
      return;
    }
    refuseUnknown(report, place, batch, ['selector', 'limit', 'successThreshold']);
    validateSelector(report, `${place}.selector`, field(batch, 'selector'));
    validateLimit(report, `${place}.limit`, field(batch, 'limit'));
    validatePercentage(report, `${place}.successThreshold`, field(batch, 'successThreshold'));
  });
}

function validateLimit(report: Report, at: string, limit: unknown): void {
  if (limit === undefined || limit === null || isPercentage(limit)) return;
  if (typeof limit !== 'number') {
    report.refuse(at, 'must be a number of devices or a percentage from 0% to 100%', limit);
    return;
  }
  if (!Number.isInteger(limit) || limit <= 0) report.refuse(at, 'must be a positive whole number', limit);
}

function validateBudget(report: Report, at: string, budget: unknown): void {
  if (!isObject(budget)) {
    report.refuse(at, 'must be a map', budget);
    return;
  }
  refuseUnknown(report, at, budget, ['minAvailable', 'maxUnavailable', 'groupBy']);
  const bounds = ['minAvailable', 'maxUnavailable'].filter((key) => (field(budget, key) ?? undefined) !== undefined);
  if (bounds.length === 0) report.refuse(at, 'needs minAvailable or maxUnavailable');
  for (const key of bounds) {
    const value = field(budget, key);
    if (typeof value === 'number' && Number.isInteger(value) && value >= 1) continue;
    report.refuse(`${at}.${key}`, 'must be a whole number of at least 1', value);
  }
  const groupBy = field(budget, 'groupBy');
  if (groupBy === undefined || groupBy === null) return;
  if (!isList(groupBy)) {
    report.refuse(`${at}.groupBy`, 'must be a list', groupBy);
    return;
  }
  groupBy.forEach((key, index) => {
    const reason = typeof key === 'string' ? badLabelKey(key) : 'must be the key of a label';
    if (reason !== undefined) report.refuse(`${at}.groupBy[${index}]`, reason, key);
    else if (groupBy.indexOf(key) !== index) report.refuse(`${at}.groupBy[${index}]`, 'is there twice', key);
  });
}
