/**
 * A manifest from its text to the database. First all of it is read and judged, document by document, so that every problem
 * is listed and nothing of a refused file is written; then it is written in one transaction. The documents of a large file
 * are not kept in between but read again, so that there are never more than some hundreds of them.
 */
import type pg from 'pg';
import { inPooledTransaction } from '../../ledger/in-transaction.ts';
import { field, isObject, type JsonObject, type JsonValue } from '../manifest/json-value.ts';
import { type ManifestDocument, readManifest } from '../manifest/read-manifest.ts';
import { formatProblem } from '../validation/problems.ts';
import { validateResource } from '../validation/validate-resource.ts';
import { UNSTORED_KINDS } from './kinds.ts';
import { type Outcome, type Wanted, WrittenMeanwhile, writeResources } from './write-resources.ts';

export interface ApplyOptions {
  readonly org: string;
  readonly actor: string;
  readonly dryRun: boolean;
  /** Told of each resource once it is sure what becomes of it, except for the commit. */
  readonly applied: (name: string, outcome: Outcome) => void;
  /** A line for the operator that is no refusal. */
  readonly remarked: (line: string) => void;
}

const CHUNK = 500;
const KEPT_LENGTH_MAX = 16 * 1024 * 1024;
const ATTEMPTS_MAX = 3;
const DEADLOCK = '40P01';

/** Ends the transaction without a trace: it was a dry run, or met a conflict. */
class TakenBack extends Error {}

/** `file` names it in messages. Gives the lines of all problems: none of it is applied where there is one. */
export async function applyManifest(
  pool: pg.Pool,
  file: string,
  text: string,
  options: ApplyOptions,
): Promise<readonly string[]> {
  const documents: Iterable<ManifestDocument> =
    text.length > KEPT_LENGTH_MAX ? { [Symbol.iterator]: () => readManifest(text) } : [...readManifest(text)];
  const problems = judgeManifest(file, documents, options.remarked);
  if (problems.length > 0) return problems;
  for (let attempt = 1; ; attempt += 1) {
    const conflicts: string[] = [];
    const outcomes: [string, Outcome][] = [];
    try {
      await inPooledTransaction(pool, async (client) => {
        for (const chunk of chunksOf(documents)) {
          const written = await writeResources(client, options.org, options.actor, chunk);
          for (const [at, one] of written.entries()) {
            const { kind, name, number } = chunk[at]!;
            if ('problem' in one) conflicts.push(formatProblem(`${file}:${number}`, one.problem));
            else outcomes.push([`${kind}/${name}`, one.outcome]);
          }
        }
        if (conflicts.length > 0 || options.dryRun) throw new TakenBack();
      });
    } catch (error) {
      if (error instanceof TakenBack) {
        if (conflicts.length > 0) return conflicts;
      } else if (attempt < ATTEMPTS_MAX && isContention(error)) {
        continue;
      } else throw error;
    }
    for (const [name, outcome] of outcomes) options.applied(name, outcome);
    return [];
  }
}

function isContention(error: unknown): boolean {
  return error instanceof WrittenMeanwhile || (error as { code?: unknown }).code === DEADLOCK;
}

/** All that is wrong with it, and remarks on what is odd. */
function judgeManifest(
  file: string,
  documents: Iterable<ManifestDocument>,
  remarked: (line: string) => void,
): string[] {
  const problems: string[] = [];
  for (const { number, value, problem } of documents) {
    const place = `${file}:${number}`;
    if (problem !== undefined) {
      problems.push(formatProblem(place, { field: 'document', reason: problem, value: undefined }));
      continue;
    }
    const findings = validateResource(value!);
    problems.push(...findings.problems.map((one) => formatProblem(place, one)));
    for (const one of findings.warnings) remarked(`warning: ${formatProblem(place, one)}`);
    const kind = field(value!, 'kind');
    if (findings.problems.length === 0 && isUnstored(kind)) {
      remarked(`${place}: ${kind}/${nameOf(value!)} is not stored: Holdfast does nothing with this kind`);
    }
  }
  return problems;
}

function isUnstored(kind: unknown): kind is string {
  return typeof kind === 'string' && UNSTORED_KINDS.includes(kind);
}

function nameOf(document: JsonValue): string {
  return String(field(field(document, 'metadata'), 'name'));
}

interface Numbered extends Wanted {
  readonly number: number;
}

/** A resource that a file names twice is written twice, in its order. */
function* chunksOf(documents: Iterable<ManifestDocument>): Generator<Numbered[]> {
  let chunk = new Map<string, Numbered>();
  for (const { number, value } of documents) {
    if (!isObject(value)) continue;
    const kind = field(value, 'kind') as string;
    if (isUnstored(kind)) continue;
    const name = nameOf(value);
    const key = `${kind}/${name}`;
    if (chunk.size === CHUNK || chunk.has(key)) {
      yield [...chunk.values()];
      chunk = new Map();
    }
    chunk.set(key, { number, kind, name, document: value as JsonObject });
  }
  if (chunk.size > 0) yield [...chunk.values()];
}
