/** Which devices of a fleet a batch of its rollout takes. */

export interface RolloutDevice {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly templateVersion: string | undefined;
  readonly online: boolean;
}

/** A number of devices, a percentage of those that match, or no limit. */
export type BatchLimit = number | `${number}%` | undefined;

const NO_LIMIT = '100%';

/** How many more devices a batch may take. `matching`: all that its selector matches; `updated`: those of them at the version already. */
export function batchRoom(limit: BatchLimit, matching: number, updated: number): number {
  if (limit === undefined || limit === NO_LIMIT) return Number.POSITIVE_INFINITY;
  if (typeof limit === 'number') return limit;
  const share = Math.floor((matching * Number.parseFloat(limit)) / 100 + 0.5);
  return Math.max(0, share - updated);
}

/** The names of those that a batch takes, lowest first. `matches` is its selector; without one it matches all. */
export function selectBatch(
  devices: readonly RolloutDevice[],
  templateVersion: string,
  limit: BatchLimit,
  matches: (labels: Readonly<Record<string, string>>) => boolean = () => true,
): string[] {
  const matching = devices.filter(({ labels }) => matches(labels));
  const waiting = matching.filter((device) => device.templateVersion !== templateVersion);
  const room = batchRoom(limit, matching.length, matching.length - waiting.length);
  return sortedNames(waiting.filter(({ online }) => online)).slice(0, room);
}

/** The implicit last batch: everybody who is left, reachable or not. */
export function selectRemaining(devices: readonly RolloutDevice[], templateVersion: string): string[] {
  return sortedNames(devices.filter((device) => device.templateVersion !== templateVersion));
}

function sortedNames(devices: readonly RolloutDevice[]): string[] {
  return devices.map(({ name }) => name).sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
}

/** A device that joins the fleet waits for the batch that takes it while configured batches run. -1 is the preliminary step. */
export function rollsOutAtOnce(batchNumber: number, sequenceLength: number): boolean {
  return batchNumber >= sequenceLength;
}
