import type { Ledger } from '../ledger/ledger.ts';
import type { Recovery } from '../recovery/recovery.ts';
import { type Figure, figuresNamed } from './metrics.ts';

export function streamLimitFigures(limit: { readonly refusedTotal: number }): Figure[] {
  return [
    figuresNamed('holdfast_').total(
      'ledger_streams_refused_total',
      'Streams refused at ledger.streamsMax and ledger.scopeStreamsMax',
      () => limit.refusedTotal,
    ),
  ];
}

export function ledgerFigures(ledger: Pick<Ledger, 'metrics'>, recovery: Pick<Recovery, 'status'>): Figure[] {
  const { current, total } = figuresNamed('holdfast_');
  const commit = () => ledger.metrics().commit;
  const outage = () => ledger.metrics().outage;
  const acknowledgements = () => ledger.metrics().acknowledgements;
  return [
    current('ledger_available', '1 while Postgres takes commits', () => (ledger.metrics().available ? 1 : 0)),
    current('ledger_streams', 'Streams in the ledger', () => ledger.metrics().streams),
    total('ledger_committed_total', 'Entries committed', () => commit().committedTotal),
    total('ledger_batches_total', 'Group commits', () => commit().batchesTotal),
    total('ledger_late_total', 'Entries whose epoch had moved, published again', () => commit().lateTotal),
    total('ledger_conflicts_total', 'Entries whose ID held other fields', () => commit().conflictsTotal),
    total('ledger_rejected_total', 'Entries that the ledger refused', () => commit().rejectedTotal),
    total('ledger_degraded_total', 'Entries accepted without the ledger', () => commit().degradedTotal),
    current('ledger_waiting_rows', 'Entries that wait for their commit', () => commit().waitingRows),
    current('ledger_waiting_bytes', 'Bytes of entries that wait for their commit', () => commit().waitingBytes),
    current('ledger_last_batch_seconds', 'Time of the last group commit', () => commit().lastBatchMs / 1000),
    total('outage_accepted_total', 'Entries taken by the ledger alone', () => outage().acceptedTotal),
    current('outage_waiting_rows', 'Entries that wait to be taken by the ledger alone', () => outage().waitingRows),
    total('acknowledgements_recorded_total', 'Acknowledgements written', () => acknowledgements().recordedTotal),
    total(
      'acknowledgements_dropped_total',
      'Acknowledgements dropped at their limit',
      () => acknowledgements().droppedTotal,
    ),
    current('acknowledgements_waiting', 'Acknowledgements that wait to be written', () => acknowledgements().waiting),
    current('recovery_open', '1 while what the KV store answers is known to be whole', () =>
      recovery.status().state === 'open' ? 1 : 0,
    ),
    current('recovery_leads', '1 in the process that restores', () => (recovery.status().leads ? 1 : 0)),
    current(
      'recovery_troubled_streams',
      'Streams in outage or under restoration',
      () => recovery.status().troubledTotal,
    ),
    current(
      'recovery_failing_streams',
      'Streams whose last attempt to restore or publish them failed',
      () => recovery.status().failing,
    ),
    total(
      'recovery_failures_total',
      'Attempts to restore, publish or settle that failed',
      () => recovery.status().failuresTotal,
    ),
    total('recovery_looks_total', 'Comparisons of KV store and ledger', () => recovery.status().looksTotal),
    total('recovery_losses_total', 'Losses noticed', () => recovery.status().lossesTotal),
    total('recovery_restores_total', 'Streams restored', () => recovery.status().restoresTotal),
    total('recovery_entries_restored_total', 'Entries restored', () => recovery.status().entriesRestoredTotal),
    total('recovery_aliases_total', 'Entries restored under another ID', () => recovery.status().aliasesTotal),
    total(
      'recovery_possible_duplicates_total',
      'Entries that may be in the stream twice',
      () => recovery.status().possibleDuplicatesTotal,
    ),
    current('recovery_last_restore_seconds', 'Time of the last restore', () => recovery.status().lastRestoreMs / 1000),
  ];
}
