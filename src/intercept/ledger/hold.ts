/**
 * All other stream commands on a ledgered stream: not sent while it is compared or restored, and sent again where the
 * reply told of a stream or group that had been lost: the KV store became another one in between, the stream's epoch
 * moved, or a group is missing that the ledger knows.
 */
import type { CommandEntry } from '../../command/command.ts';
import type { Exchange, Interceptor } from '../../interceptor.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import { holdUntilOpen, knownStream, type LedgerContext } from './context.ts';

interface Place {
  /** Positions among the arguments. */
  readonly key: number;
  readonly group?: number;
  /** May be asked twice. */
  readonly read: boolean;
}

const COMMANDS: ReadonlyMap<string, Place> = new Map([
  ['xlen', { key: 1, read: true }],
  ['xrange', { key: 1, read: true }],
  ['xrevrange', { key: 1, read: true }],
  ['xpending', { key: 1, group: 2, read: true }],
  ['xinfo|stream', { key: 2, read: true }],
  ['xinfo|groups', { key: 2, read: true }],
  ['xinfo|consumers', { key: 2, group: 3, read: true }],
  ['xclaim', { key: 1, group: 2, read: false }],
  ['xautoclaim', { key: 1, group: 2, read: false }],
  ['xgroup|createconsumer', { key: 2, group: 3, read: false }],
  ['xgroup|delconsumer', { key: 2, group: 3, read: false }],
]);

const MINUS = 0x2d;
const ATTEMPTS_MAX = 3;

function place(command: CommandEntry | undefined): Place | undefined {
  return command === undefined ? undefined : COMMANDS.get(command.name);
}

export function ledgerHold(context: LedgerContext): Interceptor {
  const { recovery } = context;

  /** A refusal that names a stream or group which the ledger knows: nothing was done. */
  function refusesKnown(exchange: Exchange, stream: Stream, { group }: Place, reply: Buffer): boolean {
    if (reply[0] !== MINUS) return false;
    const text = reply.toString('latin1', 1, 40);
    if (text.startsWith('ERR no such key')) return stream.present;
    if (!text.startsWith('NOGROUP')) return false;
    const name = group === undefined ? undefined : exchange.args[group]?.toString('latin1');
    return name !== undefined && stream.groups.get(name)?.changing === false;
  }

  function watch(exchange: Exchange, stream: Stream, at: Place): void {
    let { era } = recovery;
    let { epoch, restoredEpoch } = stream;
    const again = async (): Promise<Buffer> => {
      await holdUntilOpen(context, exchange, stream);
      ({ era } = recovery);
      ({ epoch, restoredEpoch } = stream);
      return exchange.resend();
    };
    const moved = (): boolean => recovery.era !== era || stream.epoch !== epoch || !recovery.gate.isOpen(stream);
    const judge = async (first: Buffer): Promise<Buffer> => {
      let reply = first;
      for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt += 1) {
        const refused = refusesKnown(exchange, stream, at, reply);
        if (refused && !moved())
          await recovery.noticed('a command found no stream or group where the ledger knows one', context.holdMs);
        if (stream.ended || !moved()) return reply;
        if (!refused && !at.read) {
          // Claims and consumers of before a restore went with what it replaced.
          await holdUntilOpen(context, exchange, stream);
          if (stream.ended || stream.restoredEpoch === restoredEpoch) return reply;
        }
        reply = await again();
      }
      return reply;
    };
    exchange.onReply((reply) => (reply[0] === MINUS || moved() ? judge(reply) : reply));
    if (at.read) exchange.onLost(again);
  }

  return {
    name: 'ledger-hold',
    handles: (command) => place(command) !== undefined,
    request(exchange) {
      const at = place(exchange.command)!;
      const stream = knownStream(context, exchange, exchange.args[at.key]);
      if (stream === undefined || exchange.queued) return;
      if (recovery.gate.isOpen(stream)) {
        watch(exchange, stream, at);
        return;
      }
      return holdUntilOpen(context, exchange, stream).then(() => watch(exchange, stream, at));
    },
  };
}
