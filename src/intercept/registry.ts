/** All interceptors of the sidecar, in the order in which requests pass them; replies pass them the other way round. */
import type { Cache } from '../cache/cache.ts';
import type { CommandEntry } from '../command/command.ts';
import type { Interceptor } from '../interceptor.ts';
import type { ScriptRegistry } from '../scope/lua/script-registry.ts';
import { cacheInterceptors } from './cache/interceptors.ts';
import { hideOwnKeysInterceptor } from './hide-own-keys.ts';
import { holdfastCheckpoint } from './holdfast/checkpoint.ts';
import { holdfastCommand } from './holdfast/command.ts';
import { holdfastCommands } from './holdfast/commands.ts';
import { holdfastLedger, type LedgerAdmin } from './holdfast/ledger.ts';
import { holdfastReload } from './holdfast/reload.ts';
import { holdfastReplay } from './holdfast/replay.ts';
import { holdfastScope, holdfastWith } from './holdfast/scope.ts';
import { holdfastStatus } from './holdfast/status.ts';
import { infoInterceptor } from './info.ts';
import type { LedgerContext } from './ledger/context.ts';
import { ledgerInterceptors } from './ledger/interceptors.ts';
import { scopeInterceptors } from './scope/interceptors.ts';

export interface InterceptorParts {
  readonly ledger: LedgerContext;
  readonly cache: Cache;
  readonly scripts: ScriptRegistry;
  /** How the proxy carries a command, in a word. */
  carriedAs(command: CommandEntry): string;
  /** Reads the configuration again, in all processes; gives what was done, in lines. */
  reload(): Promise<readonly string[]>;
  /** What `holdfast status` prints, or JSON. */
  status(json: boolean): Promise<string>;
  readonly ledgerAdmin: LedgerAdmin;
  /** Names and values of INFO's section `# Holdfast`. */
  infoFields(): Readonly<Record<string, string | number>>;
}

export function createInterceptors(parts: InterceptorParts): Interceptor[] {
  const ledgered = () => parts.ledger.ledger.streams.all();
  return [
    ...scopeInterceptors(parts.scripts, ledgered, Buffer.from(parts.ledger.ledger.identity)),
    holdfastCommand([
      holdfastScope(parts.cache.invalidations, ledgered),
      holdfastWith(),
      holdfastCommands(parts.carriedAs),
      holdfastReload(parts.reload),
      holdfastStatus(parts.status),
      holdfastCheckpoint(parts.ledger.ledger),
      holdfastReplay(parts.ledger.ledger),
      holdfastLedger(parts.ledgerAdmin),
    ]),
    infoInterceptor(parts.infoFields),
    hideOwnKeysInterceptor(),
    ...ledgerInterceptors(parts.ledger),
    ...cacheInterceptors(parts.cache),
  ];
}
