/** One request off the fast path: its arguments, and its bytes as a multibulk frame. */
import type { CommandEntry } from '../../command/command.ts';
import * as encode from '../../resp/encode.ts';
import type { CommandPlan } from './command-plan.ts';

export class Request {
  readonly plan: CommandPlan;
  readonly args: readonly Buffer[];
  /** Where it is not the session's. */
  readonly scope: object | undefined;
  private frame: Buffer | undefined;

  /** `frame` is the request as it came, where it may be sent as it is. */
  constructor(plan: CommandPlan, args: readonly Buffer[], frame: Buffer | undefined, scope?: object) {
    this.plan = plan;
    this.args = args;
    this.scope = scope;
    this.frame = frame;
  }

  get command(): CommandEntry | undefined {
    return this.plan.command;
  }

  get bytes(): Buffer {
    this.frame ??= encode.request(this.args);
    return this.frame;
  }

  /** The same request with argument `i` replaced. */
  withArgument(i: number, value: string): Request {
    return new Request(
      this.plan,
      this.args.map((arg, at) => (at === i ? Buffer.from(value) : arg)),
      undefined,
    );
  }

  /** Whether argument `i` is `word`, in any letter case. */
  is(i: number, word: string): boolean {
    return this.args[i]?.toString('latin1').toLowerCase() === word;
  }
}
