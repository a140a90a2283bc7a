/**
 * Argument lists for every command of a reference server, built from its own COMMAND DOCS: syntactically right ones,
 * and right ones with something wrong.
 */
import { type Reply, replyValue } from '../../src/resp/reply.ts';
import type { RawClient } from '../support/raw-client.ts';
import type { Random } from './random.ts';

export interface DocumentedArgument {
  readonly name: string;
  readonly type: string;
  readonly token: string | undefined;
  readonly optional: boolean;
  readonly multiple: boolean;
  readonly multipleToken: boolean;
  readonly arguments: readonly DocumentedArgument[];
}

export interface DocumentedCommand {
  /** Lower case; a subcommand as `container|subcommand`. */
  readonly name: string;
  readonly arguments: readonly DocumentedArgument[];
}

/** The fields of a map, or of RESP2's flat form of one. */
function fields(reply: Reply): Map<string, Reply> {
  const items = reply.items ?? [];
  const result = new Map<string, Reply>();
  for (let at = 0; at + 1 < items.length; at += 2) result.set(items[at]!.bytes.toString(), items[at + 1]!);
  return result;
}

function readArguments(reply: Reply | undefined): DocumentedArgument[] {
  return (reply?.items ?? []).map((item) => {
    const field = fields(item);
    const flags = (field.get('flags')?.items ?? []).map((flag) => String(replyValue(flag)));
    return {
      name: field.get('name')?.bytes.toString() ?? '',
      type: field.get('type')?.bytes.toString() ?? 'string',
      token: field.get('token')?.bytes.toString(),
      optional: flags.includes('optional'),
      multiple: flags.includes('multiple'),
      multipleToken: flags.includes('multiple_token'),
      arguments: readArguments(field.get('arguments')),
    };
  });
}

/** All commands that the server documents, containers replaced by their subcommands, in a fixed order. */
export async function readCommandDocs(client: RawClient): Promise<DocumentedCommand[]> {
  const commands: DocumentedCommand[] = [];
  for (const [name, description] of fields(await client.send('COMMAND', 'DOCS'))) {
    const field = fields(description);
    const subcommands = field.get('subcommands');
    if (subcommands === undefined) {
      commands.push({ name: name.toLowerCase(), arguments: readArguments(field.get('arguments')) });
      continue;
    }
    for (const [subcommand, details] of fields(subcommands)) {
      commands.push({ name: subcommand.toLowerCase(), arguments: readArguments(fields(details).get('arguments')) });
    }
  }
  return commands.sort((a, b) => (a.name < b.name ? -1 : 1));
}

export const KEYS = ['s', 'n', 'l', 'h', 'set', 'z', 'x', 'geo', 'none', 'none2', ''] as const;

const INTEGERS = ['0', '1', '2', '3', '5', '10', '-1', '-2', '100'];
const ODD_INTEGERS = ['9223372036854775807', '-9223372036854775808', '9223372036854775808', '1.5', 'x', '', '01', ' 1'];
const DOUBLES = ['0', '1', '1.5', '-2.25', '3e2', 'inf', '-inf', '(1', '+inf'];
const STRINGS = ['a', 'b', 'm1', 'f1', 'value', '', '1-1', '2-0', '0', '$', '>', '-', '+', '[a', '(b', 'g', 'c', 'm'];
const SCRIPTS = [
  'return 1',
  'return KEYS',
  'return ARGV',
  'return redis.call("get", KEYS[1])',
  'return redis.call("xlen", "x")',
  'return {1, {2, "three"}, false}',
  'return redis.error_reply("OWN error")',
  'return redis.status_reply("FINE")',
  'this is not lua',
];

function scalar(random: Random, argument: DocumentedArgument): string {
  if (argument.name === 'timeout' || argument.token === 'BLOCK') {
    // Never long, never for ever: a reply is awaited.
    return argument.type === 'double' ? '0.01' : '10';
  }
  // A key that expires while it is looked at would be there for one server and gone for the other.
  if (/seconds/.test(argument.name)) return random.pick(['100000', '-1', '0', 'x']);
  switch (argument.type) {
    case 'key':
      return random.pick(KEYS);
    case 'integer':
      return random.chance(0.1) ? random.pick(ODD_INTEGERS) : random.pick(INTEGERS);
    case 'double':
      return random.pick(DOUBLES);
    case 'unix-time':
      return random.pick(['0', '1', '33177117420', '33177117420000', 'x']);
    case 'pattern':
      // In which order several patterns of a subscriber are served depends on the server's hash seed.
      return random.pick(argument.multiple ? ['*', 'nosuch', ''] : ['*', 'n*', '?', '[a-z]', 'nosuch', '']);
    default:
      return argument.name === 'script' ? random.pick(SCRIPTS) : random.pick(STRINGS);
  }
}

function append(random: Random, argument: DocumentedArgument, into: string[]): void {
  if (argument.optional && random.chance(0.6)) return;
  const times = argument.multiple ? 1 + random.below(3) : 1;
  for (let time = 0; time < times; time += 1) {
    if (argument.token !== undefined && (time === 0 || argument.multipleToken)) into.push(argument.token);
    if (argument.type === 'pure-token') continue;
    if (argument.type === 'oneof') append(random, { ...random.pick(argument.arguments), optional: false }, into);
    else if (argument.type === 'block') for (const part of argument.arguments) append(random, part, into);
    else into.push(scalar(random, argument));
  }
}

/** A whole request. About one in three has something wrong with it. */
export function generateRequest(random: Random, command: DocumentedCommand): string[] {
  const name = command.name.split('|');
  const args: string[] = [];
  for (const argument of command.arguments) append(random, argument, args);
  // numkeys that fit, most of the time.
  const numkeys = command.arguments.findIndex((argument) => argument.name === 'numkeys');
  if (numkeys >= 0 && random.chance(0.8)) {
    const keys = args.filter((arg, at) => at > numkeys && (KEYS as readonly string[]).includes(arg)).length;
    if (args[numkeys] !== undefined) args[numkeys] = String(Math.max(1, Math.min(keys, 2)));
  }
  const mishap = random.below(18);
  if (mishap === 0) args.pop();
  else if (mishap === 1) args.push(random.pick(STRINGS));
  else if (mishap === 2 && args.length > 0) args[random.below(args.length)] = random.pick(STRINGS);
  else if (mishap === 3 && args.length > 0) args.splice(random.below(args.length), 1);
  else if (mishap === 4) args.length = 0;
  else if (mishap === 5 && args.length > 1) args.reverse();
  // An ID of the server's own making would be its clock's.
  if (command.name === 'xadd') args.forEach((arg, at) => void (arg === '*' && (args[at] = '7-*')));
  const words = random.chance(0.2) ? name.map((word) => word.toUpperCase()) : name;
  return [...words, ...args];
}
