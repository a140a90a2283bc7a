/** Planted faults: each is found, and nothing else is. */
import { expect, test } from 'vitest';
import { type Checker, createChecker, type Verdict } from './checker.ts';
import { DELIVERY, type HistoryRecord, KIND, type Kind, OBSERVED, WRONG_FIELDS } from './history.ts';
import type { StruckFault } from './losses.ts';
import { streamIndex } from './workload.ts';

/** One group reads this one, two the other. */
const JOBS = streamIndex('chaos:jobs');
const ORDERS = streamIndex('chaos:orders');
const LOG = streamIndex('chaos:log');

const FLUSHALL_AT_10S: StruckFault = {
  ...{ nemesis: 'kv-flushall', resource: 'kv', index: 0, fraction: 0, losesData: 'at its beginning' },
  ...{ beginMs: 10_000, healMs: 10_000, healedMs: 10_001 },
};
const LEDGER_DOWN_BEFORE: StruckFault = {
  ...{ nemesis: 'ledger-kill', resource: 'ledger', index: 0, fraction: 0, losesData: undefined },
  ...{ beginMs: 4000, healMs: 9000, healedMs: 9500 },
};

/** A history in the making; `id` is the ID's ms. */
interface Story {
  add(number: number, atMs: number, id: number, stream?: number, detail?: number): void;
  deliver(number: number, atMs: number, id: number, options?: Partial<HistoryRecord>): void;
  acknowledge(number: number, atMs: number, id: number, options?: Partial<HistoryRecord>): void;
  /** Delivered and acknowledged a moment after it was added. */
  handle(number: number, atMs: number, id: number, options?: Partial<HistoryRecord>): void;
  record(kind: Kind, number: number, atMs: number, options?: Partial<HistoryRecord>): void;
  readonly checker: Checker;
  verdict(...faults: StruckFault[]): Verdict;
}

function tell(): Story {
  const checker = createChecker();
  function record(kind: Kind, number: number, atMs: number, options: Partial<HistoryRecord> = {}): void {
    checker.take({
      ...{ kind, stream: JOBS, group: 0, detail: 0, atMs, writer: 1, client: 1, number, idMs: 0, idSeq: 0 },
      readAtMs: atMs - 1,
      ...options,
    });
  }
  const story: Story = {
    checker,
    record,
    add(number, atMs, id, stream = JOBS, detail = 0) {
      record(KIND.addInvoked, number, atMs, { stream, detail });
      record(KIND.addOk, number, atMs + 2, { stream, idMs: id });
    },
    deliver: (number, atMs, id, options) => record(KIND.delivered, number, atMs, { idMs: id, client: 2, ...options }),
    acknowledge(number, atMs, id, options) {
      record(KIND.ackInvoked, number, atMs, { idMs: id, client: 2, ...options });
      record(KIND.ackOk, number, atMs + 1, { idMs: id, client: 2, detail: 1, ...options });
    },
    handle(number, atMs, id, options) {
      story.deliver(number, atMs, id, options);
      story.acknowledge(number, atMs + 5, id, options);
    },
    verdict: (...faults) => checker.verdict(faults),
  };
  return story;
}

/** What of a verdict is wrong: every count that has to be zero and is not. */
function wrong(verdict: Verdict): Partial<Verdict> {
  const { lost, observedLost, wrongFields, phantoms, foreign, redeliveredUnbounded, reborn } = verdict;
  const { idOrderBroken, deliveryOrderBroken, doubled, renamed } = verdict;
  const counts = {
    ...{ lost, observedLost, wrongFields, phantoms, foreign, redeliveredUnbounded, reborn },
    ...{ idOrderBroken, deliveryOrderBroken, doubled, renamed },
  };
  return Object.fromEntries(Object.entries(counts).filter(([, count]) => count !== 0));
}

test('a quiet history is in order', () => {
  const story = tell();
  for (let number = 1; number <= 100; number += 1) {
    story.add(number, number * 10, number);
    story.handle(number, number * 10 + 5, number);
  }
  expect(story.checker.progress(JOBS, 0)).toEqual({ backlog: 0, deliveries: 100, handled: 100 });
  const verdict = story.verdict();
  expect(wrong(verdict)).toEqual({});
  expect(verdict).toMatchObject({ invoked: 100, acknowledged: 100, delivered: 100, handled: 100, redelivered: 0 });
});

test('an acknowledged event that never came is lost', () => {
  const story = tell();
  story.add(1, 0, 1);
  story.add(2, 10, 2);
  story.handle(2, 20, 2);
  expect(story.checker.progress(JOBS, 0).backlog).toBe(1);
  const verdict = story.verdict(FLUSHALL_AT_10S);
  expect(wrong(verdict)).toEqual({ lost: 1 });
  expect(verdict.findings).toMatchObject([{ what: 'lost: never delivered', event: '1-1', id: '1-0' }]);
});

test('an event that one group of two did not get is lost', () => {
  const story = tell();
  story.add(1, 0, 1, ORDERS);
  story.handle(1, 10, 1, { stream: ORDERS, group: 0 });
  expect(wrong(story.verdict())).toEqual({ lost: 1 });
  story.handle(1, 10, 1, { stream: ORDERS, group: 1 });
  expect(wrong(story.verdict())).toEqual({});
});

test('an event that a consumer got and nobody handled is lost', () => {
  const story = tell();
  story.add(1, 0, 1);
  story.deliver(1, 10, 1);
  expect(story.verdict().findings).toMatchObject([{ what: 'lost: delivered, never handled' }]);
});

test('unknown and refused events may be missing, but a refused one must not come', () => {
  const story = tell();
  story.record(KIND.addInvoked, 1, 0);
  story.record(KIND.addUnknown, 1, 5);
  story.record(KIND.addInvoked, 2, 10);
  story.record(KIND.addInvoked, 3, 20);
  story.record(KIND.addFailed, 3, 25);
  expect(wrong(story.verdict())).toEqual({});
  story.deliver(1, 100, 1);
  story.deliver(2, 101, 2);
  expect(wrong(story.verdict())).toEqual({});
  story.deliver(3, 102, 3);
  expect(wrong(story.verdict())).toEqual({ phantoms: 1 });
});

test('an event that nobody asked for, a foreign entry and changed fields are found', () => {
  const story = tell();
  story.deliver(9, 10, 1);
  expect(wrong(story.verdict())).toEqual({ phantoms: 1 });
  story.record(KIND.deliveredForeign, 0, 20);
  expect(wrong(story.verdict())).toEqual({ phantoms: 1, foreign: 1 });
  story.add(1, 30, 30);
  story.handle(1, 40, 30, { detail: WRONG_FIELDS });
  expect(wrong(story.verdict())).toEqual({ phantoms: 1, foreign: 1, wrongFields: 1 });
});

test('an entry of the ungrouped stream counts as handled when the final reading finds it', () => {
  const story = tell();
  story.add(1, 0, 1, LOG);
  story.add(2, 10, 2, LOG);
  story.checker.found(1, 1);
  expect(wrong(story.verdict())).toEqual({ lost: 1 });
  story.checker.found(1, 2);
  expect(wrong(story.verdict())).toEqual({});
});

test('an observed event is promised only when it was written in calm times', () => {
  const lostAt = (atMs: number): Verdict => {
    const story = tell();
    story.add(1, atMs, 1, JOBS, OBSERVED);
    return story.verdict(FLUSHALL_AT_10S);
  };
  expect(wrong(lostAt(2000))).toEqual({ observedLost: 1 });
  expect(lostAt(9500)).toMatchObject({ lost: 0, observedLost: 0, observedUnsettledLost: 1 });
});

test('redelivery of what was in flight at a loss is inside the bound', () => {
  const story = tell();
  story.add(1, 9000, 1);
  story.deliver(1, 9900, 1);
  story.deliver(1, 10_500, 1);
  story.acknowledge(1, 10_600, 1);
  const verdict = story.verdict(FLUSHALL_AT_10S);
  expect(wrong(verdict)).toEqual({});
  expect(verdict).toMatchObject({ redelivered: 1, redeliveredMax: 1 });
});

test('redelivery of what was acknowledged long before the loss is outside it', () => {
  const story = tell();
  story.add(1, 1000, 1);
  story.handle(1, 2000, 1);
  story.deliver(1, 10_500, 1);
  const verdict = story.verdict(FLUSHALL_AT_10S);
  expect(wrong(verdict)).toEqual({ redeliveredUnbounded: 1 });
  expect(verdict).toMatchObject({ redelivered: 1, redeliveredMax: 0 });
});

test('an acknowledgement may be forgotten when the ledger had been down since then', () => {
  const story = tell();
  story.add(1, 1000, 1);
  story.handle(1, 5000, 1);
  story.deliver(1, 10_500, 1);
  expect(wrong(story.verdict(LEDGER_DOWN_BEFORE, FLUSHALL_AT_10S))).toEqual({});
  expect(wrong(story.verdict(FLUSHALL_AT_10S))).toEqual({ redeliveredUnbounded: 1 });
});

test('one in a script may be forgotten when the KV store could not be read since then', () => {
  const story = tell();
  const inScript = { stream: streamIndex('chaos:transactions'), group: 1 };
  const pause: StruckFault = {
    ...{ nemesis: 'kv-pause', resource: 'kv', index: 0, fraction: 0, losesData: undefined },
    ...{ beginMs: 5500, healMs: 9990, healedMs: 9995 },
  };
  story.add(1, 1000, 1, inScript.stream);
  for (const group of [0, 1, 2]) story.handle(1, 5000, 1, { ...inScript, group });
  story.deliver(1, 10_500, 1, inScript);
  expect(wrong(story.verdict(pause, FLUSHALL_AT_10S))).toEqual({});
  expect(wrong(story.verdict(FLUSHALL_AT_10S))).toEqual({ redeliveredUnbounded: 1 });
  // One that was told to Holdfast is recorded whether the KV store answers or not.
  story.deliver(1, 10_500, 1, { ...inScript, group: 0 });
  expect(wrong(story.verdict(pause, FLUSHALL_AT_10S))).toEqual({ redeliveredUnbounded: 1 });
});

test('redelivery without any loss of data is outside the bound', () => {
  const story = tell();
  story.add(1, 0, 1);
  story.handle(1, 10, 1);
  story.deliver(1, 100, 1);
  expect(story.verdict()).toMatchObject({ redelivered: 1, redeliveredMax: 0, redeliveredUnbounded: 1 });
});

test('redelivery of a second telling is judged by that one', () => {
  const story = tell();
  story.add(1, 9000, 1);
  story.handle(1, 9900, 1);
  // The loss excuses this one …
  story.handle(1, 10_500, 1);
  expect(wrong(story.verdict(FLUSHALL_AT_10S))).toEqual({});
  // … but its acknowledgement was repeated long after the restore.
  story.acknowledge(1, 17_000, 1);
  story.deliver(1, 18_000, 1);
  expect(wrong(story.verdict(FLUSHALL_AT_10S))).toEqual({ redeliveredUnbounded: 1 });
});

test('taking over what a dead consumer left is no redelivery', () => {
  const story = tell();
  story.add(1, 0, 1);
  story.deliver(1, 10, 1);
  story.handle(1, 2100, 1, { client: 3, detail: DELIVERY.claimed });
  expect(wrong(story.verdict())).toEqual({});
  expect(story.verdict().redelivered).toBe(0);
});

test('an entry that comes after its XDEL was answered is reborn, whatever was lost', () => {
  const story = tell();
  story.add(1, 9800, 1);
  story.handle(1, 9900, 1);
  story.record(KIND.deleteOk, 1, 9950, { idMs: 1 });
  story.deliver(1, 10_500, 1);
  expect(wrong(story.verdict(FLUSHALL_AT_10S))).toEqual({ reborn: 1 });
});

test('one event under two IDs is doubled, and renamed where its producer was told another ID', () => {
  const doubled = tell();
  doubled.add(1, 0, 1);
  doubled.handle(1, 10, 1);
  doubled.handle(1, 20, 2);
  expect(wrong(doubled.verdict())).toEqual({ doubled: 1 });
  const renamed = tell();
  renamed.add(1, 0, 1);
  renamed.handle(1, 10, 7);
  expect(wrong(renamed.verdict())).toEqual({ renamed: 1 });
});

test('an XADD that began after another was answered must have the larger ID', () => {
  const story = tell();
  story.add(1, 0, 100);
  story.add(2, 10, 99);
  story.handle(2, 30, 99);
  story.handle(1, 40, 100);
  expect(wrong(story.verdict())).toEqual({ idOrderBroken: 1 });
});

test('concurrent XADDs may have their IDs in any order', () => {
  const story = tell();
  story.record(KIND.addInvoked, 1, 0);
  story.record(KIND.addInvoked, 2, 1);
  story.record(KIND.addOk, 1, 5, { idMs: 8 });
  story.record(KIND.addOk, 2, 6, { idMs: 7 });
  story.handle(2, 30, 7);
  story.handle(1, 40, 8);
  expect(wrong(story.verdict())).toEqual({});
});

test('falling IDs to one consumer are wrong in calm times and excused around a fault', () => {
  const story = tell();
  story.add(1, 0, 1);
  story.add(2, 3, 2);
  story.handle(2, 10_100, 2);
  story.handle(1, 10_200, 1);
  expect(wrong(story.verdict(FLUSHALL_AT_10S))).toEqual({});
  expect(wrong(story.verdict())).toEqual({ deliveryOrderBroken: 1 });
});

test('trimming stops below what is unhandled or about to be acknowledged', () => {
  const RUN_START = 1_000_000;
  const story = tell();
  const below = (nowMs: number): number => story.checker.trimmableBelowMs(JOBS, nowMs, RUN_START);
  story.add(1, 100, RUN_START + 100);
  story.handle(1, 110, RUN_START + 100);
  expect(below(50_000)).toBe(RUN_START + 48_000);
  story.add(2, 20_000, RUN_START + 20_000);
  expect(below(50_000)).toBe(RUN_START + 18_000);
  story.handle(2, 21_000, RUN_START + 20_000);
  story.record(KIND.addInvoked, 3, 30_000);
  expect(below(50_000)).toBeLessThanOrEqual(RUN_START + 28_001);
  story.checker.writerEnded(1);
  expect(below(50_000)).toBe(RUN_START + 48_000);
});
