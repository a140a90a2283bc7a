/**
 * A scope's name with parts to be filled in: `v1/{orgId}/{fleet}/{templateVersion}/`.
 *
 * Invariant: no two sets of parts give prefixes of which one begins with the other. Therefore parts have no character
 * that separates them, and each is followed by one that no part can contain.
 */
import { HoldfastError } from '../errors.ts';
import { escapeGlob } from './scope.ts';

const PART_NAMES: readonly string[] = ['orgId', 'fleet', 'templateVersion'];
const PART_TEXT = '[A-Za-z0-9._-]{1,253}';
const PART = new RegExp(`^${PART_TEXT}$`);
const IN_PART = /[A-Za-z0-9._-]/;

export interface ScopeTemplate {
  readonly text: string;
  /** Names of its parts, in the order in which commands give their values. */
  readonly parts: readonly string[];
  /** The prefix for these values; with fewer values than parts, the start that all such scopes share. Throws ERR. */
  prefixOf(values: readonly string[]): string;
  /** A glob pattern for everything in any scope of the template, without a last `*`. */
  readonly pattern: Buffer;
  /** Whether a key of this name would lie in one of the template's scopes. */
  holds(key: string): boolean;
  /** Whether `name` is one of the template's scopes with something behind it. */
  beginsWithScope(name: string): boolean;
  /** Whether `start` with something behind it can be one of the template's scopes. */
  canGoOnFrom(start: string): boolean;
}

/** Scopes of cached Flight Control data. */
export const FLIGHT_CONTROL_TEMPLATE = 'v1/{orgId}/{fleet}/{templateVersion}/';

/** Throws `CONFIG` where the text cannot keep its scopes apart. */
export function parseScopeTemplate(text: string): ScopeTemplate {
  const pieces = text.split(/\{(\w+)\}/);
  const used = pieces.filter((_, at) => at % 2 === 1);
  for (let at = 1; at < pieces.length; at += 2) {
    const next = pieces[at + 1]!;
    if (next === '' || IN_PART.test(next[0]!)) {
      throw new HoldfastError('CONFIG', `the scope "${text}" needs a separator such as / behind {${pieces[at]}}`);
    }
  }
  const parts = PART_NAMES.filter((name) => used.includes(name));
  const scope = pieces.map((piece, at) => (at % 2 === 0 ? escapeRegExp(piece) : PART_TEXT)).join('');
  const scopeStart = new RegExp(`^${scope}`);
  const beyondScope = new RegExp(`^${scope}[^]`);
  const unfinished = new RegExp(`^(?:${unfinishedPattern(pieces)})$`);
  return {
    text,
    parts,
    holds: (key) => scopeStart.test(key),
    beginsWithScope: (name) => beyondScope.test(name),
    canGoOnFrom: (start) => unfinished.test(start),
    prefixOf(values) {
      if (values.length > parts.length) {
        throw new HoldfastError('ERR', `this scope has ${parts.length} parts: ${parts.join(' ')}`);
      }
      for (const value of values) {
        if (!PART.test(value)) {
          throw new HoldfastError(
            'ERR',
            'parts of a scope have 1 to 253 letters, digits, dots, dashes and underscores',
          );
        }
      }
      let prefix = '';
      for (const [at, piece] of pieces.entries()) {
        if (at % 2 === 0) {
          prefix += piece;
          continue;
        }
        const value = values[parts.indexOf(piece)];
        if (value === undefined) return prefix;
        prefix += value;
      }
      return prefix;
    },
    pattern: Buffer.concat(
      pieces.map((piece, at) => (at % 2 === 0 ? escapeGlob(Buffer.from(piece)) : Buffer.from('*'))),
    ),
  };
}

/** Matches whatever is the beginning of a scope, but no whole one. */
function unfinishedPattern(pieces: readonly string[]): string {
  const steps = pieces.flatMap((piece, at) => (at % 2 === 0 ? [...piece].map(escapeRegExp) : [PART_TEXT]));
  // From the last one on: nothing yet, or this step and what can follow.
  return steps.reduceRight((rest, step) => (rest === '' ? '(?:)' : `(?:|${step}${rest})`), '');
}

function escapeRegExp(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
}
