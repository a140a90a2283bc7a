/** Runs the tree of a template for one device, with Go's rules for values, missing keys and arguments, in bounded time and memory. */
import { printed, UnsupportedFormat } from './format.ts';
import { FUNCTIONS, FunctionFault, type Parameter, TEXT_BYTES_MAX, type TemplateFunction } from './functions.ts';
import type { Command, Node, Operand, Pipe } from './parser.ts';
import { TemplateFault } from './problem.ts';
import { byteLength, GoLabels, GoMap, type GoValue, isTrue, typeName } from './values.ts';

const STEPS_MAX = 100_000;

export interface Device {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>> | ReadonlyMap<string, string> | null | undefined;
}

/** `null` is a device without labels. */
function labelsOf({ labels }: Device): ReadonlyMap<string, string> {
  return labels instanceof Map ? labels : new Map(Object.entries(labels ?? {}));
}

interface Variable {
  readonly name: string;
  value: GoValue;
}

/** `strict`: a missing key is an error, as in a rollout; else it is empty, as in the trial run of apply. Throws a `TemplateFault`. */
export function evaluate(nodes: readonly Node[], device: Device, strict: boolean): string {
  const metadata = new GoMap(
    new Map<string, GoValue>([
      ['name', device.name],
      ['labels', new GoLabels(labelsOf(device))],
    ]),
  );
  return new Run(device.name, new GoMap(new Map([['metadata', metadata]])), strict).text(nodes);
}

/** No piped value. */
const NONE = Symbol('none');
type Piped = GoValue | typeof NONE;

class Run {
  readonly #deviceName: string;
  readonly #strict: boolean;
  readonly #variables: Variable[];
  readonly #root: GoMap;
  readonly #pieces: string[] = [];
  #bytes = 0;
  #steps = 0;

  constructor(deviceName: string, root: GoMap, strict: boolean) {
    this.#deviceName = deviceName;
    this.#root = root;
    this.#strict = strict;
    this.#variables = [{ name: '$', value: root }];
  }

  text(nodes: readonly Node[]): string {
    this.#nodes(nodes, this.#root);
    return this.#pieces.join('');
  }

  #step(position: number): void {
    this.#steps += 1;
    if (this.#steps > STEPS_MAX) throw new TemplateFault('limit', position, `takes more than ${STEPS_MAX} steps`);
  }

  #write(text: string, position: number): void {
    this.#bytes += byteLength(text);
    if (this.#bytes > TEXT_BYTES_MAX)
      throw new TemplateFault('limit', position, `the result is larger than ${TEXT_BYTES_MAX} bytes`);
    this.#pieces.push(text);
  }

  #nodes(nodes: readonly Node[], dot: GoValue): void {
    for (const node of nodes) {
      this.#step(node.position);
      if (node.type === 'text') this.#write(node.text, node.position);
      else if (node.type === 'action') {
        const value = this.#pipe(node.pipe, dot);
        if (node.pipe.variable === undefined) this.#write(this.#printed(value, node.position), node.position);
      } else if (node.type !== 'unsupported') this.#branch(node, dot);
    }
  }

  #printed(value: GoValue, position: number): string {
    try {
      return printed(value);
    } catch (thrown) {
      if (thrown instanceof UnsupportedFormat) throw new TemplateFault('exec', position, thrown.message);
      throw thrown;
    }
  }

  #branch(node: Extract<Node, { type: 'if' | 'with' }>, dot: GoValue): void {
    const variables = this.#variables.length;
    const value = this.#pipe(node.pipe, dot);
    if (isTrue(value)) this.#nodes(node.then, node.type === 'with' ? value : dot);
    else this.#nodes(node.otherwise ?? [], dot);
    this.#variables.length = variables;
  }

  #pipe(pipe: Pipe, dot: GoValue): GoValue {
    let value: Piped = NONE;
    for (const command of pipe.commands) {
      value = this.#command(command, dot, value);
      // What an interface holds; nil in it is no value.
      if (value === null) value = undefined;
    }
    const result = value as GoValue;
    if (pipe.variable !== undefined) this.#set(pipe.variable, result, pipe);
    return result;
  }

  #set(name: string, value: GoValue, { assigns, position }: Pipe): void {
    if (!assigns) {
      this.#variables.push({ name, value });
      return;
    }
    const variable = this.#variables.findLast((candidate) => candidate.name === name);
    if (variable === undefined) throw new TemplateFault('exec', position, `undefined variable: ${name}`);
    variable.value = value;
  }

  #command({ args }: Command, dot: GoValue, piped: Piped): GoValue {
    const first = args[0]!;
    this.#step(first.position);
    if (first.type === 'function') return this.#call(first.name, first.position, args.slice(1), dot, piped);
    if (args.length > 1 || piped !== NONE) {
      throw new TemplateFault('notAFunction', first.position, `can't give argument to non-function ${describe(first)}`);
    }
    if (first.type === 'nil') throw new TemplateFault('nilCommand', first.position, 'nil is not a command');
    return this.#operand(first, dot);
  }

  #operand(operand: Operand, dot: GoValue): GoValue {
    this.#step(operand.position);
    switch (operand.type) {
      case 'dot':
        return dot;
      case 'nil':
        return null;
      case 'literal':
        return operand.value;
      case 'field':
        return this.#path(dot, operand.path, operand);
      case 'variable': {
        const variable = this.#variables.findLast(({ name }) => name === operand.name);
        if (variable === undefined)
          throw new TemplateFault('exec', operand.position, `undefined variable: ${operand.name}`);
        return this.#path(variable.value, operand.path, operand);
      }
      case 'function':
        return this.#call(operand.name, operand.position, [], dot, NONE);
      case 'pipe':
        return this.#pipe(operand.pipe, dot);
      case 'chain':
        return this.#path(this.#operand(operand.of, dot), operand.path, operand);
    }
  }

  #path(from: GoValue, path: readonly string[], operand: Operand): GoValue {
    return path.reduce((value, key) => this.#field(value, key, operand), from);
  }

  #field(value: GoValue, key: string, operand: Operand): GoValue {
    const { position } = operand;
    if (value === undefined || value === null) {
      if (!this.#strict) return undefined;
      throw new TemplateFault(
        'missingKey',
        position,
        `${describe(operand)}: nil data; no entry for key ${JSON.stringify(key)}`,
      );
    }
    if (value instanceof GoLabels || value instanceof GoMap) {
      const found = value.entries.get(key);
      if (found !== undefined || value.entries.has(key)) return found;
      if (!this.#strict) return value instanceof GoLabels ? '' : undefined;
      throw new TemplateFault('missingKey', position, this.#missing(key, operand));
    }
    throw new TemplateFault(
      'noSuchField',
      position,
      `${describe(operand)}: can't evaluate field ${key} in type ${typeName(value)}`,
    );
  }

  #missing(key: string, operand: Operand): string {
    const name = JSON.stringify(key);
    return (
      `${describe(operand)}: device ${JSON.stringify(this.#deviceName)} has no label ${name}; write index .metadata.labels ${name} ` +
      `where it may be empty, or getOrDefault .metadata.labels ${name} "…"`
    );
  }

  #call(name: string, position: number, args: readonly Operand[], dot: GoValue, piped: Piped): GoValue {
    const called = FUNCTIONS.get(name)!;
    const count = args.length + (piped === NONE ? 0 : 1);
    const { parameters, rest } = called;
    if (rest === undefined ? count !== parameters.length : count < parameters.length) {
      const wanted = rest === undefined ? String(parameters.length) : `at least ${parameters.length}`;
      throw new TemplateFault('argCount', position, `wrong number of args for ${name}: want ${wanted} got ${count}`);
    }
    if (name === 'and' || name === 'or') return this.#shortCircuit(name === 'or', args, dot, piped);
    const parameter = (index: number): Parameter => parameters[index] ?? rest!;
    const values = args.map((operand, index) => this.#argument(operand, parameter(index), dot, name));
    if (piped !== NONE) values.push(fitting(piped, parameter(args.length), name, position));
    return this.#run(called, name, position, values);
  }

  /** Gives the first argument that decides. */
  #shortCircuit(decides: boolean, args: readonly Operand[], dot: GoValue, piped: Piped): GoValue {
    let value: GoValue;
    for (const operand of args) {
      value = this.#operand(operand, dot);
      if (isTrue(value) === decides) return value;
    }
    return piped === NONE ? value : piped;
  }

  #argument(operand: Operand, parameter: Parameter, dot: GoValue, name: string): GoValue {
    const value = this.#operand(operand, dot);
    const constant = operand.type === 'literal';
    if (constant && parameter === 'labels') {
      throw new TemplateFault(
        'exec',
        operand.position,
        `${name}: can't handle ${describe(operand)} for an argument that is labels`,
      );
    }
    if (operand.type === 'nil' && parameter === 'string') {
      throw new TemplateFault('argType', operand.position, `${name}: cannot assign nil to string`);
    }
    return fitting(value, parameter, name, operand.position);
  }

  #run(called: TemplateFunction, name: string, position: number, values: readonly GoValue[]): GoValue {
    this.#step(position);
    let value: GoValue;
    try {
      value = called.call(...values);
    } catch (thrown) {
      if (thrown instanceof FunctionFault)
        throw new TemplateFault(thrown.reason, position, `${name}: ${thrown.message}`);
      if (thrown instanceof UnsupportedFormat)
        throw new TemplateFault('functionError', position, `${name}: ${thrown.message}`);
      if (thrown instanceof RangeError) throw this.#tooLarge(name, position);
      throw thrown;
    }
    if (typeof value === 'string' && byteLength(value) > TEXT_BYTES_MAX) throw this.#tooLarge(name, position);
    return value;
  }

  #tooLarge(name: string, position: number): TemplateFault {
    return new TemplateFault('limit', position, `${name}: the result is larger than ${TEXT_BYTES_MAX} bytes`);
  }
}

function fitting(value: GoValue, parameter: Parameter, name: string, position: number): GoValue {
  const fits =
    parameter === 'any' ||
    (parameter === 'string' && typeof value === 'string') ||
    (parameter === 'labels' && (value instanceof GoLabels || value === null));
  if (fits) return value;
  const wanted = parameter === 'labels' ? 'labels' : 'string';
  throw new TemplateFault(
    'argType',
    position,
    `${name}: wrong type for value; expected ${wanted}; got ${typeName(value)}`,
  );
}

function describe(operand: Operand): string {
  switch (operand.type) {
    case 'field':
      return `.${operand.path.join('.')}`;
    case 'variable':
      return [operand.name, ...operand.path].join('.');
    case 'literal':
      return operand.text;
    case 'pipe':
    case 'chain':
      return 'a pipeline in parentheses';
    default:
      return operand.type;
  }
}
