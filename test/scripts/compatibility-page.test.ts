import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { compatibilityPage } from '../../scripts/compatibility-page.ts';

test('docs/compatibility.md is what its generator writes', () => {
  const page = readFileSync(new URL('../../docs/compatibility.md', import.meta.url), 'utf8');
  expect(page).toBe(compatibilityPage());
  expect(page).toContain('| XADD | both |');
});
