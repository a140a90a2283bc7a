/** The short form of `npm run fuzz -- --scanner`. */
import { expect, test } from 'vitest';
import { RequestScanner } from '../../src/resp/request-scanner.ts';
import { seed } from '../support/seed.ts';
import { fuzzScanner } from './scanner-frames.ts';

test('mutated frames are read alike whole, in pieces, and by redis-parser', () => {
  const report = fuzzScanner({ seed, frames: 50_000, failuresMax: 3 });
  expect(report.failures).toEqual([]);
  expect(report.frames).toBeGreaterThanOrEqual(50_000);
  expect(report.malformed).toBeGreaterThan(100);
});

test('a scanner that forgets where it was is found', () => {
  class Forgetful extends RequestScanner {
    override scan(buffer: Buffer, start: number, end: number): number {
      const length = super.scan(buffer, start, end);
      if (length === 0) this.found = 0;
      return length;
    }
  }
  const createScanner = () => new Forgetful({ bulkBytesMax: 512 * 1024 * 1024 });
  expect(fuzzScanner({ seed, frames: 5000, failuresMax: 1, createScanner }).failures).not.toEqual([]);
});

test('a scanner that is wrong about an argument is found', () => {
  class Shifted extends RequestScanner {
    override scan(buffer: Buffer, start: number, end: number): number {
      const length = super.scan(buffer, start, end);
      if (length > 0 && this.argc > 2) this.bounds[3] = this.bounds[3]! + 1;
      return length;
    }
  }
  const createScanner = () => new Shifted({ bulkBytesMax: 512 * 1024 * 1024 });
  expect(fuzzScanner({ seed, frames: 5000, failuresMax: 1, createScanner }).failures).not.toEqual([]);
});
