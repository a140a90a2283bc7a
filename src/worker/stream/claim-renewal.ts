/**
 * Keeps the claims on everything in hand fresh, and finds out which were lost: what belongs to another worker now is
 * aborted. What waits too long for a slot here is offered to the others.
 */
import type { Logger } from 'pino';
import type { App } from '../app.ts';
import type { Held } from '../entry.ts';
import type { Group } from '../group/group.ts';
import type { WorkerMetrics } from '../metrics.ts';
import type { Hand } from './claimed-entries.ts';
import type { Settlement } from './settlement.ts';

const BATCH_MAX = 500;
const WAITING_MS_MAX = 1000;

export interface ClaimKeeper {
  renew(): Promise<void>;
  /** Hands back what waits for a slot since 1 s; or only those of them that came from the retry consumer. */
  offerWaiting(onlyAgain: boolean): void;
  /** Gives everything up: another worker may be active on the ordered stream now. */
  dropAll(): void;
}

export function createClaimKeeper(options: {
  readonly app: App;
  readonly group: Group;
  readonly hand: Hand;
  readonly settlement: Settlement;
  readonly metrics: WorkerMetrics;
  readonly log: Logger;
}): ClaimKeeper {
  const { app, group, hand, settlement, metrics, log } = options;

  function lose(entry: Held, owner: string): void {
    const claim = owner === '' ? 'nowhere' : 'elsewhere';
    if (entry.claim === claim) return;
    entry.claim = claim;
    metrics.lostClaims.inc({ stream: group.stream });
    log.info({ id: entry.id, owner }, 'lost the claim on an entry');
    if (entry.state !== 'running') hand.letGo(entry);
    else if (claim === 'elsewhere') entry.abort?.(`the entry belongs to ${owner} now`);
  }

  return {
    async renew() {
      const now = performance.now();
      const due = hand.entries().filter((entry) => now - entry.renewedAt >= app.heartbeatMs / 2);
      for (let i = 0; i < due.length; i += BATCH_MAX) {
        const entries = due.slice(i, i + BATCH_MAX);
        const sentAt = performance.now();
        const lost = await group.renew(entries.map((entry) => entry.id));
        for (const entry of entries) {
          const owner = lost.get(entry.id);
          if (owner === undefined) entry.renewedAt = sentAt;
          // Delivered again since this was sent: that claim is newer than the answer. Settling: its own answer will tell.
          else if (entry.renewedAt <= sentAt && entry.state !== 'settling' && entry.state !== 'gone')
            lose(entry, owner);
        }
      }
    },
    offerWaiting(onlyAgain) {
      const before = performance.now() - WAITING_MS_MAX;
      for (const entry of hand.entries()) {
        if (onlyAgain && !entry.again) continue;
        if (entry.state === 'waiting' && entry.steps.length > 0 && entry.step === 0 && entry.waitingSince < before) {
          settlement.handBack(hand.withdraw(entry));
        }
      }
    },
    dropAll() {
      for (const entry of hand.entries()) {
        entry.claim = 'elsewhere';
        if (entry.state === 'running') entry.abort?.('another worker may be active on the stream now');
        else if (entry.state === 'waiting' || entry.state === 'resting') hand.letGo(entry);
      }
    },
  };
}
