import { describe, expect, it } from 'vitest';
import {
  type BatchLimit,
  type RolloutDevice,
  rollsOutAtOnce,
  selectBatch,
  selectRemaining,
} from '../../src/flight-control/rollout/batches.ts';
import { approval, batchProgress } from '../../src/flight-control/rollout/completion.ts';
import { decideDeviceRollout } from '../../src/flight-control/rollout/device-rollout.ts';
import { budgetRoom } from '../../src/flight-control/rollout/disruption-budget.ts';
import { type GoldenCase, goldenCases } from './golden.ts';

// biome-ignore lint/suspicious/noExplicitAny: each group has a shape of its own, which its test states
type Case = GoldenCase & Record<string, any>;

function ofGroup(group: string): readonly (readonly [string, Case])[] {
  return goldenCases<Case>('rollout').filter(([, one]) => one.group === group);
}

interface Batch {
  readonly selector?: { readonly matchLabels: Record<string, string> };
  readonly limit?: BatchLimit;
}

describe('batches', () => {
  it.each(ofGroup('batches'))('%s', (_, one) => {
    const given = one.devices as { name: string; labels: Record<string, string>; tv: string; online: boolean }[];
    let devices: RolloutDevice[] = given.map(({ tv, ...device }) => ({ ...device, templateVersion: tv }));
    const taken = (one.sequence as Batch[]).map(({ selector, limit }) => {
      const pairs = Object.entries(selector?.matchLabels ?? {});
      const names = selectBatch(devices, 'v2', limit, (labels) => pairs.every(([key, value]) => labels[key] === value));
      devices = devices.map((device) => (names.includes(device.name) ? { ...device, templateVersion: 'v2' } : device));
      return names;
    });
    expect(taken).toEqual(one.batches);
    expect(selectRemaining(devices, 'v2')).toEqual(one.implicitBatch);
  });
});

describe('completion', () => {
  it.each(ofGroup('completion'))('%s', (_, one) => {
    const devices = (one.devices as Record<string, unknown>[]).map((device) => ({
      selected: device.selected === true,
      renderedTemplateVersion: device.renderedTemplateVersion as string,
      upToDate: device.reportedRenderedVersion === 'same',
      failed: device.updatingReason === 'Error',
      overdue: device.renderedLongerAgoThanTimeout === true,
    }));
    expect(batchProgress(devices, one.fleetTemplateVersion)).toEqual({ complete: one.complete, report: one.report });
  });
});

function percent(threshold: string | null): number | undefined {
  return threshold === null ? undefined : Number.parseFloat(threshold);
}

describe('approval', () => {
  it.each(ofGroup('approval'))('%s', (_, one) => {
    const verdict = approval({
      batchNumber: one.batch,
      method: one.method,
      lastSuccessPercentage: one.lastSuccessPercentage ?? undefined,
      batchThreshold: percent(one.batchThreshold),
      policyThreshold: percent(one.policyThreshold),
    });
    expect(verdict).toBe(one.approved ? 'approved' : one.otherwise.toLowerCase());
  });
});

describe('disruption budget', () => {
  it.each(ofGroup('budget'))('%s', (_, one) => {
    const budget = { maxUnavailable: one.maxUnavailable ?? undefined, minAvailable: one.minAvailable ?? undefined };
    expect(one.groups.map((group: Parameters<typeof budgetRoom>[1]) => budgetRoom(budget, group))).toEqual(one.select);
  });
});

describe('a device that joins', () => {
  it.each(ofGroup('stage'))('%s', (_, one) => {
    expect(rollsOutAtOnce(one.batchNumber, one.sequenceLength)).toBe(one.newDevice === 'rolled out at once');
  });
});

// What races with a write is the write's to notice: those cases need the database.
describe('one device', () => {
  it.each(ofGroup('deviceRollout').filter(([, { race }]) => race === undefined))('%s', (_, { device, ...one }) => {
    const decision = decideDeviceRollout(
      {
        owner: device.owner ?? undefined,
        multipleOwners: device.multipleOwners === true,
        decommissioning: device.decommissioning === true,
        templateVersion: device.templateVersion,
        sameSpec: device.spec === 'same',
      },
      one.fleetTemplateVersion ?? 'v2',
    );
    expect(decision).toBe(one.expect === 'skip' ? 'skip' : 'write');
  });
});
