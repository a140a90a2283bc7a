/**
 * What the cache does, counted by scope and key family. For keys of Flight Control's form
 * `v1/{orgId}/{fleet}/{templateVersion}/{family}/…` scope and family are parts of the key; for others the scope is the
 * session's prefix and the family is the pattern that named the key.
 *
 * A *cell* is one scope and family; its number is the mark that the data plane carries from a request to its reply, so
 * that counting a hit takes no allocation. Cells are bounded: what comes beyond is counted under the scope `…`, and so
 * is, after an hour of silence, what was counted before.
 */
import { LastView } from '../resp/last-view.ts';
import type { KeyPattern } from './key-pattern.ts';

export interface CacheCounters {
  hits: number;
  misses: number;
  /** Bytes of hits as clients got them. */
  hitBytes: number;
  /** Values that a get-or-set stored. */
  stores: number;
  storedBytes: number;
  /** Clients that were told to fetch, and given the lease for it. */
  leases: number;
  /** Clients that waited for somebody else's fetch. */
  waits: number;
  /** Of these: those that got its value, so that their own fetch was saved. */
  saved: number;
}

export interface CacheFamilyReport extends Readonly<CacheCounters> {
  readonly scope: string;
  readonly family: string;
}

export interface RecentLookups {
  readonly hits: number;
  readonly misses: number;
}

export interface CacheReport {
  readonly total: Readonly<CacheCounters>;
  /** Over the last minutes, or since the start where that is less. */
  readonly lookups: {
    readonly oneMinute: RecentLookups;
    readonly fiveMinutes: RecentLookups;
    readonly sixtyMinutes: RecentLookups;
  };
  /** By family over all scopes, most lookups first. */
  readonly families: readonly CacheFamilyReport[];
  /** By scope and family, most lookups first. */
  readonly cells: readonly CacheFamilyReport[];
}

interface Cell extends CacheCounters {
  readonly scope: string;
  readonly family: string;
  /** What keys of this cell begin with, where that says it all. */
  readonly prefix: Buffer | undefined;
  /** The same, four bytes at a time, as far as that goes. */
  readonly prefixWords: Int32Array;
  /** Of `prefix`: which pattern names all such keys; -1 for none, undefined where each key must be asked. */
  readonly pattern: number | undefined;
  lookupsSeen: number;
  idleTicks: number;
}

const CELLS_MAX = 1000;
const TICK_MS = 10_000;
const TICKS_PER_MINUTE = 60_000 / TICK_MS;
const TICKS_KEPT = 60 * TICKS_PER_MINUTE;
const OTHERS = '…';
/** Family of keys that no pattern names. */
const OTHER = 'other';
const SLASH = 47;
const V1 = Buffer.from('v1/');
/** Behind which slash of a key of Flight Control's form the scope ends, and behind which the family. */
const SCOPE_SLASHES = 4;
const FAMILY_SLASHES = 5;
/** Longer scopes are not worth a cell of their own. */
const PREFIX_BYTES_MAX = 512;

const NOTHING = Buffer.alloc(0);

export const NOT_NAMED = -1;

export class CacheStatistics {
  private readonly patterns: readonly KeyPattern[];
  private readonly cells: (Cell | undefined)[] = [];
  private readonly free: number[] = [];
  private readonly byPrefix = new Map<number, number[]>();
  private readonly byName = new Map<string, number>();
  /** The cell found last: lookups of one kind come in rows. */
  private latest = -1;
  private readonly words = new LastView();
  /** By pattern: the cell of its keys in no scope, once there is one. */
  private readonly unscoped: number[] = [];
  /** Totals at the ticks of the last hour. */
  private readonly hitsAt: number[] = [];
  private readonly missesAt: number[] = [];
  private readonly timer: NodeJS.Timeout;

  /** `patterns` name the keys that are counted (`mark`). */
  constructor(patterns: readonly KeyPattern[]) {
    this.patterns = patterns;
    this.timer = setInterval(() => this.tick(), TICK_MS);
    this.timer.unref();
  }

  stop(): void {
    clearInterval(this.timer);
  }

  /** The cell of a key that some pattern names, else `NOT_NAMED`. The key is what stands behind the scope's prefix. */
  mark(buffer: Buffer, start: number, end: number, scopePrefix: Buffer | undefined): number {
    if (scopePrefix === undefined) return this.named(buffer, start, end, '');
    const whole = joined(scopePrefix, buffer, start, end);
    return this.named(whole, 0, whole.length, scopePrefix);
  }

  /** As `mark`, of a key that begins with the scope's prefix. */
  markOf(key: Buffer, scopePrefix: Buffer | undefined): number {
    return this.named(key, 0, key.length, scopePrefix ?? '');
  }

  /** As `mark`, whether or not a pattern names the key. */
  anyMark(buffer: Buffer, start: number, end: number, scopePrefix: Buffer | undefined): number {
    if (scopePrefix === undefined) return this.any(buffer, start, end, '');
    const whole = joined(scopePrefix, buffer, start, end);
    return this.any(whole, 0, whole.length, scopePrefix);
  }

  /** As `markOf`, whether or not a pattern names the key. */
  anyMarkOf(key: Buffer, scopePrefix: Buffer | undefined): number {
    return this.any(key, 0, key.length, scopePrefix ?? '');
  }

  private any(buffer: Buffer, start: number, end: number, scopePrefix: Buffer | ''): number {
    const latest = this.cells[this.latest];
    if (latest !== undefined && this.isOf(latest, buffer, start, end)) return this.latest;
    const prefixEnd = familyEnd(buffer, start, end);
    if (prefixEnd > 0 && prefixEnd - start <= PREFIX_BYTES_MAX) {
      const mark = this.cellAt(buffer, start, prefixEnd);
      if (this.cells[mark]!.prefix !== undefined) this.latest = mark;
      return mark;
    }
    const pattern = this.firstMatch(buffer, start, end);
    const family = pattern === NOT_NAMED ? OTHER : this.patterns[pattern]!.text;
    return this.namedCell(scopePrefix.toString(), family);
  }

  /** Which pattern names a key; `NOT_NAMED` for none. */
  patternOf(key: Buffer): number {
    return this.firstMatch(key, 0, key.length);
  }

  /** `bytes`: of all `hits` together. */
  hit(mark: number, bytes: number, hits = 1): void {
    const cell = this.cells[mark];
    if (cell === undefined) return;
    cell.hits += hits;
    cell.hitBytes += bytes;
  }

  count(mark: number, counter: Exclude<keyof CacheCounters, 'hitBytes'>, by = 1): void {
    const cell = this.cells[mark];
    if (cell !== undefined) cell[counter] += by;
  }

  report(): CacheReport {
    const total = noCounters();
    const families = new Map<string, CacheCounters>();
    // Cells of keys that no pattern names only remember that.
    const live = this.cells.filter(
      (cell): cell is Cell => cell !== undefined && cell.hits + cell.misses + cell.stores > 0,
    );
    for (const cell of live) {
      add(total, cell);
      let family = families.get(cell.family);
      if (family === undefined) families.set(cell.family, (family = noCounters()));
      add(family, cell);
    }
    return {
      total,
      lookups: {
        oneMinute: this.lookupsOver(1, total),
        fiveMinutes: this.lookupsOver(5, total),
        sixtyMinutes: this.lookupsOver(60, total),
      },
      families: sorted([...families].map(([family, counters]) => reportOf('*', family, counters))),
      cells: sorted(live.map((cell) => reportOf(cell.scope, cell.family, cell))),
    };
  }

  private lookupsOver(minutes: number, total: CacheCounters): RecentLookups {
    // Younger than that: since the start.
    const at = this.hitsAt.length - minutes * TICKS_PER_MINUTE;
    return { hits: total.hits - (this.hitsAt[at] ?? 0), misses: total.misses - (this.missesAt[at] ?? 0) };
  }

  private tick(): void {
    for (const [index, cell] of this.cells.entries()) {
      if (cell === undefined || cell.scope === OTHERS) continue;
      const lookups = cell.hits + cell.misses + cell.stores;
      cell.idleTicks = lookups === cell.lookupsSeen ? cell.idleTicks + 1 : 0;
      cell.lookupsSeen = lookups;
      if (cell.idleTicks >= TICKS_KEPT) this.fold(index, cell);
    }
    const { total } = this.report();
    this.hitsAt.push(total.hits);
    this.missesAt.push(total.misses);
    if (this.hitsAt.length > TICKS_KEPT) {
      this.hitsAt.shift();
      this.missesAt.shift();
    }
  }

  /** What a silent cell has counted goes to its family's common one. */
  private fold(index: number, cell: Cell): void {
    if (cell.lookupsSeen > 0) add(this.cells[this.namedCell(OTHERS, cell.family)]!, cell);
    this.cells[index] = undefined;
    this.free.push(index);
    if (this.latest === index) this.latest = -1;
    const unscoped = this.unscoped.indexOf(index);
    if (unscoped >= 0) delete this.unscoped[unscoped];
    if (cell.prefix === undefined) {
      this.byName.delete(nameOf(cell.scope, cell.family));
      return;
    }
    const hash = hashOf(cell.prefix, 0, cell.prefix.length);
    const rest = (this.byPrefix.get(hash) ?? []).filter((other) => other !== index);
    if (rest.length === 0) this.byPrefix.delete(hash);
    else this.byPrefix.set(hash, rest);
  }

  private named(buffer: Buffer, start: number, end: number, scopePrefix: Buffer | ''): number {
    const latest = this.cells[this.latest];
    if (latest !== undefined && latest.pattern !== undefined && this.isOf(latest, buffer, start, end)) {
      return latest.pattern === NOT_NAMED ? NOT_NAMED : this.latest;
    }
    const prefixEnd = familyEnd(buffer, start, end);
    if (prefixEnd > 0 && prefixEnd - start <= PREFIX_BYTES_MAX && this.mayMatch(buffer, start, end)) {
      const mark = this.cellAt(buffer, start, prefixEnd);
      const cell = this.cells[mark]!;
      if (cell.prefix !== undefined) this.latest = mark;
      return (cell.pattern ?? this.firstMatch(buffer, start, end)) === NOT_NAMED ? NOT_NAMED : mark;
    }
    const pattern = this.firstMatch(buffer, start, end);
    if (pattern === NOT_NAMED) return NOT_NAMED;
    const { text } = this.patterns[pattern]!;
    if (scopePrefix !== '') return this.namedCell(scopePrefix.toString(), text);
    return (this.unscoped[pattern] ??= this.namedCell('', text));
  }

  /** Whether a key begins with the prefix of its cell. */
  private isOf({ prefix, prefixWords }: Cell, buffer: Buffer, start: number, end: number): boolean {
    if (prefix === undefined || end - start < prefix.length) return false;
    const view = this.words.of(buffer);
    const { length } = prefixWords;
    for (let i = 0; i < length; i += 1) if (view.getInt32(start + i * 4, true) !== prefixWords[i]) return false;
    for (let i = length * 4; i < prefix.length; i += 1) if (buffer[start + i] !== prefix[i]) return false;
    return true;
  }

  private mayMatch(buffer: Buffer, start: number, end: number): boolean {
    for (const { literalPrefix } of this.patterns) if (startsWith(buffer, start, end, literalPrefix)) return true;
    return false;
  }

  private firstMatch(buffer: Buffer, start: number, end: number): number {
    for (let i = 0; i < this.patterns.length; i += 1) {
      const pattern = this.patterns[i]!;
      if (startsWith(buffer, start, end, pattern.literalPrefix) && pattern.matches(buffer, start, end)) return i;
    }
    return NOT_NAMED;
  }

  /** The cell of keys of Flight Control's form whose prefix is `buffer[start, end)`. */
  private cellAt(buffer: Buffer, start: number, end: number): number {
    const hash = hashOf(buffer, start, end);
    const marks = this.byPrefix.get(hash);
    if (marks !== undefined) {
      for (const mark of marks) {
        const known = this.cells[mark]!.prefix!;
        if (known.length === end - start && startsWith(buffer, start, end, known)) return mark;
      }
    }
    const prefix = Buffer.from(buffer.subarray(start, end));
    const { scope, family } = parts(prefix);
    if (this.full) return this.namedCell(OTHERS, family);
    const mark = this.newCell(scope, family, prefix, this.patternOfAll(prefix));
    this.byPrefix.set(hash, [...(marks ?? []), mark]);
    return mark;
  }

  /** The first pattern that names every key with this prefix, where no earlier one names some of them. */
  private patternOfAll(prefix: Buffer): number | undefined {
    for (const [index, pattern] of this.patterns.entries()) {
      const { literalPrefix } = pattern;
      const shorter = Math.min(prefix.length, literalPrefix.length);
      if (prefix.compare(literalPrefix, 0, shorter, 0, shorter) !== 0) continue;
      return pattern.open && pattern.matches(prefix, 0, prefix.length) ? index : undefined;
    }
    return NOT_NAMED;
  }

  private get full(): boolean {
    return this.cells.length - this.free.length >= CELLS_MAX;
  }

  /** A cell without a prefix. Those of the common scope have room of their own, for a bounded number of families. */
  private namedCell(scope: string, family: string): number {
    const known = this.byName.get(nameOf(scope, family));
    if (known !== undefined) return known;
    if (scope !== OTHERS) return this.full ? this.namedCell(OTHERS, family) : this.newCell(scope, family);
    if (this.cells.length < CELLS_MAX * 2) return this.newCell(OTHERS, family);
    return this.byName.get(nameOf(OTHERS, OTHERS)) ?? this.newCell(OTHERS, OTHERS);
  }

  private newCell(scope: string, family: string, prefix?: Buffer, pattern?: number): number {
    const mark = this.free.pop() ?? this.cells.length;
    const prefixWords = wordsOf(prefix ?? NOTHING);
    this.cells[mark] = { ...noCounters(), scope, family, prefix, prefixWords, pattern, lookupsSeen: 0, idleTicks: 0 };
    if (prefix === undefined) this.byName.set(nameOf(scope, family), mark);
    return mark;
  }
}

function wordsOf(bytes: Buffer): Int32Array {
  return Int32Array.from({ length: bytes.length >> 2 }, (_, at) => bytes.readInt32LE(at * 4));
}

function joined(prefix: Buffer, buffer: Buffer, start: number, end: number): Buffer {
  const whole = Buffer.allocUnsafe(prefix.length + end - start);
  prefix.copy(whole);
  buffer.copy(whole, prefix.length, start, end);
  return whole;
}

function noCounters(): CacheCounters {
  return { hits: 0, misses: 0, hitBytes: 0, stores: 0, storedBytes: 0, leases: 0, waits: 0, saved: 0 };
}

function add(to: CacheCounters, from: CacheCounters): void {
  for (const counter of Object.keys(noCounters()) as (keyof CacheCounters)[]) to[counter] += from[counter];
}

/** Several processes' reports as one. */
export function mergeCacheReports(reports: readonly CacheReport[]): CacheReport {
  const total = noCounters();
  for (const report of reports) add(total, report.total);
  const recent = (minutes: keyof CacheReport['lookups']): RecentLookups => ({
    hits: reports.reduce((sum, { lookups }) => sum + lookups[minutes].hits, 0),
    misses: reports.reduce((sum, { lookups }) => sum + lookups[minutes].misses, 0),
  });
  const merged = (lines: readonly CacheFamilyReport[]): CacheFamilyReport[] => {
    const byName = new Map<string, CacheFamilyReport & CacheCounters>();
    for (const line of lines) {
      const known = byName.get(nameOf(line.scope, line.family));
      if (known === undefined) byName.set(nameOf(line.scope, line.family), { ...line });
      else add(known, line);
    }
    return sorted([...byName.values()]);
  };
  return {
    total,
    lookups: {
      oneMinute: recent('oneMinute'),
      fiveMinutes: recent('fiveMinutes'),
      sixtyMinutes: recent('sixtyMinutes'),
    },
    families: merged(reports.flatMap(({ families }) => families)),
    cells: merged(reports.flatMap(({ cells }) => cells)),
  };
}

function reportOf(scope: string, family: string, counters: CacheCounters): CacheFamilyReport {
  const { hits, misses, hitBytes, stores, storedBytes, leases, waits, saved } = counters;
  return { scope, family, hits, misses, hitBytes, stores, storedBytes, leases, waits, saved };
}

function sorted(reports: CacheFamilyReport[]): CacheFamilyReport[] {
  return reports.sort((a, b) => b.hits + b.misses - a.hits - a.misses);
}

function nameOf(scope: string, family: string): string {
  return `${scope}\0${family}`;
}

/** The offset behind `v1/…/…/…/family/`; 0 where the key is of another form. */
function familyEnd(buffer: Buffer, start: number, end: number): number {
  if (!startsWith(buffer, start, end, V1)) return 0;
  let slashes = 0;
  for (let at = start; at < end; at += 1) {
    if (buffer[at] !== SLASH) continue;
    slashes += 1;
    if (slashes === FAMILY_SLASHES) return at + 1;
  }
  return 0;
}

function parts(prefix: Buffer): { scope: string; family: string } {
  const words = prefix.toString().split('/');
  return { scope: words.slice(0, SCOPE_SLASHES).join('/'), family: words[SCOPE_SLASHES]! };
}

function startsWith(buffer: Buffer, start: number, end: number, prefix: Buffer): boolean {
  const { length } = prefix;
  if (end - start < length) return false;
  for (let i = 0; i < length; i += 1) if (buffer[start + i] !== prefix[i]) return false;
  return true;
}

/** FNV-1a. */
function hashOf(buffer: Buffer, start: number, end: number): number {
  let hash = 0x811c9dc5;
  for (let at = start; at < end; at += 1) hash = Math.imul(hash ^ buffer[at]!, 0x01000193);
  return hash;
}
