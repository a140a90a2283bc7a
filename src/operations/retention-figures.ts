import type { Retention } from '../ledger/retention/retention.ts';
import { type Figure, figuresNamed } from './metrics.ts';

/** The size of the ledger, as of the last pass of retention: 0 until it was first measured. */
export function retentionFigures(retention: Pick<Retention, 'status'>): Figure[] {
  const { current, total } = figuresNamed('holdfast_ledger_');
  const status = () => retention.status();
  return [
    current('bytes', 'Bytes of the ledger, indexes included', () => status().size?.bytes ?? 0),
    current('rows', 'Entries in the ledger, as the statistics of Postgres have it', () => status().size?.rows ?? 0),
    current('rows_per_day', 'Entries a day, from the newest partitions', () => status().size?.rowsPerDay ?? 0),
    current('survivor_rows', 'Entries past retention that a group still needs', () => status().size?.survivorRows ?? 0),
    current('partitions', 'Partitions of the ledger', () => status().size?.partitions.length ?? 0),
    current('oldest_row_seconds', 'Age of the oldest entry', () => {
      const oldest = status().size?.oldestRowAt;
      return oldest === undefined ? 0 : Math.max(0, (Date.now() - Date.parse(oldest)) / 1000);
    }),
    current(
      'idle_groups',
      'Groups that have not moved for as long as entries are kept',
      () => status().idleGroups.length,
    ),
    total('partitions_dropped_total', 'Partitions dropped', () => status().partitionsDroppedTotal),
    total('entries_kept_total', 'Entries kept from dropped partitions', () => status().entriesKeptTotal),
  ];
}
