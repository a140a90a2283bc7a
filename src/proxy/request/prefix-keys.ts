/** Keys of scoped requests that need nothing but a prefix. */
import type { KeyRange } from '../../command/command.ts';

export function prefixKeys(args: readonly Buffer[], keys: KeyRange, prefix: Buffer): Buffer[] {
  const prefixed = [...args];
  const last = lastKeyOf(keys, args.length);
  for (let i = keys.first; i <= last; i += keys.step) prefixed[i] = Buffer.concat([prefix, args[i]!]);
  return prefixed;
}

/** The position of the last key of a request with `argc` arguments. */
export function lastKeyOf(keys: KeyRange, argc: number): number {
  return keys.last < 0 ? argc + keys.last : Math.min(keys.last, argc - 1);
}
