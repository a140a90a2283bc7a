/** What all interceptors of ledgered streams share: the ledger, its recovery, and how long a client may be held. */
import { HoldfastError } from '../../errors.ts';
import type { Exchange } from '../../interceptor.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import type { Recovery } from '../../recovery/recovery.ts';
import type { StreamLimit } from './stream-limit.ts';

export interface LedgerContext {
  readonly ledger: Ledger;
  readonly recovery: Recovery;
  /** How long a command waits for a stream that is being restored, in milliseconds; a blocking read waits as long as it would block. */
  readonly holdMs: number;
  /** How many streams may begin. */
  readonly streamLimit: StreamLimit;
  /** An entry whose fields are longer is refused. */
  readonly entryBytesMax: number;
  /** Without Postgres: refuse entries, or take them and repair the ledger afterwards. */
  readonly onFailure: 'refuse' | 'degrade';
}

/** The stream a key names, as far as this process knows one in the ledger. */
export function knownStream(context: LedgerContext, exchange: Exchange, key: Buffer | undefined): Stream | undefined {
  return key === undefined ? undefined : context.ledger.streams.find(exchange.session.database, key);
}

export function recovering(stream: Stream): HoldfastError {
  return new HoldfastError(
    'RECOVERING',
    `the stream ${stream.name.toString()} is being restored after a loss in the KV store; try again`,
  );
}

/** Waits until commands on the stream may go out; throws RECOVERING after `holdMs`. A stream that ended is not waited for. */
export async function holdUntilOpen(context: LedgerContext, exchange: Exchange, stream: Stream): Promise<void> {
  const settled = await context.recovery.gate.reopened(stream, context.holdMs, () => !exchange.session.closed);
  if (settled === 'timeout') throw recovering(stream);
}

/** The same, until nothing of the stream is in the ledger alone any more. */
export async function holdUntilWhole(context: LedgerContext, exchange: Exchange, stream: Stream): Promise<void> {
  const settled = await context.recovery.gate.reopened(stream, context.holdMs, () => !exchange.session.closed, true);
  if (settled === 'timeout') throw recovering(stream);
}

/** For a statement of an interceptor's own: where Postgres does not answer, LEDGERDOWN with what that means for the client. */
export function ledgerDown({ ledger }: LedgerContext, meaning: string): (thrown: unknown) => never {
  return (thrown) => {
    if (thrown instanceof HoldfastError || !ledger.postgres.failed(thrown)) throw thrown;
    throw new HoldfastError('LEDGERDOWN', `the ledger does not answer; ${meaning}`, { cause: thrown });
  };
}

export function equalsWord(arg: Buffer, lowerCase: string): boolean {
  return arg.length === lowerCase.length && arg.toString('latin1').toLowerCase() === lowerCase;
}
