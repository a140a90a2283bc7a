import { expect, it } from 'vitest';
import {
  devicePathReasons,
  relativePathReasons,
  secretKeyPath,
} from '../../src/flight-control/rendering/config-path.ts';
import { type GoldenCase, goldenCases } from './golden.ts';

interface Case extends GoldenCase {
  readonly kind: 'device' | 'rendered' | 'secretKey' | 'relative';
  readonly path: string;
  readonly mountPath: string;
  readonly key: string;
  readonly expect: 'accept' | 'reject' | 'either';
  readonly reasons?: readonly string[];
  readonly result?: string;
}

/** `GENERATE: '/' then 4095 times 'a'` */
function generated(path: string): string {
  const match = /^GENERATE: '(.)' then (\d+) times '(.)'$/.exec(path);
  return match === null ? path : match[1]! + match[3]!.repeat(Number(match[2]));
}

it.each(goldenCases<Case>('paths'))('%s', (_, { kind, path, mountPath, key, result, ...expected }) => {
  if (kind === 'secretKey') {
    const place = secretKeyPath(mountPath, key);
    if (expected.expect === 'accept') expect(place).toEqual({ path: result });
    else expect(place).toEqual({ reasons: expected.reasons });
    return;
  }
  const reasons = kind === 'relative' ? relativePathReasons(path) : devicePathReasons(generated(path));
  if (expected.expect === 'accept') expect(reasons).toEqual([]);
  if (expected.expect === 'reject') expect(reasons).toEqual(expected.reasons ?? ['controlCharacter']);
});
