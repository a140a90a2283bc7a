/** `holdfast report`: says for devices what their agents would. */
import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { HoldfastError } from '../../errors.ts';
import { createLogger } from '../../operations/logger.ts';
import type { Invocation, Subcommand } from '../../subcommand.ts';
import { badReport, type DeviceReport, reportDevices, STATES, SUMMARIES } from '../resources/report-device.ts';
import { serveReports } from '../resources/report-server.ts';
import { createPlayer } from '../resources/simulate-devices.ts';
import { type CommandContext, durationFlag, oneResource, textFlag, withContext } from './command-context.ts';

const FLAGS = {
  'rendered-version': { type: 'string' },
  state: { type: 'string' },
  message: { type: 'string' },
  summary: { type: 'string' },
  serve: { type: 'string' },
  'token-file': { type: 'string' },
  simulate: { type: 'boolean' },
  fleet: { type: 'string' },
  fail: { type: 'string' },
  delay: { type: 'string' },
} as const;
const LOOK_MS = 200;
const DELAY_MS = 1000;

export const report: Subcommand = {
  help: () => `Usage: holdfast report device NAME --rendered-version N [--state ${STATES.join('|')}] [--message TEXT]
                       [--summary ${SUMMARIES.join('|')}]
       holdfast report --serve HOST:PORT [--token-file FILE]
       holdfast report --simulate --fleet FLEET [--fail 5%] [--delay 1s]

Reports for devices, in place of their agents. Exit code 1: there is no such device.

  --serve      takes reports by POST /reports, a JSON list of at most 1,000, until it is interrupted
  --token-file what requests must carry as Authorization: Bearer; needed where HOST is not a loopback address
  --simulate   plays the agents of a fleet until it is interrupted
  --fail       the share of updates that fail
  --delay      from a new rendered version to its report
  --org UUID   the organization
`,
  async run(invocation) {
    return withContext(invocation, { flags: FLAGS, wordsMax: 2 }, async (context) => {
      const serve = textFlag(context, 'serve');
      if (serve !== undefined) return runServer(context, invocation, serve);
      if (context.flags.simulate === true) return runSimulation(context, invocation);
      return reportOne(context, invocation);
    });
  },
};

async function reportOne(context: CommandContext, { write }: Invocation): Promise<number> {
  const { kind, name } = oneResource(context.words, 'report');
  if (kind !== 'Device') throw new HoldfastError('CONFIG', 'report: only devices report');
  const given = ['state', 'message', 'summary'].flatMap((flag) => {
    const value = textFlag(context, flag);
    return value === undefined ? [] : [[flag, value] as const];
  });
  const one = { name, renderedVersion: textFlag(context, 'rendered-version') ?? '', ...Object.fromEntries(given) };
  const bad = badReport(one);
  if (bad !== undefined) throw new HoldfastError('CONFIG', `report: ${bad}`);
  const unknown = await reportDevices(context.pool, context.org, [one as DeviceReport]);
  write(unknown.length === 0 ? `Device/${name} reported\n` : `there is no Device/${name}\n`);
  return unknown.length === 0 ? 0 : 1;
}

async function runServer(context: CommandContext, invocation: Invocation, address: string): Promise<number> {
  const match = /^(\[[^\]]+\]|[^:]+):(\d{1,5})$/.exec(address);
  if (match === null) throw new HoldfastError('CONFIG', '--serve: must be HOST:PORT');
  const host = match[1]!.replace(/^\[|\]$/g, '');
  const file = textFlag(context, 'token-file');
  const token = file === undefined ? undefined : await readToken(resolve(invocation.workingDirectory, file));
  if (token === undefined && !/^(127\.|::1$|localhost$)/.test(host)) {
    throw new HoldfastError('CONFIG', `--serve: ${host} is not a loopback address, so say --token-file FILE`);
  }
  const { pool, org } = context;
  const log = createLogger({ level: 'info', pretty: invocation.terminal });
  const server = await serveReports({ database: pool, org, host, port: Number(match[2]), token, log });
  invocation.write(`reports are taken at ${host}:${server.port}\n`);
  await invocation.stopRequested;
  await server.stop();
  return 0;
}

async function readToken(file: string): Promise<string> {
  const token = await readFile(file, 'utf8').catch(() => '');
  if (token.trim() === '') throw new HoldfastError('CONFIG', `--token-file: ${file} cannot be read, or is empty`);
  return token.trim();
}

async function runSimulation(context: CommandContext, { write, stopRequested }: Invocation): Promise<number> {
  const fleet = textFlag(context, 'fleet');
  if (fleet === undefined) throw new HoldfastError('CONFIG', '--simulate: of which fleet? say --fleet FLEET');
  const share = /^(100|\d{1,2})%$/.exec(textFlag(context, 'fail') ?? '0%');
  if (share === null) throw new HoldfastError('CONFIG', '--fail: must be a percentage such as 5%');
  const player = createPlayer(context.pool, {
    org: context.org,
    fleet,
    failing: Number(share[1]) / 100,
    delayMs: durationFlag(context, 'delay') ?? DELAY_MS,
    random: Math.random,
  });
  let stopped = false;
  const stop = stopRequested.then(() => {
    stopped = true;
  });
  while (!stopped) {
    const reported = await player.step(performance.now());
    if (reported > 0) write(`${reported} devices reported\n`);
    await Promise.race([stop, new Promise((wake) => setTimeout(wake, LOOK_MS))]);
  }
  return 0;
}
