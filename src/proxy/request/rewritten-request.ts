/**
 * Requests that go on in another form than they came, written straight into what a lane sends: the scanner's bounds say where
 * their arguments stand (see `Glance.look` for what they mean).
 *
 * Hot path: nothing is allocated.
 */

import type { KeyRange } from '../../command/command.ts';
import type { SentForm } from '../../interceptor.ts';
import { decimalDigits } from '../io/integer.ts';
import type { OutBuffer } from '../io/send-buffer.ts';
import { lastKeyOf } from './prefix-keys.ts';

/** Where a request of `argc` arguments stands in a buffer. */
export interface FoundRequest {
  readonly bounds: Int32Array;
  readonly argc: number;
}

/** Appends `form` around the request in `buffer[start, end)`; with a `prefix` before its keys. */
export function appendInForm(
  out: OutBuffer,
  buffer: Buffer,
  start: number,
  end: number,
  request: FoundRequest,
  form: SentForm,
  keys: KeyRange | undefined,
  prefix: Buffer | undefined,
): void {
  const from = argumentStart(request.bounds, form.argumentsFrom, start);
  if (keys === undefined || prefix === undefined) {
    out.appendFramed(form.head, buffer, from, end, form.tail);
    return;
  }
  out.appendFixed(form.head);
  appendPrefixed(out, buffer, start, from, end, request, keys, prefix);
  out.appendFixed(form.tail);
}

/** Appends what stands from `from` on of the request in `buffer[start, end)`, with `prefix` before its keys. */
export function appendPrefixed(
  out: OutBuffer,
  buffer: Buffer,
  start: number,
  from: number,
  end: number,
  { bounds, argc }: FoundRequest,
  keys: KeyRange,
  prefix: Buffer,
): void {
  const last = lastKeyOf(keys, argc);
  let copied = from;
  for (let i = keys.first; i <= last; i += keys.step) {
    const keyStart = start + bounds[i * 2]!;
    const keyLength = start + bounds[i * 2 + 1]! - keyStart;
    out.appendPrefix(buffer, copied, argumentStart(bounds, i, start), keyLength + prefix.length, prefix);
    copied = keyStart;
  }
  out.append(buffer, copied, end);
}

/** Where the `$` of argument `i` stands. */
function argumentStart(bounds: Int32Array, i: number, start: number): number {
  const argument = bounds[i * 2]!;
  return start + argument - 3 - decimalDigits(bounds[i * 2 + 1]! - argument);
}
