/** What the parts of a device's spec are checked with, and what they have in common. */
import type { Report } from './problems.ts';
import { fillPlaceholders, hasPlaceholders, type TemplateCheck } from './template-text.ts';

export interface SpecContext {
  readonly report: Report;
  /** Placeholders are allowed, and judged by this. */
  readonly template: TemplateCheck | undefined;
}

/** A template's image must be a reference whatever its labels are, as far as that can be known. */
export function validateImage(
  { report, template }: SpecContext,
  at: string,
  image: unknown,
  isReference: (text: string) => boolean,
): void {
  if (image === undefined) {
    report.refuse(at, 'is missing');
    return;
  }
  if (typeof image !== 'string') {
    report.refuse(at, 'must be text', image);
    return;
  }
  if (template !== undefined && hasPlaceholders(image)) {
    const reason = template(image);
    if (reason !== undefined) {
      report.refuse(at, reason, image);
      return;
    }
    if (!isReference(fillPlaceholders(image, 'x'))) {
      report.refuse(at, 'is not an image reference, whatever stands for its placeholders', image);
    }
    return;
  }
  if (!isReference(image)) report.refuse(at, 'is not an image reference, such as quay.io/acme/rhel:9.4', image);
}
