/** What the tree of a fleet's template may contain, judged when the fleet is applied. */
import type { Node, Operand, Pipe } from './parser.ts';
import { TemplateFault } from './problem.ts';

const DEPTH_MAX = 10;

/** Throws a `TemplateFault`. Gives what is allowed but likely to fail for some devices, in one sentence each. */
export function checkTree(nodes: readonly Node[]): string[] {
  const warnings: string[] = [];
  checkNodes(nodes, { depth: 0, inWith: false, warnings });
  return [...new Set(warnings)];
}

interface Place {
  readonly depth: number;
  /** The dot is not the device. */
  readonly inWith: boolean;
  readonly warnings: string[];
}

function checkNodes(nodes: readonly Node[], place: Place): void {
  for (const node of nodes) checkNode(node, place);
}

function checkNode(node: Node, place: Place): void {
  switch (node.type) {
    case 'text':
      return;
    case 'action':
      checkPipe(node.pipe, place, false);
      return;
    case 'unsupported':
      throw new TemplateFault('unsupportedElement', node.position, `{{${node.keyword}}} is not supported`);
    default: {
      const inner = { ...place, depth: place.depth + 1 };
      if (inner.depth > DEPTH_MAX) {
        throw new TemplateFault('tooDeep', node.position, `{{${node.type}}} is nested deeper than ${DEPTH_MAX} levels`);
      }
      checkPipe(node.pipe, place, true);
      checkNodes(node.then, node.type === 'with' ? { ...inner, inWith: true } : inner);
      checkNodes(node.otherwise ?? [], inner);
    }
  }
}

function checkPipe(pipe: Pipe, place: Place, condition: boolean): void {
  for (const { args } of pipe.commands) for (const operand of args) checkOperand(operand, place, condition);
}

function checkOperand(operand: Operand, place: Place, condition: boolean): void {
  switch (operand.type) {
    case 'chain':
      throw new TemplateFault(
        'chainedField',
        operand.position,
        `a field of an expression, .${operand.path[0]}, is not supported`,
      );
    case 'pipe':
      checkPipe(operand.pipe, place, condition);
      return;
    case 'field':
      if (place.inWith) {
        if (operand.path[0] !== 'metadata') return;
        throw new TemplateFault(
          'rootFieldInWith',
          operand.position,
          `.${operand.path.join('.')} is a field of the device, and . is something else within {{with}}; write $.${operand.path.join('.')}`,
        );
      }
      checkPath(operand.path, operand.position, place, condition);
      return;
    case 'variable':
      if (operand.name === '$' && operand.path.length > 0) checkPath(operand.path, operand.position, place, condition);
  }
}

function checkPath(path: readonly string[], position: number, { warnings }: Place, condition: boolean): void {
  const [root, kind, key, ...rest] = path;
  const allowed =
    root === 'metadata' && ((kind === 'name' && key === undefined) || (kind === 'labels' && rest.length === 0));
  if (!allowed) {
    throw new TemplateFault(
      'unsupportedField',
      position,
      `.${path.join('.')} is not supported: there are .metadata.name, .metadata.labels and .metadata.labels.KEY`,
    );
  }
  if (condition && key !== undefined) {
    warnings.push(
      `a condition asks for .metadata.labels.${key}, which is an error for devices without that label; ` +
        `index .metadata.labels "${key}" is empty for them, getOrDefault .metadata.labels "${key}" "…" gives a default`,
    );
  }
}
