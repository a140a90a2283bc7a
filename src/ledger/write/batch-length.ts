/** How much of a queue goes into one statement. */
export interface BatchLimits {
  readonly batchRowsMax: number;
  readonly batchBytesMax: number;
}

/** The first rows that fit together, and their bytes. A row that is too large goes alone. */
export function batchLength(
  rows: readonly { readonly bytes: number }[],
  limits: BatchLimits,
): { readonly count: number; readonly bytes: number } {
  let bytes = 0;
  let count = 0;
  for (const row of rows) {
    if (count > 0 && (count >= limits.batchRowsMax || bytes + row.bytes > limits.batchBytesMax)) break;
    bytes += row.bytes;
    count += 1;
  }
  return { count, bytes };
}
