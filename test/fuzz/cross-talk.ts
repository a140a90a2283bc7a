/**
 * Many clients at once, each with random commands, states and disconnects, each verifying that every reply is its own:
 * whatever a reply could tell of another client would fail here. Everything a client writes or asks carries its token.
 */

import { request } from '../../src/resp/encode.ts';
import type { Reply } from '../../src/resp/reply.ts';
import { errorText, replyValue } from '../../src/resp/reply.ts';
import { connectRaw, type RawClient } from '../support/raw-client.ts';
import { type Random, seededRandom } from './random.ts';

export interface CrossTalkOptions {
  readonly port: number;
  readonly clients: number;
  readonly seconds: number;
  readonly seed: number;
}

export interface CrossTalkReport {
  readonly actions: number;
  readonly connections: number;
  /** Replies that were not what this client alone could expect. */
  readonly violations: readonly string[];
}

interface Turn {
  readonly random: Random;
  readonly port: number;
  readonly prefix: string;
  readonly client: RawClient;
  readonly protocol: 2 | 3;
  /** Different each time: `client number : count`. */
  token(): string;
}

class Violation extends Error {}

function expectEqual(what: string, reply: Reply, expected: unknown): void {
  const got = replyValue(reply);
  if (JSON.stringify(got) === JSON.stringify(expected)) return;
  throw new Violation(`${what}: expected ${JSON.stringify(expected)}, got ${JSON.stringify(got)?.slice(0, 300)}`);
}

async function withHelper<Result>(turn: Turn, work: (helper: RawClient) => Promise<Result>): Promise<Result> {
  const helper = await connectRaw(turn.port);
  try {
    return await work(helper);
  } finally {
    helper.socket.destroy();
  }
}

type Action = (turn: Turn) => Promise<void>;

const ACTIONS: Readonly<Record<string, Action>> = {
  async echo({ client, token }) {
    const text = token();
    expectEqual('ECHO', await client.send('ECHO', text), text);
  },
  async pipeline({ client, token, random }) {
    const texts = Array.from({ length: 1 + random.below(40) }, token);
    const replies = await Promise.all(texts.map((text) => client.send('ECHO', text)));
    for (const [index, reply] of replies.entries()) expectEqual('pipelined ECHO', reply, texts[index]);
  },
  async ownKey({ client, prefix, token }) {
    const text = token();
    expectEqual('SET', await client.send('SET', `${prefix}key`, text), 'OK');
    expectEqual('GET', await client.send('GET', `${prefix}key`), text);
  },
  async counter({ client, prefix }) {
    const before = Number(replyValue(await client.send('GET', `${prefix}counter`)) ?? 0);
    expectEqual('INCR', await client.send('INCR', `${prefix}counter`), before + 1);
  },
  async transaction({ client, prefix, token }) {
    const text = token();
    expectEqual('MULTI', await client.send('MULTI'), 'OK');
    expectEqual('queueing', await client.send('SET', `${prefix}key`, text), 'QUEUED');
    expectEqual('queueing', await client.send('GET', `${prefix}key`), 'QUEUED');
    expectEqual('queueing', await client.send('ECHO', text), 'QUEUED');
    expectEqual('EXEC', await client.send('EXEC'), ['OK', text, text]);
  },
  async discarded({ client, prefix, token }) {
    const text = token();
    await client.send('SET', `${prefix}kept`, text);
    await client.send('MULTI');
    await client.send('SET', `${prefix}kept`, 'never');
    expectEqual('DISCARD', await client.send('DISCARD'), 'OK');
    expectEqual('GET after DISCARD', await client.send('GET', `${prefix}kept`), text);
  },
  async watched(turn) {
    const { client, prefix, token } = turn;
    expectEqual('WATCH', await client.send('WATCH', `${prefix}watched`), 'OK');
    const touched = turn.random.chance(0.5);
    if (touched) await withHelper(turn, (helper) => helper.send('SET', `${prefix}watched`, token()));
    await client.send('MULTI');
    const text = token();
    await client.send('ECHO', text);
    expectEqual('EXEC after WATCH', await client.send('EXEC'), touched ? null : [text]);
  },
  async blocked(turn) {
    const { client, prefix, token } = turn;
    const text = token();
    const key = `${prefix}list:${text}`;
    const [popped] = await Promise.all([
      client.send('BLPOP', key, '4'),
      withHelper(turn, (helper) => helper.send('RPUSH', key, text)),
    ]);
    expectEqual('BLPOP', popped, [key, text]);
  },
  async stream(turn) {
    const { client, prefix, token } = turn;
    const text = token();
    const key = `${prefix}stream`;
    await client.send('XGROUP', 'CREATE', key, 'group', '$', 'MKSTREAM');
    await client.send('XGROUP', 'SETID', key, 'group', '$');
    const [read, id] = await Promise.all([
      client.send('XREADGROUP', 'GROUP', 'group', 'me', 'BLOCK', '4000', 'STREAMS', key, '>'),
      withHelper(turn, (helper) => helper.send('XADD', key, 'MAXLEN', '10', '*', 'field', text)),
    ]);
    const entry = [id.bytes.toString(), ['field', text]];
    expectEqual('XREADGROUP', read, turn.protocol === 3 ? [key, [entry]] : [[key, [entry]]]);
    expectEqual('XACK', await client.send('XACK', key, 'group', id.bytes), 1);
  },
  async subscribed(turn) {
    const { client, prefix, token, protocol } = turn;
    const channel = `${prefix}channel`;
    const text = token();
    const nextMessage = async () => {
      if (protocol === 2) return client.next();
      const deadline = performance.now() + 4000;
      while (client.pushes.length === 0 && performance.now() < deadline) {
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
      const push = client.pushes.shift();
      if (push === undefined) throw new Violation('no push arrived');
      return push;
    };
    client.socket.write(request(['SUBSCRIBE', channel]));
    expectEqual('SUBSCRIBE', await nextMessage(), ['subscribe', channel, 1]);
    await withHelper(turn, (helper) => helper.send('PUBLISH', channel, text));
    expectEqual('message', await nextMessage(), ['message', channel, text]);
    client.socket.write(request(['UNSUBSCRIBE', channel]));
    expectEqual('UNSUBSCRIBE', await nextMessage(), ['unsubscribe', channel, 0]);
  },
  async otherDatabase({ client, prefix, token, random }) {
    const text = token();
    const database = String(1 + random.below(5));
    expectEqual('SELECT', await client.send('SELECT', database), 'OK');
    await client.send('SET', `${prefix}there`, text);
    expectEqual('GET in another database', await client.send('GET', `${prefix}there`), text);
    await client.send('SELECT', '0');
    expectEqual('GET in database 0', await client.send('GET', `${prefix}there`), null);
  },
  async name({ client, token }) {
    const text = token();
    expectEqual('CLIENT SETNAME', await client.send('CLIENT', 'SETNAME', text), 'OK');
    expectEqual('CLIENT GETNAME', await client.send('CLIENT', 'GETNAME'), text);
  },
  async large({ client, prefix, token, random }) {
    const text = `${token()} `.repeat(1 + random.below(8000));
    await client.send('SET', `${prefix}large`, text);
    const reply = await client.send('GET', `${prefix}large`);
    if (reply.bytes.toString() !== text) throw new Violation('a large value came back changed');
  },
  async script({ client, token }) {
    const text = token();
    expectEqual('EVAL', await client.send('EVAL', 'return {ARGV[1], KEYS[1]}', '1', text, text), [text, text]);
  },
  async refused({ client, token }) {
    const text = `NOSUCH-${token()}`;
    const message = errorText(await client.send(text));
    if (message === undefined || !message.includes(text)) throw new Violation(`error for ${text}: ${message}`);
  },
  async skipped({ client, token }) {
    const text = token();
    client.socket.write(Buffer.concat([request(['CLIENT', 'REPLY', 'SKIP']), request(['ECHO', 'never seen'])]));
    expectEqual('ECHO after SKIP', await client.send('ECHO', text), text);
  },
  async sameId({ client }) {
    const first = replyValue(await client.send('CLIENT', 'ID'));
    expectEqual('CLIENT ID', await client.send('CLIENT', 'ID'), first);
  },
};

/** Ways to leave, most of them rude. */
const DEPARTURES: readonly ((turn: Turn) => void)[] = [
  ({ client }) => client.socket.end(),
  ({ client }) => client.socket.destroy(),
  ({ client }) => client.socket.resetAndDestroy(),
  ({ client, token }) => leave(client, [['MULTI'], ['ECHO', token()]]),
  ({ client, prefix }) => leave(client, [['BLPOP', `${prefix}nothing`, '0']]),
  ({ client, prefix }) => leave(client, [['SUBSCRIBE', `${prefix}gone`]]),
  ({ client, prefix }) => leave(client, [['WATCH', `${prefix}gone`]]),
  ({ client, prefix }) =>
    leave(
      client,
      Array.from({ length: 30 }, () => ['GET', `${prefix}large`]),
    ),
  ({ client, token }) =>
    leave(client, [
      ['CLIENT', 'REPLY', 'OFF'],
      ['ECHO', token()],
    ]),
  ({ client, token }) => {
    const bytes = request(['ECHO', token()]);
    client.socket.write(bytes.subarray(0, bytes.length >> 1), () => client.socket.destroy());
  },
];

function leave(client: RawClient, requests: readonly (readonly string[])[]): void {
  client.socket.write(Buffer.concat(requests.map((args) => request(args))), () => client.socket.destroy());
}

/** Runs for `seconds` and gives what was seen; a broken connection nobody asked for is a violation too. */
export async function runCrossTalk(options: CrossTalkOptions): Promise<CrossTalkReport> {
  const deadline = performance.now() + options.seconds * 1000;
  const violations: string[] = [];
  let actions = 0;
  let connections = 0;

  const life = async (number: number) => {
    const random = seededRandom(options.seed * 1000 + number);
    const prefix = `crosstalk:${number}:`;
    let count = 0;
    const token = () => {
      count += 1;
      return `client${number}:${count}`;
    };
    while (performance.now() < deadline && violations.length < 20) {
      let doing = 'connect';
      try {
        const client = await connectRaw(options.port);
        connections += 1;
        const protocol = random.chance(0.4) ? 3 : 2;
        const turn: Turn = { random, port: options.port, prefix, client, protocol, token };
        if (protocol === 3) await client.send('HELLO', '3');
        const length = random.below(25);
        for (let step = 0; step < length && performance.now() < deadline; step += 1) {
          doing = random.pick(Object.keys(ACTIONS));
          await ACTIONS[doing]!(turn);
          actions += 1;
        }
        random.pick(DEPARTURES)(turn);
      } catch (error) {
        violations.push(`client ${number}, ${doing}: ${error instanceof Error ? error.message : String(error)}`);
        return;
      }
    }
  };
  await Promise.all(Array.from({ length: options.clients }, (_, number) => life(number)));
  return { actions, connections, violations };
}
