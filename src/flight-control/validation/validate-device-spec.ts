/** What a device is to be: `spec` of a Device, `spec.template.spec` of a Fleet. */
import { field, isList, isObject, type JsonObject } from '../manifest/json-value.ts';
import { isImage } from './formats.ts';
import type { Report } from './problems.ts';
import { type SpecContext, validateImage } from './spec-context.ts';
import { validateApplications } from './validate-applications.ts';
import { validateConfig } from './validate-config.ts';

const KNOWN = ['updatePolicy', 'os', 'config', 'applications', 'resources', 'systemd', 'consoles', 'decommissioning'];
const UNIT_PATTERN = /^[0-9a-zA-Z:\-_.\\[\]!*?]+(@[0-9a-zA-Z:\-_.\\[\]!*?]+)?(\.[a-zA-Z[\]!\-*?]+)?$/;
const UNIT_PATTERN_MAX = 256;

export function validateDeviceSpec(context: SpecContext, at: string, spec: unknown): void {
  const { report } = context;
  if (spec === null || spec === undefined) return;
  if (!isObject(spec)) {
    report.refuse(at, 'must be a map', spec);
    return;
  }
  for (const key of Object.keys(spec)) {
    if (KNOWN.includes(key)) continue;
    if (!context.template) report.warn(`${at}.${key}`, 'is not known, and has no effect');
    else report.refuse(`${at}.${key}`, 'is not known');
  }
  for (const key of ['consoles', 'decommissioning']) {
    if (field(spec, key) !== undefined) report.refuse(`${at}.${key}`, 'cannot be set here');
  }
  validateOs(context, `${at}.os`, field(spec, 'os'));
  validateConfig(context, `${at}.config`, field(spec, 'config'));
  validateApplications(context, `${at}.applications`, field(spec, 'applications'));
  validateSystemd(report, `${at}.systemd`, field(spec, 'systemd'));
  validateMonitors(report, `${at}.resources`, field(spec, 'resources'));
}

function validateOs(context: SpecContext, at: string, os: unknown): void {
  if (os === undefined || os === null) return;
  if (!isObject(os)) {
    context.report.refuse(at, 'must be a map', os);
    return;
  }
  validateImage(context, `${at}.image`, field(os, 'image'), isImage);
}

function validateSystemd(report: Report, at: string, systemd: unknown): void {
  if (systemd === undefined || systemd === null) return;
  if (!isObject(systemd)) {
    report.refuse(at, 'must be a map', systemd);
    return;
  }
  const patterns = field(systemd, 'matchPatterns');
  if (patterns === undefined || patterns === null) return;
  if (!isList(patterns)) {
    report.refuse(`${at}.matchPatterns`, 'must be a list', patterns);
    return;
  }
  patterns.forEach((pattern, index) => {
    if (typeof pattern === 'string' && pattern.length <= UNIT_PATTERN_MAX && UNIT_PATTERN.test(pattern)) return;
    report.refuse(`${at}.matchPatterns[${index}]`, 'is no name or pattern of a systemd unit', pattern);
  });
}

const MONITORS = ['CPU', 'Memory', 'Disk'];

function validateMonitors(report: Report, at: string, monitors: unknown): void {
  if (monitors === undefined || monitors === null) return;
  if (!isList(monitors)) {
    report.refuse(at, 'must be a list', monitors);
    return;
  }
  const seen = new Set<string>();
  monitors.forEach((monitor, index) => {
    const place = `${at}[${index}]`;
    if (!isObject(monitor)) {
      report.refuse(place, 'must be a map', monitor);
      return;
    }
    const type = field(monitor, 'monitorType');
    if (typeof type !== 'string' || !MONITORS.includes(type)) {
      report.refuse(`${place}.monitorType`, 'must be CPU, Memory or Disk', type);
      return;
    }
    if (seen.has(type)) report.refuse(`${place}.monitorType`, 'this monitor is there twice', type);
    seen.add(type);
    if (type !== 'Disk' && field(monitor, 'path') !== undefined)
      report.refuse(`${place}.path`, `a ${type} monitor has no path`);
    validateAlerts(report, place, monitor);
  });
}

function validateAlerts(report: Report, at: string, monitor: JsonObject): void {
  const rules = field(monitor, 'alertRules');
  if (rules === undefined || rules === null) return;
  if (!isList(rules)) {
    report.refuse(`${at}.alertRules`, 'must be a list', rules);
    return;
  }
  const seen = new Set<unknown>();
  rules.forEach((rule, index) => {
    const place = `${at}.alertRules[${index}]`;
    if (!isObject(rule)) {
      report.refuse(place, 'must be a map', rule);
      return;
    }
    const severity = field(rule, 'severity');
    if (seen.has(severity)) report.refuse(`${place}.severity`, 'this severity is there twice', severity);
    seen.add(severity);
    const percentage = field(rule, 'percentage');
    if (typeof percentage !== 'number' || percentage < 0 || percentage > 100) {
      report.refuse(`${place}.percentage`, 'must be a number from 0 to 100', percentage);
    }
  });
}
