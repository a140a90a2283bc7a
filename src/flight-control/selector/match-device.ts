/**
 * Whose a device is: decided from the device and all fleets, the same whether an event of the device or of a fleet asks.
 *
 *   fleets that match   owner            condition MultipleOwners
 *   0                   none             False, if it was True
 *   1                   that fleet       False, if it was True
 *   more                stays            True, with their names
 *
 * A device that is owned by something else than a fleet is left alone; one that is being decommissioned keeps its owner.
 */
import { field, type JsonValue } from '../manifest/json-value.ts';
import { type Labels, matchesLabels } from './label-selector.ts';

export interface MatchedDevice {
  readonly labels: Labels | null;
  readonly owner: string | null;
  /** Of the condition MultipleOwners while it is True. */
  readonly multipleOwnersMessage: string | null;
  readonly decommissioning: boolean;
}

export interface MultipleOwners {
  readonly status: 'True' | 'False';
  readonly reason: string;
  readonly message: string;
}

export type MatchEvent =
  | {
      readonly reason: 'ResourceUpdated';
      readonly updatedFields: readonly ['owner'];
      readonly previousOwner: string | null;
      readonly newOwner: string | null;
    }
  | { readonly reason: 'DeviceMultipleOwnersDetected'; readonly matchingFleets: readonly string[] }
  | {
      readonly reason: 'DeviceMultipleOwnersResolved';
      readonly resolutionType: 'SingleMatch' | 'NoMatch';
      readonly assignedOwner: string | null;
      readonly previousMatchingFleets: readonly string[];
    };

export interface MatchDecision {
  /** Sorted. */
  readonly matching: readonly string[];
  readonly owner: string | null;
  readonly multipleOwners: 'unchanged' | MultipleOwners;
  readonly events: readonly MatchEvent[];
}

const FLEET = 'Fleet/';

/** `fleets`: the selector of each by its name. */
export function matchDevice(
  device: MatchedDevice,
  fleets: Iterable<readonly [string, JsonValue | undefined]>,
): MatchDecision {
  const matching: string[] = [];
  for (const [name, selector] of fleets) {
    if (matchesLabels(field(selector, 'matchLabels'), device.labels)) matching.push(name);
  }
  matching.sort();
  if (device.owner !== null && !device.owner.startsWith(FLEET)) {
    return { matching, owner: device.owner, multipleOwners: 'unchanged', events: [] };
  }
  const before = device.multipleOwnersMessage || null;
  if (matching.length > 1) return several(device.owner, matching, before);
  const wanted = matching.length === 1 ? `${FLEET}${matching[0]}` : null;
  const owner = device.decommissioning ? device.owner : wanted;
  const events: MatchEvent[] = [];
  if (owner !== device.owner) {
    events.push({ reason: 'ResourceUpdated', updatedFields: ['owner'], previousOwner: device.owner, newOwner: owner });
  }
  if (before === null) return { matching, owner, multipleOwners: 'unchanged', events };
  events.push({
    reason: 'DeviceMultipleOwnersResolved',
    resolutionType: matching.length === 1 ? 'SingleMatch' : 'NoMatch',
    assignedOwner: owner,
    previousMatchingFleets: before.split(','),
  });
  return { matching, owner, multipleOwners: { status: 'False', reason: '', message: '' }, events };
}

function several(owner: string | null, matching: readonly string[], before: string | null): MatchDecision {
  const message = matching.join(',');
  return {
    matching,
    owner,
    multipleOwners: message === before ? 'unchanged' : { status: 'True', reason: 'MultipleOwners', message },
    events: before === null ? [{ reason: 'DeviceMultipleOwnersDetected', matchingFleets: matching }] : [],
  };
}
