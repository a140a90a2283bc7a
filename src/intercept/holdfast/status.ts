/** HOLDFAST STATUS: what `holdfast status` prints, of the process that the client is connected to. */
import { HoldfastError } from '../../errors.ts';
import * as encode from '../../resp/encode.ts';
import { equalsWord } from '../ledger/context.ts';
import type { HoldfastSubcommand } from './command.ts';

/** `status` gives the text for a person, or JSON. */
export function holdfastStatus(status: (json: boolean) => Promise<string>): HoldfastSubcommand {
  return {
    name: 'status',
    admin: true,
    syntax: '[JSON]',
    summary: 'One look: KV store, ledger, streams, groups, recoveries, cache, memory.',
    async run(exchange, args) {
      const json = args.length === 1 && equalsWord(args[0]!, 'json');
      if (args.length > 0 && !json) throw new HoldfastError('ERR', 'syntax: HOLDFAST STATUS [JSON]');
      exchange.respond(encode.bulk(await status(json)));
    },
  };
}
