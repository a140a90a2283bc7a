/**
 * Fleet templates: the subset of Go's text/template that a fleet may use. Read once, run for each device; no code is generated, and nothing of
 * JavaScript is in a template's reach.
 */
import { checkTree } from './check.ts';
import { type Device, evaluate } from './evaluator.ts';
import { FUNCTIONS } from './functions.ts';
import { type Node, parseTemplate } from './parser.ts';
import { TemplateFault, type TemplateProblem } from './problem.ts';

export type Expansion = { readonly text: string } | { readonly problem: TemplateProblem };

export class Template {
  readonly #source: string;
  readonly #nodes: readonly Node[];
  /** What may fail for some devices, in one sentence each. */
  readonly warnings: readonly string[];

  private constructor(source: string, nodes: readonly Node[], warnings: readonly string[]) {
    this.#source = source;
    this.#nodes = nodes;
    this.warnings = warnings;
  }

  /** Reads and judges it, and runs it once for a device called `name` without labels, where a missing key is empty. */
  static check(source: string): Template | { readonly problem: TemplateProblem } {
    try {
      const nodes = parseTemplate(source, (name) => FUNCTIONS.has(name));
      const template = new Template(source, nodes, checkTree(nodes));
      evaluate(nodes, { name: 'name', labels: null }, false);
      return template;
    } catch (thrown) {
      return { problem: problemOf(thrown, source) };
    }
  }

  /** For a device of a rollout, where a missing key is a problem. */
  expand(device: Device): Expansion {
    try {
      return { text: evaluate(this.#nodes, device, true) };
    } catch (thrown) {
      return { problem: problemOf(thrown, this.#source) };
    }
  }
}

function problemOf(thrown: unknown, source: string): TemplateProblem {
  if (thrown instanceof TemplateFault) return thrown.toProblem(source);
  throw thrown;
}
