/** Writes docs/compatibility.md: every command of both reference servers, and how Holdfast carries it. */
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { compatibilityPage } from './compatibility-page.ts';

writeFileSync(fileURLToPath(new URL('../docs/compatibility.md', import.meta.url)), compatibilityPage());
