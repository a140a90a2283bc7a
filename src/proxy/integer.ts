/** Whether a server reads this argument as an integer: 64 bits, no plus sign, no leading zero, no blank (`string2ll`). */
export function isInteger(text: string): boolean {
  if (!/^(?:0|-?[1-9]\d{0,18})$/.test(text)) return false;
  const value = BigInt(text);
  return BigInt.asIntN(64, value) === value;
}
