/** `holdfast events`: what happened. */
import type { Subcommand } from '../../subcommand.ts';
import { EVENTS_LIMIT, type EventQuery, formatEvent, listEvents, type StoredEvent } from '../events/list-events.ts';
import { countFlag, durationFlag, oneResource, textFlag, withContext } from './command-context.ts';

const FLAGS = {
  for: { type: 'string' },
  reason: { type: 'string' },
  since: { type: 'string' },
  limit: { type: 'string' },
  watch: { type: 'boolean', short: 'w' },
  output: { type: 'string', short: 'o' },
} as const;
const WATCH_MS = 500;
const WATCHED_BACK_MS = 60_000;
const WATCHED_MAX = 10_000;

export const events: Subcommand = {
  help: () => `Usage: holdfast events [--for KIND/NAME] [--reason REASON] [--since AGE] [--limit N] [--watch] [-o json] [--org UUID]

Events, the newest last; failures of tasks are InternalTaskFailed and, for good, InternalTaskPermanentlyFailed.

  --for KIND/NAME  of one resource; System/queue has what failed for good
  --since AGE      not older than 90m, 12h or 7d
  --limit N        the newest N (${EVENTS_LIMIT})
  --watch          goes on with what comes, until it is interrupted
`,
  async run(invocation) {
    const { write, stopRequested } = invocation;
    return withContext(invocation, { flags: FLAGS, wordsMax: 0 }, async (context) => {
      const { pool, org } = context;
      const object = textFlag(context, 'for');
      const since = durationFlag(context, 'since');
      const reason = textFlag(context, 'reason');
      const limit = countFlag(context, 'limit');
      const query: EventQuery = {
        org,
        ...(object === undefined ? {} : { object: objectNamed(object) }),
        ...(reason === undefined ? {} : { reason }),
        ...(since === undefined ? {} : { since: new Date(Date.now() - since) }),
      };
      const show = (event: StoredEvent): void =>
        write(textFlag(context, 'output') === 'json' ? `${JSON.stringify(event.body)}\n` : formatEvent(event));
      const shown = new Set<string>();
      const showNew = async (asked: EventQuery): Promise<void> => {
        for (const event of await listEvents(pool, asked)) {
          if (shown.has(event.event_number)) continue;
          shown.add(event.event_number);
          show(event);
        }
      };
      await showNew({ ...query, ...(limit === undefined ? {} : { limit }) });
      if (context.flags.watch !== true) return 0;
      let stopped = false;
      const stop = stopRequested.then(() => {
        stopped = true;
      });
      while (!stopped) {
        await Promise.race([stop, new Promise((resolve) => setTimeout(resolve, WATCH_MS))]);
        // A transaction that took long commits events with smaller numbers than those shown already.
        await showNew({ ...query, since: new Date(Date.now() - WATCHED_BACK_MS), limit: WATCHED_MAX });
      }
      return 0;
    });
  },
};

/** System is no kind of resource, but events are about it. */
function objectNamed(text: string): { kind: string; name: string } {
  const match = /^System\/(.+)$/i.exec(text);
  return match === null ? oneResource([text], '--for') : { kind: 'System', name: match[1]! };
}
