/** What is wrong with a document, all of it, each with the field that it is about. */
export interface Problem {
  /** As in `spec.config[0].inline[1].path`. */
  readonly field: string;
  readonly reason: string;
  /** The value as it was given, shortened; left out where it may be a secret. */
  readonly value: string | undefined;
}

export interface Findings {
  readonly problems: Problem[];
  /** Taken as it is, but probably not what was meant. */
  readonly warnings: Problem[];
}

const VALUE_MAX = 80;

export class Report {
  readonly problems: Problem[] = [];
  readonly warnings: Problem[] = [];

  refuse(field: string, reason: string, value?: unknown): void {
    this.problems.push({ field, reason, value: shown(value) });
  }

  warn(field: string, reason: string, value?: unknown): void {
    this.warnings.push({ field, reason, value: shown(value) });
  }
}

export function formatProblem(place: string, { field, reason, value }: Problem): string {
  return `${place}: ${field}: ${reason}${value === undefined ? '' : ` (${value})`}`;
}

function shown(value: unknown): string | undefined {
  if (value === undefined) return undefined;
  const text =
    typeof value === 'object' && value !== null ? (Array.isArray(value) ? 'a list' : 'a map') : JSON.stringify(value);
  return text.length > VALUE_MAX ? `${text.slice(0, VALUE_MAX)}…` : text;
}
