/** Plays the agents of a fleet: each device reports what was rendered for it, some time later, and some fail. */
import { type DeviceReport, reportDevices } from './report-device.ts';
import type { Database } from './store.ts';

export interface Simulation {
  readonly org: string;
  readonly fleet: string;
  /** Share of updates that fail, 0 to 1. */
  readonly failing: number;
  /** From the first look at a new rendered version to its report. */
  readonly delayMs: number;
  readonly random: () => number;
}

const PAGE = 1000;

interface Due {
  readonly version: string;
  readonly at: number;
}

/** A player remembers what it has seen; `step` gives how many reported. */
export function createPlayer(database: Database, simulation: Simulation): { step(now: number): Promise<number> } {
  const due = new Map<string, Due>();
  return {
    async step(now) {
      let reported = 0;
      for (let after = ''; ; ) {
        const page = await behind(database, simulation, after);
        const reports: DeviceReport[] = [];
        for (const { name, version } of page) {
          const seen = due.get(name);
          if (seen?.version !== version) due.set(name, { version, at: now + simulation.delayMs });
          if ((due.get(name)?.at ?? 0) > now) continue;
          due.delete(name);
          const fails = simulation.random() < simulation.failing;
          reports.push({
            name,
            renderedVersion: version,
            state: fails ? 'Error' : 'Updated',
            message: fails ? 'simulated failure' : undefined,
          });
        }
        if (reports.length > 0) await reportDevices(database, simulation.org, reports);
        reported += reports.length;
        if (page.length < PAGE) return reported;
        after = page.at(-1)!.name;
      }
    },
  };
}

/** Devices of the fleet that have not reported what was rendered for them. */
async function behind(
  database: Database,
  { org, fleet }: Simulation,
  after: string,
): Promise<{ readonly name: string; readonly version: string }[]> {
  const { rows } = await database.query<{ name: string; version: string }>(
    `SELECT name, annotations ->> 'device-controller/renderedVersion' AS version FROM flight_control.resource
      WHERE org = $1 AND owner = $2 AND kind = 'Device' AND name > $3
        AND annotations ->> 'device-controller/renderedVersion' IS DISTINCT FROM status #>> '{config,renderedVersion}'
        AND annotations ? 'device-controller/renderedVersion'
      ORDER BY name LIMIT ${PAGE}`,
    [org, `Fleet/${fleet}`, after],
  );
  return rows;
}
