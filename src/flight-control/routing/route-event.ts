/**
 * Which tasks an event asks for, in the order in which they run:
 *
 *   fleetRollout           Device created, u[owner or labels]; Fleet batch dispatched, rollout started without batches
 *   fleetSelectorMatching  Fleet created, deleted, u[spec.selector]; Device created, u[labels]
 *   fleetValidation        Fleet created, u[spec.template], a repository or another dependency changed
 *   deviceRender           Device created, u[spec] unless delayed, a dependency changed, selected, …
 *   repositoryUpdate       Repository created, u[spec]
 *
 * u[x] is ResourceUpdated with x among `details.updatedFields`.
 */
import { field, isList, type JsonValue } from '../manifest/json-value.ts';
import type { QueueEvent } from './parse-body.ts';

export const TASKS = [
  'fleetRollout',
  'fleetSelectorMatching',
  'fleetValidation',
  'deviceRender',
  'repositoryUpdate',
] as const;
export type TaskName = (typeof TASKS)[number];

/** Events with other reasons are stored and shown, and nobody works on them. */
export const QUEUED_REASONS: ReadonlySet<string> = new Set([
  'ResourceCreated',
  'ResourceUpdated',
  'ResourceDeleted',
  'FleetRolloutStarted',
  'ReferencedRepositoryUpdated',
  'DependencyChangeDetected',
  'FleetRolloutDeviceSelected',
  'FleetRolloutBatchDispatched',
  'DeviceConflictResolved',
  'DeviceDecommissioned',
  'ApplicationLifecycleChanged',
]);

const DELAY_RENDER = 'fleet-controller/delayDeviceRender';
const RENDER_REASONS: ReadonlySet<string> = new Set([
  'ResourceCreated',
  'ReferencedRepositoryUpdated',
  'FleetRolloutDeviceSelected',
  'DependencyChangeDetected',
  'DeviceConflictResolved',
  'DeviceDecommissioned',
  'ApplicationLifecycleChanged',
]);

export function routeEvent(event: QueueEvent): TaskName[] {
  const { kind } = event.involvedObject;
  const wanted = new Set(
    kind === 'Device' ? deviceTasks(event) : kind === 'Fleet' ? fleetTasks(event) : repositoryTasks(event),
  );
  return TASKS.filter((task) => wanted.has(task));
}

/** The parts that an update changed. Details of another shape say nothing. */
export function updatedFields({ reason, details }: QueueEvent): readonly JsonValue[] {
  if (reason !== 'ResourceUpdated') return [];
  const fields = field(details, 'updatedFields');
  return isList(fields) ? fields : [];
}

function deviceTasks(event: QueueEvent): TaskName[] {
  const { reason, annotations } = event;
  const updated = updatedFields(event);
  const tasks: TaskName[] = [];
  if (reason === 'ResourceCreated' || updated.includes('owner') || updated.includes('labels'))
    tasks.push('fleetRollout');
  if (reason === 'ResourceCreated' || updated.includes('labels')) tasks.push('fleetSelectorMatching');
  const delayed = field(annotations, DELAY_RENDER) === 'true';
  if (RENDER_REASONS.has(reason) || (updated.includes('spec') && !delayed)) tasks.push('deviceRender');
  return tasks;
}

function fleetTasks(event: QueueEvent): TaskName[] {
  const updated = updatedFields(event);
  switch (event.reason) {
    case 'ResourceCreated':
      return ['fleetSelectorMatching', 'fleetValidation'];
    case 'ResourceDeleted':
      return ['fleetSelectorMatching'];
    case 'ResourceUpdated':
      return [
        ...(updated.includes('spec.selector') ? (['fleetSelectorMatching'] as const) : []),
        ...(updated.includes('spec.template') ? (['fleetValidation'] as const) : []),
      ];
    case 'ReferencedRepositoryUpdated':
    case 'DependencyChangeDetected':
      return ['fleetValidation'];
    case 'FleetRolloutBatchDispatched':
      return ['fleetRollout'];
    case 'FleetRolloutStarted':
      return field(event.details, 'rolloutStrategy') === 'None' ? ['fleetRollout'] : [];
    default:
      return [];
  }
}

function repositoryTasks(event: QueueEvent): TaskName[] {
  if (event.involvedObject.kind !== 'Repository') return [];
  return event.reason === 'ResourceCreated' || updatedFields(event).includes('spec') ? ['repositoryUpdate'] : [];
}
