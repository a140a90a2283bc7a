/** Placeholders, `{{ … }}`, in a fleet's template. A device's own spec has none, there the braces are text. */
import { Template } from '../templates/template.ts';

const ACTION =
  /\{\{-?\s*(?:\/\*[\s\S]*?\*\/|(?:"(?:\\.|[^"\\\n])*"|`[^`]*`|'(?:\\.|[^'\\\n])*'|(?!\}\})[\s\S])*?)\s*-?\}\}/g;
/** What is wrong with a template, and what may fail for some devices. */
export interface TemplateFindings {
  readonly problem: string | undefined;
  readonly warnings: readonly string[];
}

export function checkTemplateText(text: string): TemplateFindings {
  const template = Template.check(text);
  if (template instanceof Template) return { problem: undefined, warnings: template.warnings };
  return { problem: template.problem.message, warnings: [] };
}

export function hasPlaceholders(text: string): boolean {
  return text.includes('{{');
}

/** The text with every placeholder replaced by `word`. */
export function fillPlaceholders(text: string, word: string): string {
  return text.replace(ACTION, word);
}
