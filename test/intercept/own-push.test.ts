import { expect, test } from 'vitest';
import { isOwnPush } from '../../src/intercept/hide-own-keys.ts';
import { array, bulk } from '../../src/resp/encode.ts';

const push = (...items: Buffer[]) => array(items);

test.each([
  [push(bulk('invalidate'), array([bulk('holdfast:epoch')])), true],
  [push(bulk('invalidate'), array([bulk('holdfast:epoch'), bulk('mine')])), false],
  [push(bulk('invalidate'), array([bulk('mine')])), false],
  [push(bulk('invalidate'), Buffer.from('_\r\n')), false],
  [push(bulk('message'), bulk('__redis__:invalidate'), array([bulk('holdfast:epoch')])), true],
  [push(bulk('pmessage'), bulk('*'), bulk('__keyevent@0__:evicted'), bulk('holdfast:epoch')), true],
  [push(bulk('pmessage'), bulk('*'), bulk('__keyspace@0__:holdfast:epoch'), bulk('set')), true],
  [push(bulk('message'), bulk('__keyevent@0__:set'), bulk('mine')), false],
  [push(bulk('message'), bulk('news'), bulk('holdfast:epoch')), false],
])('a push %j tells of Holdfast only: %s', (frame, expected) => {
  expect(isOwnPush(frame)).toBe(expected);
});
