import { afterAll, beforeAll, expect, test } from 'vitest';
import { replyValue } from '../../src/resp/reply.ts';
import { startTwins, type Twins } from '../fuzz/twins.ts';
import { connectRaw } from '../support/raw-client.ts';

let twins: Twins;

beforeAll(async () => {
  twins = await startTwins({ server: 'redis-server', front: 'holdfast', pooling: 'transaction' });
});

afterAll(async () => {
  await twins.stop();
});

test('a stream that its own transaction replaces with a list answers as the server does', async () => {
  const [direct, through] = await Promise.all([connectRaw(twins.directPort), connectRaw(twins.throughPort)]);
  const transaction = async (client: typeof direct) => {
    await client.send('MULTI');
    await client.send('XADD', 'replaced', '1-1', 'field', 'value');
    await client.send('DEL', 'replaced');
    await client.send('LPUSH', 'replaced', 'a', 'b');
    const replies = replyValue(await client.send('EXEC'));
    const after = [await client.send('TYPE', 'replaced'), await client.send('XADD', 'replaced', '*', 'f', 'v')];
    return [replies, ...after.map(replyValue)];
  };
  expect(await transaction(through)).toEqual(await transaction(direct));
  await Promise.all([direct.close(), through.close()]);
});

test('a client that reads by group from a stream that is deleted hears so', async () => {
  const deleted = async (port: number) => {
    const [reader, other] = await Promise.all([connectRaw(port), connectRaw(port)]);
    await other.send('XADD', 'deleted', '666', 'f', 'v');
    await other.send('XGROUP', 'CREATE', 'deleted', 'group', '$');
    const read = reader.send('XREADGROUP', 'GROUP', 'group', 'me', 'BLOCK', '0', 'STREAMS', 'deleted', '>');
    await new Promise((resolve) => setTimeout(resolve, 200));
    const [reply] = await Promise.all([read, other.send('DEL', 'deleted')]);
    await Promise.all([reader.close(), other.close()]);
    return reply.raw.toString();
  };
  expect(await deleted(twins.throughPort)).toBe(await deleted(twins.directPort));
});

test('a group that is destroyed under its reader counts as one error in INFO', async () => {
  const errors = async (port: number) => {
    const [reader, other] = await Promise.all([connectRaw(port), connectRaw(port)]);
    await other.send('CONFIG', 'RESETSTAT');
    await other.send('XGROUP', 'CREATE', 'destroyed', 'group', '$', 'MKSTREAM');
    const read = reader.send('XREADGROUP', 'GROUP', 'group', 'me', 'BLOCK', '0', 'STREAMS', 'destroyed', '>');
    await new Promise((resolve) => setTimeout(resolve, 200));
    const [reply] = await Promise.all([read, other.send('XGROUP', 'DESTROY', 'destroyed', 'group')]);
    const info = replyValue(await other.send('INFO', 'errorstats'));
    await Promise.all([reader.close(), other.close()]);
    return [reply.raw.toString(), /errorstat_NOGROUP:count=\d+/.exec(String(info))?.[0]];
  };
  const direct = await errors(twins.directPort);
  expect(direct[1]).toBe('errorstat_NOGROUP:count=1');
  expect(await errors(twins.throughPort)).toEqual(direct);
});
