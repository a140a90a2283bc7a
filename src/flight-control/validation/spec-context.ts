/** What the parts of a device's spec are checked with, and what they have in common. */
import type { Report } from './problems.ts';
import { checkTemplateText, fillPlaceholders, hasPlaceholders } from './template-text.ts';

export interface SpecContext {
  readonly report: Report;
  /** Of a fleet's template: placeholders are allowed. */
  readonly template: boolean;
}

/** Whether it is a template. What is wrong with it is reported. */
export function isTemplate({ report, template }: SpecContext, at: string, text: string): boolean {
  if (!template || !hasPlaceholders(text)) return false;
  const { problem, warnings } = checkTemplateText(text);
  if (problem !== undefined) report.refuse(at, problem);
  for (const warning of warnings) report.warn(at, warning);
  return true;
}

/** A template's image must be a reference whatever its labels are, as far as that can be known. */
export function validateImage(
  context: SpecContext,
  at: string,
  image: unknown,
  isReference: (text: string) => boolean,
): void {
  const { report } = context;
  if (image === undefined) {
    report.refuse(at, 'is missing');
  } else if (typeof image !== 'string') {
    report.refuse(at, 'must be text', image);
  } else if (isTemplate(context, at, image)) {
    if (!isReference(fillPlaceholders(image, 'x'))) {
      report.refuse(at, 'is not an image reference, whatever stands for its placeholders', image);
    }
  } else if (!isReference(image)) {
    report.refuse(at, 'is not an image reference, such as quay.io/acme/rhel:9.4', image);
  }
}
