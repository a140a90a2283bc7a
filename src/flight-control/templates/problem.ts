/** What is wrong with a template, as data: apply lists problems, a rollout writes one into a condition. */
export type TemplateReason =
  // found by reading it
  | 'syntax'
  | 'unsupportedElement'
  | 'unsupportedField'
  | 'chainedField'
  | 'rootFieldInWith'
  | 'tooDeep'
  // found by running it
  | 'missingKey'
  | 'noSuchField'
  | 'argCount'
  | 'argType'
  | 'compare'
  | 'functionError'
  | 'notAFunction'
  | 'nilCommand'
  | 'exec'
  | 'limit';

export interface TemplateProblem {
  readonly reason: TemplateReason;
  /** `line 1, column 4: …`, naming the function, field or key. */
  readonly message: string;
}

/** Thrown within the engine only; its callers get the `TemplateProblem`. */
export class TemplateFault extends Error {
  readonly reason: TemplateReason;
  /** Index into the template's text. */
  readonly position: number;

  constructor(reason: TemplateReason, position: number, message: string) {
    super(message);
    this.reason = reason;
    this.position = position;
  }

  toProblem(text: string): TemplateProblem {
    const before = text.slice(0, this.position);
    const line = before.split('\n').length;
    const column = this.position - before.lastIndexOf('\n');
    return { reason: this.reason, message: `line ${line}, column ${column}: ${this.message}` };
  }
}
