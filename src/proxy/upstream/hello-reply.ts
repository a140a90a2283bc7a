/** What a server says of itself in its reply to HELLO. */
import { EMPTY_ARRAY } from '../../resp/encode.ts';
import { readReply, replyValue } from '../../resp/reply.ts';

export interface HelloReply {
  readonly server: string;
  readonly version: string;
  readonly mode: string;
  readonly role: string;
  /** The list of modules, as the frame it came in. */
  readonly modules: Buffer;
  /** The connection's, as the server counts them. */
  readonly clientId: number;
}

/** `undefined` for an error. */
export function readHelloReply(frame: Buffer): HelloReply | undefined {
  const { items } = readReply(frame);
  if (items === undefined) return undefined;
  const flat = items.map((item) => (item.items === undefined ? String(replyValue(item)) : ''));
  const facts = new Map<string, string>();
  for (let i = 0; i + 1 < flat.length; i += 2) facts.set(flat[i]!, flat[i + 1]!);
  return {
    server: facts.get('server') ?? 'redis',
    version: facts.get('version') ?? '',
    mode: facts.get('mode') ?? 'standalone',
    role: facts.get('role') ?? 'master',
    modules: Buffer.from(items[flat.indexOf('modules') + 1]?.raw ?? EMPTY_ARRAY),
    clientId: Number(facts.get('id') ?? 0),
  };
}
