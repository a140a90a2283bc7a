/**
 * A repository is another one now: its users are told, each by an event of its own: the fleets that refer to it, and the
 * devices that do and belong to no fleet.
 */
import type pg from 'pg';
import { addEvents, type NewEvent } from '../events/event.ts';
import type { Task, TaskContext } from './task.ts';

const PAGE = 500;
const USERS = [
  { kind: 'Fleet', path: '$.template.spec.config[*].*.repository ? (@ == $name)' },
  { kind: 'Device', path: '$.config[*].*.repository ? (@ == $name)' },
] as const;

export const repositoryUpdate: Task = {
  name: 'repositoryUpdate',
  async run(context) {
    const repository = context.event.involvedObject.name;
    for (const { kind, path } of USERS) {
      for (let after = ''; ; ) {
        context.signal.throwIfAborted();
        const names = await usersBehind(context.pool, context.orgId, kind, path, repository, after);
        await addEvents(
          context.pool,
          context.orgId,
          names.map((name) => updateOf(context, kind, name, repository)),
        );
        if (names.length < PAGE) break;
        after = names.at(-1)!;
      }
    }
  },
};

async function usersBehind(
  pool: pg.Pool,
  org: string,
  kind: string,
  path: string,
  repository: string,
  after: string,
): Promise<string[]> {
  const { rows } = await pool.query<{ name: string }>(
    `SELECT name FROM flight_control.resource
      WHERE org = $1 AND kind = $2 AND name > $3 AND (owner IS NULL OR owner NOT LIKE 'Fleet/%')
        AND jsonb_path_exists(spec, $4::jsonpath, jsonb_build_object('name', $5::text))
      ORDER BY name LIMIT ${PAGE}`,
    [org, kind, after, path, repository],
  );
  return rows.map(({ name }) => name);
}

function updateOf({ eventId }: TaskContext, kind: string, name: string, repository: string): NewEvent {
  return {
    id: eventId('ReferencedRepositoryUpdated', kind, name),
    kind,
    name,
    reason: 'ReferencedRepositoryUpdated',
    message: `Repository ${repository}, which this ${kind.toLowerCase()} refers to, was updated`,
    details: { repository },
    actor: 'task:repositoryUpdate',
  };
}
