/** `holdfast report`: says for a device what its agent would. */
import { HoldfastError } from '../../errors.ts';
import type { Subcommand } from '../../subcommand.ts';
import { type DeviceReport, reportDevices } from '../resources/report-device.ts';
import { oneResource, textFlag, withContext } from './command-context.ts';

const FLAGS = {
  'rendered-version': { type: 'string' },
  state: { type: 'string' },
  message: { type: 'string' },
  summary: { type: 'string' },
} as const;
const STATES = ['Updating', 'Updated', 'Error'] as const;
const SUMMARIES = ['Online', 'Unknown'] as const;

export const report: Subcommand = {
  help: () => `Usage: holdfast report device NAME --rendered-version N [--state ${STATES.join('|')}] [--message TEXT]
       [--summary ${SUMMARIES.join('|')}] [--org UUID]

Reports for a device, in place of its agent. Exit code 1: there is no such device.
`,
  async run(invocation) {
    return withContext(invocation, { flags: FLAGS, wordsMax: 2 }, async (context) => {
      const { kind, name } = oneResource(context.words, 'report');
      if (kind !== 'Device') throw new HoldfastError('CONFIG', 'report: only devices report');
      const renderedVersion = textFlag(context, 'rendered-version');
      if (renderedVersion === undefined || !/^\d{1,15}$/.test(renderedVersion)) {
        throw new HoldfastError('CONFIG', '--rendered-version: must be a whole number');
      }
      const one: DeviceReport = {
        name,
        renderedVersion,
        state: oneOf('state', textFlag(context, 'state'), STATES),
        message: textFlag(context, 'message'),
        summary: oneOf('summary', textFlag(context, 'summary'), SUMMARIES),
      };
      const unknown = await reportDevices(context.pool, context.org, [one]);
      invocation.write(unknown.length === 0 ? `Device/${name} reported\n` : `there is no Device/${name}\n`);
      return unknown.length === 0 ? 0 : 1;
    });
  },
};

function oneOf<T extends string>(flag: string, value: string | undefined, allowed: readonly T[]): T | undefined {
  const found = allowed.find((one) => one === value);
  if (value !== undefined && found === undefined) {
    throw new HoldfastError('CONFIG', `--${flag}: must be ${allowed.join(' or ')}`);
  }
  return found;
}
