/** One status report of a sidecar with several processes: what is the same in all of them once, what is counted summed. */
import { mergeCacheSnapshots } from '../cache/cache.ts';
import type { StatusReport } from './status-report.ts';

/** `reports` has one for each process, at least one. */
export function mergeStatus(reports: readonly StatusReport[], processId: number): StatusReport {
  const [first] = reports as [StatusReport];
  const sum = (read: (report: StatusReport) => number): number =>
    reports.reduce((total, each) => total + read(each), 0);
  const lastError = reports.find((each) => each.ledger.lastError !== undefined)?.ledger.lastError;
  return {
    ...first,
    processId,
    processes: reports.length,
    clients: {
      connected: sum((each) => each.clients.connected),
      connectedTotal: sum((each) => each.clients.connectedTotal),
      refusedTotal: sum((each) => each.clients.refusedTotal),
      requestsTotal: sum((each) => each.clients.requestsTotal),
      lanes: sum((each) => each.clients.lanes),
    },
    ledger: {
      ...first.ledger,
      available: reports.every((each) => each.ledger.available),
      leads: reports.some((each) => each.ledger.leads),
      committedTotal: sum((each) => each.ledger.committedTotal),
      waitingRows: sum((each) => each.ledger.waitingRows),
      lossesTotal: sum((each) => each.ledger.lossesTotal),
      restoresTotal: sum((each) => each.ledger.restoresTotal),
      failing: sum((each) => each.ledger.failing),
      ...(lastError === undefined ? {} : { lastError }),
    },
    cache: mergeCacheSnapshots(reports.map((each) => each.cache)),
    memory: {
      residentBytes: sum((each) => each.memory.residentBytes),
      heapUsedBytes: sum((each) => each.memory.heapUsedBytes),
    },
  };
}
