/** Whether a rollout has anything to do for one device. */

export interface OwnedDevice {
  /** `Fleet/<name>`, or none. */
  readonly owner: string | undefined;
  readonly multipleOwners: boolean;
  readonly decommissioning: boolean;
  /** What its spec was expanded from. */
  readonly templateVersion: string | undefined;
  /** The expanded template is its spec already. */
  readonly sameSpec: boolean;
}

/** `write`: its spec and template version are written, in one update, and it is rendered even where the spec is equal. */
export function decideDeviceRollout(device: OwnedDevice, fleetTemplateVersion: string): 'skip' | 'write' {
  if (device.owner?.startsWith('Fleet/') !== true) return 'skip';
  if (device.multipleOwners || device.decommissioning) return 'skip';
  return device.templateVersion === fleetTemplateVersion && device.sameSpec ? 'skip' : 'write';
}
