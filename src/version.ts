import { readFileSync } from 'node:fs';

/** Of the package, which lies one directory up from `src` and from `dist`. */
export function readVersion(): string {
  const description: unknown = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
  return (description as { version: string }).version;
}
