/**
 * What has been delivered becomes an entry in hand: what is remembered about it is looked up, it is decoded, routed, and
 * queued for its handlers; or settled at once, where nothing is to be done any more.
 */
import { HoldfastError, messageOf } from '../../errors.ts';
import type { App, HandlerSpec } from '../app.ts';
import type { Held } from '../entry.ts';
import type { Delivery } from '../group/group.ts';
import type { KnownEntry } from '../group/store.ts';
import { TAKEOVERS_MAX } from '../retry-policy.ts';
import type { AttemptMemory } from './attempt-memory.ts';
import type { Hand } from './claimed-entries.ts';
import type { ReadAhead } from './read-ahead.ts';
import type { Settlement } from './settlement.ts';

export type Intake = (deliveries: readonly Delivery[]) => Promise<void>;

export function createIntake(options: {
  readonly app: App;
  readonly hand: Hand;
  readonly memory: AttemptMemory;
  readonly settlement: Settlement;
  readonly readAhead: ReadAhead;
}): Intake {
  const { app, hand, memory, settlement, readAhead } = options;

  function take(deliveries: readonly Delivery[]): Held[] {
    const now = performance.now();
    const fresh: Held[] = [];
    for (const delivery of deliveries) {
      const known = hand.get(delivery.id);
      if (known === undefined) {
        readAhead.onDelivery(delivery.fields.reduce((sum, field) => sum + field.length, 0));
        fresh.push(hand.take(delivery));
        continue;
      }
      // Delivered again, as after a restore, while it is still in hand: the claim is new, the work is not.
      known.claim = 'here';
      known.renewedAt = now;
    }
    return fresh;
  }

  function begin(entry: Held, known: KnownEntry | undefined): void {
    const reported = known?.failure;
    if (reported?.published === true || settlement.wasFinished(entry.id)) settlement.acknowledge(entry);
    else if (reported !== undefined) {
      settlement.failForGood(entry, reported.task, reported.errorMessage, reported.attempts);
    } else if (entry.takeovers >= TAKEOVERS_MAX) {
      const reason = `${entry.takeovers} workers or threads ended with it in their hands`;
      settlement.failForGood(entry, '', reason, entry.attempt - 1);
    } else accept(entry);
  }

  function accept(entry: Held): void {
    let names: readonly string[];
    try {
      entry.event = app.decode(entry.fields);
      const routed = app.route(entry.event, entry.fields);
      names = typeof routed === 'string' ? [routed] : routed;
      // What JavaScript gives here may be anything.
      if (!Array.isArray(names)) throw new HoldfastError('MALFORMED', 'route gave neither a name nor a list of names');
      if (app.orderBy !== undefined) entry.key = String(app.orderBy(entry.event, entry.fields));
    } catch (error) {
      settlement.failForGood(entry, '', `malformed: ${messageOf(error)}`, 0);
      return;
    }
    const steps: HandlerSpec[] = [];
    for (const name of names) {
      const handler = app.handlers.get(name);
      if (handler === undefined) {
        settlement.failForGood(entry, name, `malformed: there is no handler ${JSON.stringify(name)}`, 0);
        return;
      }
      steps.push(handler);
    }
    entry.steps = steps;
    for (const handler of steps) readAhead.onEntry(handler);
    if (steps.length === 0) settlement.acknowledge(entry);
    else hand.line(entry);
  }

  return async (deliveries) => {
    const fresh = take(deliveries);
    const remembered = await memory.lookUp(fresh);
    const takenOver: Held[] = [];
    for (const entry of fresh) {
      if (entry.state === 'gone') continue;
      const known = remembered?.get(entry.id);
      if (known !== undefined) {
        entry.stored = true;
        entry.attempt = Math.max(entry.attempt, known.failed + 1);
      }
      if (entry.takeovers > (known?.takeovers ?? 0)) takenOver.push(entry);
      else entry.takeovers = known?.takeovers ?? 0;
      begin(entry, known);
    }
    void memory.remember(takenOver);
  };
}
