import type { OutboxPublisher } from '../recovery/outbox/outbox-publisher.ts';
import { type Figure, figuresNamed } from './metrics.ts';

/** What came by `holdfast.xadd()` in SQL and was published by this process. */
export function outboxFigures(outbox: Pick<OutboxPublisher, 'metrics'>): Figure[] {
  const { total } = figuresNamed('holdfast_outbox_');
  return [
    total('published_total', 'Entries published from the outbox', () => outbox.metrics().publishedTotal),
    total(
      'resumed_total',
      'Batches that a crash or a lost reply left in doubt, and that were found out',
      () => outbox.metrics().resumedTotal,
    ),
  ];
}
