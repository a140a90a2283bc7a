/** What devices say of themselves, in place of their agents: many in one statement. */
import type { JsonObject } from '../manifest/json-value.ts';
import type { Database } from './store.ts';

export const STATES = ['Updating', 'Updated', 'Error'] as const;
export const SUMMARIES = ['Online', 'Unknown'] as const;
const MESSAGE_MAX = 4096;

export interface DeviceReport {
  readonly name: string;
  readonly renderedVersion: string;
  /** `Error` where the update failed. */
  readonly state?: (typeof STATES)[number] | undefined;
  readonly message?: string | undefined;
  readonly summary?: (typeof SUMMARIES)[number] | undefined;
}

/** What is wrong with a report, or nothing. */
export function badReport(report: JsonObject): string | undefined {
  const { name, renderedVersion, state, message, summary } = report;
  const among = (list: readonly unknown[], value: unknown): boolean => value === undefined || list.includes(value);
  if (typeof name !== 'string' || name === '') return 'name is missing';
  if (!/^\d{1,15}$/.test(String(renderedVersion))) return 'renderedVersion must be a whole number';
  if (!among(STATES, state)) return `state must be one of ${STATES.join(', ')}`;
  if (!among(SUMMARIES, summary)) return `summary must be one of ${SUMMARIES.join(', ')}`;
  if (message === undefined) return undefined;
  if (typeof message !== 'string' || message.length > MESSAGE_MAX)
    return `message must be text of at most ${MESSAGE_MAX} characters`;
  return /\0|\p{Surrogate}/u.test(message) ? 'message holds a NUL or a lone surrogate' : undefined;
}

/** Gives the names that are no devices. */
export async function reportDevices(
  database: Database,
  org: string,
  reports: readonly DeviceReport[],
): Promise<string[]> {
  const now = new Date().toISOString();
  const patches = reports.map((report) => statusOf(report, now));
  const { rows } = await database.query<{ name: string }>(
    `UPDATE flight_control.resource AS r
        SET resource_version = r.resource_version + 1,
            status = r.status || given.patch || jsonb_build_object('conditions', (
              SELECT coalesce(jsonb_agg(c), '[]') || given.condition
                FROM jsonb_array_elements(coalesce(r.status -> 'conditions', '[]')) AS c
               WHERE c ->> 'type' <> 'Updating'))
       FROM (SELECT DISTINCT ON (name) * FROM unnest($2::text[], $3::jsonb[], $4::jsonb[]) WITH ORDINALITY
               AS given (name, patch, condition, position) ORDER BY name, position DESC) AS given
      WHERE r.org = $1 AND r.kind = 'Device' AND r.name = given.name
      RETURNING r.name`,
    [
      org,
      reports.map(({ name }) => name),
      patches.map(({ patch }) => JSON.stringify(patch)),
      patches.map(({ condition }) => JSON.stringify(condition)),
    ],
  );
  const known = new Set(rows.map(({ name }) => name));
  return [...new Set(reports.map(({ name }) => name))].filter((name) => !known.has(name));
}

function statusOf(report: DeviceReport, now: string): { patch: JsonObject; condition: JsonObject } {
  const state = report.state ?? 'Updated';
  return {
    patch: {
      config: { renderedVersion: report.renderedVersion },
      summary: { status: report.summary ?? 'Online' },
      lastSeen: now,
    },
    condition: {
      type: 'Updating',
      status: state === 'Updating' ? 'True' : 'False',
      reason: state,
      message: report.message ?? '',
      lastTransitionTime: now,
    },
  };
}
