/**
 * Judges a run by its history: what clients asked for and were told, and which faults struck when.
 *
 * An event (writer, number) is asked for once. It is *acknowledged* when its XADD was answered with an ID, *delivered* to a
 * group when a consumer got it, *handled* when a consumer then sent XACK for it, *told* when that XACK was answered.
 *
 * - Lost: acknowledged, but at the end not handled in every group of its stream.
 * - Redelivered: new (`>`) to a group for the second time. P2 allows what was in flight when data was lost, and what had been
 *   acknowledged within the last flush interval; anything else is unbounded.
 * - Reborn: delivered after its XDEL was answered.
 * - Doubled: one event under two IDs.
 *
 * Records of different processes come in any order: what depends on order is judged at the end.
 */
import { EventTable, isIdBelow, readersOf, STATE, slotOf } from './event-table.ts';
import { DELIVERY, type HistoryRecord, KIND, OBSERVED, WRONG_FIELDS } from './history.ts';
import { type Acknowledging, excuses, FlightLog, isCalm, isSettled, lossesOf, type StruckFault } from './losses.ts';
import { CONSUMERS, STREAMS } from './workload.ts';

export interface Finding {
  readonly what: string;
  readonly stream: string;
  readonly group: string;
  /** `writer-number`. */
  readonly event: string;
  readonly id: string;
  /** When it was acknowledged or delivered. */
  readonly atMs: number;
}

export interface Verdict {
  readonly invoked: number;
  readonly acknowledged: number;
  readonly failed: number;
  readonly unknown: number;
  /** Of the unknown ones, those that were delivered. */
  readonly unknownDelivered: number;
  /** To all groups, first and later ones. */
  readonly delivered: number;
  readonly handled: number;
  readonly lost: number;
  /** Lost ones of those that Holdfast could only observe, written while all was well. */
  readonly observedLost: number;
  /** The same while something was broken: nothing is promised for them. */
  readonly observedUnsettledLost: number;
  readonly wrongFields: number;
  /** Delivered although nobody had asked for it, or although the server had said that nothing was added. */
  readonly phantoms: number;
  readonly foreign: number;
  readonly redelivered: number;
  /** P2's bound, summed over all losses of data. */
  readonly redeliveredMax: number;
  /** Given again although its acknowledgement must have been recorded. */
  readonly redeliveredUnbounded: number;
  readonly reborn: number;
  readonly doubled: number;
  /** Delivered under another ID than the producer was told. */
  readonly renamed: number;
  /** An XADD that began after another had been answered, and got a smaller or equal ID. */
  readonly idOrderBroken: number;
  /** Fresh deliveries to one consumer with falling IDs, away from every fault. */
  readonly deliveryOrderBroken: number;
  /** Some of what is wrong. */
  readonly findings: readonly Finding[];
}

export interface Progress {
  /** Acknowledged and not handled. */
  readonly backlog: number;
  readonly deliveries: number;
  readonly handled: number;
}

export interface Checker {
  take(record: Readonly<HistoryRecord>): void;
  /** The final reading of a stream without groups came upon this event. */
  found(writer: number, number: number): void;
  /** The producer's process is gone: what it had not completed, nobody was told of. */
  writerEnded(writer: number): void;
  readonly acknowledged: number;
  acknowledgedIn(stream: number): number;
  progress(stream: number, group: number): Progress;
  /**
   * Below this ID (its ms) every acknowledged entry of the stream is handled by every group, and none is about to be
   * acknowledged. `runStartMs`: the wall clock when the run began.
   */
  trimmableBelowMs(stream: number, nowMs: number, runStartMs: number): number;
  verdict(faults: readonly StruckFault[]): Verdict;
}

const FINDINGS_MAX = 60;
/** IDs come from the wall clock and invocations from the monotonic one: they may disagree by this much. */
const CLOCK_SLACK_MS = 2000;

const SCRIPT_ACKNOWLEDGED = new Set(
  CONSUMERS.flat()
    .filter((plan) => plan.acknowledge === 'script')
    .flatMap((plan) => plan.streams.map((stream) => `${stream} ${plan.group}`)),
);

function acknowledging(stream: number, group: number): Acknowledging {
  const { name, groups } = STREAMS[stream]!;
  return SCRIPT_ACKNOWLEDGED.has(`${name} ${groups[group]}`) ? 'script' : 'plain';
}

/** What does not fit the columns: second and later deliveries and tellings, and those under another ID. */
interface Later {
  readonly what: 'delivered' | 'told';
  readonly group: number;
  readonly idMs: number;
  readonly idSeq: number;
  readonly atMs: number;
  readonly readAtMs: number;
  readonly isFresh: boolean;
  /** Fresh, and the columns knew of a fresh one. */
  readonly isAgain: boolean;
}

/** Counts XADDs that began after another one of their stream had been answered, but did not get a larger ID. */
function countIdOrderBroken(
  tables: readonly EventTable[],
  stream: number,
  report: (table: EventTable, number: number) => void,
): number {
  const places: { readonly table: EventTable; readonly number: number }[] = [];
  for (const table of tables) {
    for (let number = 0; number < table.count; number += 1) {
      const isOurs = table.stream[number] === stream && table.observed[number] === 0;
      if (isOurs && table.state[number] === STATE.acknowledged) places.push({ table, number });
    }
  }
  const byInvocation = places.toSorted((a, b) => a.table.invokedAt[a.number]! - b.table.invokedAt[b.number]!);
  const byCompletion = places.toSorted((a, b) => a.table.completedAt[a.number]! - b.table.completedAt[b.number]!);
  let completed = 0;
  let highMs = 0;
  let highSeq = -1;
  let broken = 0;
  for (const { table, number } of byInvocation) {
    for (let next = byCompletion[completed]; next !== undefined; next = byCompletion[completed]) {
      if (next.table.completedAt[next.number]! >= table.invokedAt[number]!) break;
      const [ms, seq] = [next.table.idMs[next.number]!, next.table.idSeq[next.number]!];
      if (isIdBelow(highMs, highSeq, ms, seq)) [highMs, highSeq] = [ms, seq];
      completed += 1;
    }
    if (isIdBelow(highMs, highSeq, table.idMs[number]!, table.idSeq[number]!)) continue;
    broken += 1;
    report(table, number);
  }
  return broken;
}

export function createChecker(): Checker {
  const tables = new Map<number, EventTable>();
  const later = new Map<string, Later[]>();
  const progress = STREAMS.map((_, stream) =>
    Array.from({ length: readersOf(stream) }, () => ({ backlog: 0, deliveries: 0, handled: 0 })),
  );
  const acknowledgedIn = STREAMS.map(() => 0);
  /** Per writer: every event below this number is done, or nobody waits for it. */
  const openFrom = new Map<number, number>();
  const ended = new Set<number>();
  /** Fresh deliveries with an ID below the one before, until the faults are known. */
  const falling: Finding[] = [];
  const lastFresh = new Map<string, { idMs: number; idSeq: number }>();
  const findings: Finding[] = [];
  let delivered = 0;
  let wrongFields = 0;
  let foreign = 0;

  function tableOf(writer: number): EventTable {
    let table = tables.get(writer);
    if (table === undefined) {
      table = new EventTable(writer);
      tables.set(writer, table);
    }
    return table;
  }
  function findingOf(what: string, record: Readonly<HistoryRecord>): Finding {
    const { name, groups } = STREAMS[record.stream]!;
    const [event, id] = [`${record.writer}-${record.number}`, `${record.idMs}-${record.idSeq}`];
    return { what, stream: name, group: groups[record.group] ?? '', event, id, atMs: record.atMs };
  }
  function report(finding: Finding): void {
    if (findings.length < FINDINGS_MAX) findings.push(finding);
  }
  function keep(what: Later['what'], record: Readonly<HistoryRecord>, isAgain = false): void {
    const key = `${record.writer}-${record.number}`;
    const { group, idMs, idSeq, atMs, readAtMs, detail } = record;
    const isFresh = (detail & ~WRONG_FIELDS) === DELIVERY.fresh;
    const entry: Later = { what, group, idMs, idSeq, atMs, readAtMs, isFresh, isAgain };
    const entries = later.get(key);
    if (entries === undefined) later.set(key, [entry]);
    else entries.push(entry);
  }
  function changeBacklog(table: EventTable, number: number, group: number, by: number): void {
    if (table.observed[number] === 0) progress[table.stream[number]!]![group]!.backlog += by;
  }

  function takeDelivery(table: EventTable, record: Readonly<HistoryRecord>): void {
    const { number, stream, group, idMs, idSeq } = record;
    delivered += 1;
    progress[stream]![group]!.deliveries += 1;
    if ((record.detail & WRONG_FIELDS) !== 0) {
      wrongFields += 1;
      report(findingOf('wrong fields', record));
    }
    const isFresh = (record.detail & ~WRONG_FIELDS) === DELIVERY.fresh;
    if (isFresh) {
      const reader = `${record.client} ${stream} ${group}`;
      const last = lastFresh.get(reader);
      if (last !== undefined && isIdBelow(idMs, idSeq, last.idMs, last.idSeq)) {
        falling.push(findingOf(`delivered behind ${last.idMs}-${last.idSeq}`, record));
      }
      lastFresh.set(reader, { idMs, idSeq });
    }
    if (!table.wasSeen(number)) {
      table.seenMs[number] = idMs;
      table.seenSeq[number] = idSeq;
    }
    const slot = slotOf(number, group);
    const isSeenId = table.isSeenId(number, idMs, idSeq);
    const isAgain = isSeenId && isFresh && table.fresh[slot] === 1;
    if (isSeenId && isFresh) table.fresh[slot] = 1;
    if (isSeenId && table.deliveredAt[slot] === 0) table.deliveredAt[slot] = record.atMs + 1;
    else keep('delivered', record, isAgain);
  }

  function take(record: Readonly<HistoryRecord>): void {
    const { kind, number, stream, group, atMs, idMs, idSeq } = record;
    if (kind === KIND.deliveredNil) return;
    if (kind === KIND.deliveredForeign) {
      foreign += 1;
      report(findingOf('foreign entry', record));
      return;
    }
    const table = tableOf(record.writer);
    table.reach(number);
    table.stream[number] = stream;
    const slot = slotOf(number, group);
    switch (kind) {
      case KIND.addInvoked:
        table.state[number] = STATE.invoked;
        table.invokedAt[number] = atMs + 1;
        table.observed[number] = (record.detail & OBSERVED) !== 0 ? 1 : 0;
        return;
      case KIND.addOk:
        table.state[number] = STATE.acknowledged;
        table.completedAt[number] = atMs + 1;
        table.idMs[number] = idMs;
        table.idSeq[number] = idSeq;
        acknowledgedIn[stream]! += 1;
        for (let i = 0; i < readersOf(stream); i += 1) {
          // A consumer's file may have been read before the producer's.
          if (table.handledAt[slotOf(number, i)] === 0) changeBacklog(table, number, i, 1);
        }
        return;
      case KIND.addFailed:
      case KIND.addUnknown:
        table.state[number] = kind === KIND.addFailed ? STATE.failed : STATE.unknown;
        table.completedAt[number] = atMs + 1;
        return;
      case KIND.delivered:
        takeDelivery(table, record);
        return;
      case KIND.ackInvoked:
        if (table.handledAt[slot] !== 0) return;
        table.handledAt[slot] = atMs + 1;
        progress[stream]![group]!.handled += 1;
        if (table.state[number] === STATE.acknowledged) changeBacklog(table, number, group, -1);
        return;
      case KIND.ackOk:
        if (table.toldAt[slot] === 0 && table.isSeenId(number, idMs, idSeq)) table.toldAt[slot] = atMs + 1;
        else keep('told', record);
        return;
      case KIND.deleteOk:
        if (table.deletedAt[number] === 0) table.deletedAt[number] = atMs + 1;
        return;
      default:
        return;
    }
  }

  function verdict(faults: readonly StruckFault[]): Verdict {
    const losses = lossesOf(faults);
    const flights = { plain: new FlightLog('plain'), script: new FlightLog('script') };
    const counts = {
      ...{ invoked: 0, acknowledged: 0, failed: 0, unknown: 0, unknownDelivered: 0, handled: 0, phantoms: 0 },
      ...{ lost: 0, observedLost: 0, observedUnsettledLost: 0, renamed: 0, doubled: 0 },
      ...{ redelivered: 0, redeliveredUnbounded: 0, reborn: 0 },
    };

    function reportEvent(what: string, table: EventTable, number: number, group = 0): void {
      const stream = table.stream[number]!;
      const [idMs, idSeq] = table.wasSeen(number)
        ? [table.seenMs[number]!, table.seenSeq[number]!]
        : [table.idMs[number]!, table.idSeq[number]!];
      const atMs = Math.max(table.completedAt[number]!, table.invokedAt[number]!) - 1;
      const { name, groups } = STREAMS[stream]!;
      const event = `${table.writer}-${number}`;
      report({ what, stream: name, group: groups[group] ?? '', event, id: `${idMs}-${idSeq}`, atMs });
    }

    function judgeAcknowledged(table: EventTable, number: number): void {
      if (table.wasSeen(number) && !table.isSeenId(number, table.idMs[number]!, table.idSeq[number]!)) {
        counts.renamed += 1;
      }
      if (table.isDone(number)) return;
      const readers = readersOf(table.stream[number]!);
      const group = Array.from({ length: readers }, (_, i) => i).find((i) => table.handledAt[slotOf(number, i)] === 0)!;
      const how = table.deliveredAt[slotOf(number, group)] === 0 ? 'never delivered' : 'delivered, never handled';
      if (table.observed[number] === 0) {
        counts.lost += 1;
        reportEvent(`lost: ${how}`, table, number, group);
      } else if (isSettled(faults, table.completedAt[number]! - 1)) {
        counts.observedLost += 1;
        reportEvent(`observed and lost: ${how}`, table, number, group);
      } else counts.observedUnsettledLost += 1;
    }

    function judgeLater(table: EventTable, number: number, entries: readonly Later[]): void {
      const stream = table.stream[number]!;
      const { name, groups } = STREAMS[stream]!;
      const deliveries = entries.filter((entry) => entry.what === 'delivered');
      const ids = new Set(deliveries.map((entry) => `${entry.idMs}-${entry.idSeq}`));
      if (table.wasSeen(number)) ids.add(`${table.seenMs[number]}-${table.seenSeq[number]}`);
      counts.doubled += Math.max(0, ids.size - 1);
      deliveries.forEach((entry, index) => {
        const { group, idMs, idSeq, atMs, readAtMs, isFresh, isAgain } = entry;
        const isSeenId = table.isSeenId(number, idMs, idSeq);
        const sameEntry = (other: Later): boolean =>
          other.group === group && other.idMs === idMs && other.idSeq === idSeq;
        const finding = {
          ...{ stream: name, group: groups[group] ?? '', event: `${table.writer}-${number}` },
          ...{ id: `${idMs}-${idSeq}`, atMs },
        };
        const deletedMs = table.deletedAt[number]! - 1;
        if (deletedMs >= 0 && isSeenId && readAtMs > deletedMs) {
          counts.reborn += 1;
          report({ what: `delivered after its XDEL, answered at ${deletedMs}`, ...finding });
        }
        const earlier = deliveries.slice(0, index).filter(sameEntry);
        if (isAgain || (isFresh && !isSeenId && earlier.some((other) => other.isFresh))) counts.redelivered += 1;
        if (!isSeenId && earlier.length === 0) return;
        const tellings = entries
          .filter((other) => other.what === 'told' && sameEntry(other))
          .map((other) => other.atMs);
        const slot = slotOf(number, group);
        if (isSeenId && table.toldAt[slot] !== 0) tellings.push(table.toldAt[slot]! - 1);
        const how = acknowledging(stream, group);
        // A read that was sent before the acknowledgement was answered may have been served before it.
        const recorded = tellings.find((at) => at < readAtMs && !losses.some((loss) => excuses(loss, at, atMs, how)));
        if (recorded === undefined) return;
        counts.redeliveredUnbounded += 1;
        report({ what: `delivered again, acknowledgement answered at ${recorded}`, ...finding });
      });
    }

    for (const table of tables.values()) {
      for (let number = 0; number < table.count; number += 1) {
        const state = table.state[number];
        if (state === STATE.none && !table.wasSeen(number)) continue;
        if (state !== STATE.none) counts.invoked += 1;
        if (state === STATE.acknowledged) {
          counts.acknowledged += 1;
          judgeAcknowledged(table, number);
        } else if (state === STATE.failed || state === STATE.none) {
          if (state === STATE.failed) counts.failed += 1;
          if (table.wasSeen(number)) {
            counts.phantoms += 1;
            reportEvent('delivered, but never added', table, number);
          }
        } else {
          counts.unknown += 1;
          if (table.wasSeen(number)) counts.unknownDelivered += 1;
        }
        for (let group = 0; group < readersOf(table.stream[number]!); group += 1) {
          const slot = slotOf(number, group);
          if (table.handledAt[slot] !== 0) counts.handled += 1;
          if (table.deliveredAt[slot] === 0) continue;
          flights[acknowledging(table.stream[number]!, group)].add(
            table.deliveredAt[slot]! - 1,
            table.handledAt[slot]! - 1,
            table.toldAt[slot]! - 1,
          );
        }
        const entries = later.get(`${table.writer}-${number}`);
        if (entries !== undefined) judgeLater(table, number, entries);
      }
    }
    const idOrderBroken = STREAMS.reduce(
      (sum, _, stream) =>
        sum +
        countIdOrderBroken([...tables.values()], stream, (table, number) =>
          reportEvent('ID order broken', table, number),
        ),
      0,
    );
    const unexcused = falling.filter((finding) => isCalm(faults, finding.atMs));
    unexcused.forEach(report);
    return {
      ...counts,
      ...{ delivered, wrongFields, foreign, idOrderBroken, deliveryOrderBroken: unexcused.length, findings },
      redeliveredMax: flights.plain.redeliveriesMax(losses) + flights.script.redeliveriesMax(losses),
    };
  }

  return {
    take,
    found(writer, number) {
      const table = tableOf(writer);
      table.reach(number);
      const slot = slotOf(number, 0);
      if (table.handledAt[slot] !== 0) return;
      table.handledAt[slot] = 1;
      if (table.state[number] === STATE.acknowledged) changeBacklog(table, number, 0, -1);
    },
    writerEnded: (writer) => void ended.add(writer),
    get acknowledged() {
      return acknowledgedIn.reduce((sum, count) => sum + count, 0);
    },
    acknowledgedIn: (stream) => acknowledgedIn[stream]!,
    progress: (stream, group) => progress[stream]![group]!,
    trimmableBelowMs(stream, nowMs, runStartMs) {
      let belowMs = runStartMs + nowMs;
      for (const table of tables.values()) {
        // Not even asked for: its delivery was read before its producer's file was.
        const isOpen = (number: number): boolean =>
          table.state[number] === STATE.acknowledged
            ? !table.isDone(number)
            : table.state[number]! <= STATE.invoked && !ended.has(table.writer);
        // Numbers begin at 1.
        let from = openFrom.get(table.writer) ?? 1;
        while (from < table.count && !isOpen(from)) from += 1;
        openFrom.set(table.writer, from);
        for (let number = from; number < table.count; number += 1) {
          if (table.stream[number] !== stream || !isOpen(number)) continue;
          if (table.state[number] === STATE.acknowledged) belowMs = Math.min(belowMs, table.idMs[number]!);
          else if (table.state[number] === STATE.invoked) {
            belowMs = Math.min(belowMs, runStartMs + table.invokedAt[number]!);
          }
        }
      }
      return belowMs - CLOCK_SLACK_MS;
    },
    verdict,
  };
}
