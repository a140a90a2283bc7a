/**
 * The one error class. `code` is stable: clients see it as the first word of a RESP error
 * (`-CODE message`), operators as the `code` field of a log line.
 */
export class HoldfastError extends Error {
  readonly code: string;

  constructor(code: string, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'HoldfastError';
    this.code = code;
  }

  /** `CODE message` on one line, as it stands behind the `-` of a RESP error. */
  toReplyText(): string {
    return `${this.code} ${this.message}`.replace(/[\r\n]+/g, ' ');
  }
}

/** The message of anything that was thrown. */
export function messageOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}
