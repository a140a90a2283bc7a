import { isObject } from '../manifest/json-value.ts';
import { badLabelKey, badLabelValue } from './formats.ts';
import type { Report } from './problems.ts';

export function validateLabels(report: Report, at: string, labels: unknown): void {
  if (labels === undefined || labels === null) return;
  if (!isObject(labels)) {
    report.refuse(at, 'must be a map', labels);
    return;
  }
  for (const [key, value] of Object.entries(labels)) {
    const badKey = badLabelKey(key);
    if (badKey !== undefined) report.refuse(at, badKey);
    if (typeof value !== 'string') {
      report.refuse(`${at}.${key}`, 'must be text (quote it in YAML)', value);
      continue;
    }
    const badValue = badLabelValue(value);
    if (badValue !== undefined) report.refuse(at, `the value of ${key} ${badValue}`, value);
  }
}
