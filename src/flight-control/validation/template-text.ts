/**
 * What a fleet's template may say inside `{{ … }}`, as far as it can be seen without running it: the elements and the fields
 * that exist. A device's own spec has no placeholders, there the braces are text.
 */
const ACTION =
  /\{\{-?\s*(?:\/\*[\s\S]*?\*\/|(?:"(?:\\.|[^"\\\n])*"|`[^`]*`|'(?:\\.|[^'\\\n])*'|(?!\}\})[\s\S])*?)\s*-?\}\}/g;
const LITERAL = /\/\*[\s\S]*?\*\/|"(?:\\.|[^"\\\n])*"|`[^`]*`|'(?:\\.|[^'\\\n])*'/g;
const FORBIDDEN_ELEMENT = /^\s*(range|template|block|define|break|continue)\b/;
const FIELD = /(?<![\w)\]])((?:\.[A-Za-z_]\w*)+)/g;

/** Gives the reason for a refusal. */
export type TemplateCheck = (text: string) => string | undefined;

export function hasPlaceholders(text: string): boolean {
  return text.includes('{{');
}

export const checkTemplateText: TemplateCheck = (text) => {
  const rest = text.replace(ACTION, '');
  if (rest.includes('{{')) return 'a placeholder is not closed';
  for (const [action] of text.matchAll(ACTION)) {
    const inside = action.slice(2, -2).replace(/^-\s/, '').replace(/\s-$/, '').replace(LITERAL, '""');
    const element = FORBIDDEN_ELEMENT.exec(inside);
    if (element !== null) return `${element[1]} is not allowed in a template`;
    for (const [, path] of inside.matchAll(FIELD)) {
      if (path === '.metadata' || path === '.metadata.name' || /^\.metadata\.labels(\.|$)/.test(path!)) continue;
      return `${path} does not exist: only .metadata.name and .metadata.labels do`;
    }
  }
  return undefined;
};

/** The text with every placeholder replaced by `word`. */
export function fillPlaceholders(text: string, word: string): string {
  return text.replace(ACTION, word);
}
