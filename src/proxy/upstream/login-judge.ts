/**
 * Lets the KV store judge the logins of clients, on one connection where nothing else ever runs: AUTH changes only that
 * connection.
 *
 * One at a time. A server since 7.2 does not answer an AUTH that it refuses while another reply is still on its way to the
 * same connection, and the verdict on somebody else would be taken for this one.
 */
import { HoldfastError, messageOf } from '../../errors.ts';
import { request } from '../../resp/encode.ts';
import type { Lane } from './lane.ts';

interface Login {
  readonly args: readonly Buffer[];
  verdict(reply: Buffer): void;
  lost(cause: HoldfastError): void;
}

export class LoginJudge {
  private readonly open: () => Promise<Lane>;
  private readonly waiting: Login[] = [];
  private lane: Lane | undefined;
  private judging = false;

  /** `open` makes a connection as nobody; it rejects with KVDOWN. */
  constructor(open: () => Promise<Lane>) {
    this.open = open;
  }

  /** `args`: a whole AUTH, or a HELLO with AUTH. Gives its reply; rejects with KVDOWN. */
  judge(args: readonly Buffer[]): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      this.waiting.push({ args, verdict: resolve, lost: reject });
      if (!this.judging) void this.judgeWaiting();
    });
  }

  close(cause: HoldfastError): void {
    this.lane?.close(cause);
    this.lane = undefined;
  }

  private async judgeWaiting(): Promise<void> {
    this.judging = true;
    while (this.waiting.length > 0) {
      try {
        if (this.lane?.state !== 'ready') this.lane = await this.open();
      } catch (thrown) {
        // Nobody waits for a connection after somebody else did in vain.
        for (const { lost } of this.waiting.splice(0)) lost(thrown as HoldfastError);
        break;
      }
      await this.judgeOne(this.lane, this.waiting.shift()!);
    }
    this.judging = false;
  }

  private judgeOne(lane: Lane, { args, verdict, lost }: Login): Promise<void> {
    return new Promise((settled) => {
      lane.sendWhole(
        {
          reply: (frame) => {
            verdict(frame);
            settled();
          },
          lost: (cause) => {
            lost(cause);
            settled();
          },
          fault: (thrown) => {
            lost(new HoldfastError('ERR', messageOf(thrown)));
            settled();
          },
        },
        request(args),
      );
    });
  }
}
