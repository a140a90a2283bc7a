/** Several processes that serve as one: what the primary does, and what each of its members. */
import type { Logger } from 'pino';
import { AggregatorRegistry } from 'prom-client';
import { type Address, formatAddress, parseAddress } from '../config/address.ts';
import type { Config } from '../config/config.ts';
import { HoldfastError, messageOf } from '../errors.ts';
import { type Readiness, startHttpServer } from '../operations/http-server.ts';
import { mergeStatus } from '../operations/merge-status.ts';
import type { StatusReport } from '../operations/status-report.ts';
import { joinPrimary } from '../processes/member.ts';
import { startMembers } from '../processes/primary.ts';
import { removeStaleSocket } from '../proxy/proxy.ts';
import type { ReloadReport } from '../reload.ts';
import { startServers } from './servers.ts';
import { compose, type Holdfast } from './sidecar.ts';
import { type Steps, stopSteps } from './stop-steps.ts';

/** Several processes behind one port: this one holds the embedded servers and HTTP, the members serve. */
export async function composeProcesses(config: Config, log: Logger, steps: Steps): Promise<Holdfast> {
  const { kvServer, kvRestarts, databaseUrl, target } = await startServers(config, log, steps);
  for (const { address } of config.listen) if ('path' in address) await removeStaleSocket(address.path);
  const primary = await startMembers({
    count: config.processes,
    kvSocket: kvServer === undefined ? undefined : { ...target },
    databaseUrl: config.ledger.databaseUrl === undefined ? databaseUrl : undefined,
    log,
  });
  steps.onStop('processes', () => primary.stop());
  const addresses = primary.listen.map(parseAddress);

  async function status(): Promise<StatusReport> {
    const reports = (await primary.ask({ kind: 'status' })) as StatusReport[];
    if (reports.length === 0) throw new HoldfastError('STARTUP', 'no process answers');
    const merged = mergeStatus(reports, process.pid);
    if (kvServer === undefined) return merged;
    const { pid } = kvServer;
    const embedded = { embedded: true, restarts: kvRestarts() ?? 0, ...(pid === undefined ? {} : { processId: pid }) };
    return { ...merged, kv: { ...merged.kv, ...embedded } };
  }

  let http: Address | undefined;
  if (config.http !== 'off') {
    const aggregator = new AggregatorRegistry();
    const server = await startHttpServer({
      address: config.http,
      metrics: { contentType: aggregator.contentType, metrics: () => aggregator.clusterMetrics() },
      log,
      status,
      async readiness() {
        const answers = (await primary.ask({ kind: 'readiness' })) as Readiness[];
        const checks: Record<string, boolean> = { processes: answers.length === config.processes };
        for (const answer of answers) {
          for (const [name, holds] of Object.entries(answer.checks)) checks[name] = holds && (checks[name] ?? true);
        }
        return { ready: Object.values(checks).every(Boolean), checks };
      },
    });
    steps.onStop('HTTP', () => server.stop());
    http = server.address;
  }
  async function reload(): Promise<ReloadReport> {
    const reports = (await primary.ask({ kind: 'reload' })) as ReloadReport[];
    return [...new Set(reports.flat()), `processes: ${reports.length} of ${config.processes}`];
  }

  return { addresses, http, kvServer, status, reload, stop: () => steps.stop() };
}

/** A member's life: until the primary, or a signal, ends it. */
export async function serveAsMember(
  config: Config,
  log: Logger,
  reread: () => Config,
  signalled: Promise<void>,
): Promise<number> {
  const member = await joinPrimary();
  const steps = stopSteps(log);
  try {
    const holdfast = await compose(config, log, steps, reread, member);
    member.ready(holdfast.addresses.map(formatAddress));
    // The primary hears it too, and asks.
    process.on('SIGHUP', () => undefined);
    // A terminal's Ctrl-C reaches every process of the group; the primary says when it is time.
    void signalled;
    await member.stopRequested;
    await holdfast.stop();
  } catch (error) {
    member.failed(messageOf(error));
    await steps.stop();
    return 2;
  } finally {
    process.disconnect?.();
  }
  return 0;
}
