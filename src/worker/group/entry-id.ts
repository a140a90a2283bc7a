/** Entry IDs as the servers write them, `ms-seq`, each half an unsigned 64-bit number. */
const SEQUENCE_MAX = 2n ** 64n - 1n;

function halves(id: string): [bigint, bigint] {
  const dash = id.indexOf('-');
  return [BigInt(id.slice(0, dash)), BigInt(id.slice(dash + 1))];
}

export function compareIds(a: string, b: string): number {
  const aDash = a.indexOf('-');
  const bDash = b.indexOf('-');
  return (
    compareDecimals(a.slice(0, aDash), b.slice(0, bDash)) || compareDecimals(a.slice(aDash + 1), b.slice(bDash + 1))
  );
}

/** Without leading zeros the longer number is the greater one. */
function compareDecimals(a: string, b: string): number {
  if (a.length !== b.length) return a.length - b.length;
  return a < b ? -1 : a > b ? 1 : 0;
}

export function nextId(id: string): string {
  const [ms, sequence] = halves(id);
  return sequence === SEQUENCE_MAX ? `${ms + 1n}-0` : `${ms}-${sequence + 1n}`;
}

/** The ID just below; `0-0` has none and is given back. */
export function previousId(id: string): string {
  const [ms, sequence] = halves(id);
  if (sequence > 0n) return `${ms}-${sequence - 1n}`;
  return ms === 0n ? id : `${ms - 1n}-${SEQUENCE_MAX}`;
}

export function idMilliseconds(id: string): number {
  return Number(id.slice(0, id.indexOf('-')));
}
