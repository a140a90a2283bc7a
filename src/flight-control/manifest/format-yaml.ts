import { Document, isScalar, visit } from 'yaml';
import type { JsonValue } from './json-value.ts';
import { resolvePlain } from './yaml-scalar.ts';

/** One document that `readManifest` reads as this very value: what would be read as something else is quoted. */
export function formatYaml(value: JsonValue): string {
  const document = new Document(value, { schema: 'core', version: '1.2', aliasDuplicateObjects: false });
  visit(document, {
    Scalar(_key, node) {
      if (isScalar(node) && typeof node.value === 'string' && !isPlain(node.value)) node.type = 'QUOTE_DOUBLE';
    },
  });
  return document.toString({ lineWidth: 0 });
}

function isPlain(text: string): boolean {
  if (text.includes('\n')) return /\S/.test(text) && !/[^\n\x20-\x7e]|^\s| \n/.test(text);
  try {
    return resolvePlain(text) === text && text !== '<<';
  } catch {
    return false;
  }
}
