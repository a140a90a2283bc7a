import { describe, expect, test } from 'vitest';
import { acknowledge, add, concludeFrom, end, group, inOrder, Model, remove, replace, swap } from './model.ts';

const stage = inOrder(add('0/s', 'a'), group('0/s', 'g', '0'), add('0/s', 'b'));

function staged(): Model {
  const model = new Model();
  model.conclude('done', stage);
  return model;
}

function found(range: string[], given: string[] | string) {
  return [{ place: '0/s', range, groups: new Map([['g', given]]) }];
}

describe('what a client may conclude', () => {
  test('an acknowledged entry that does not come is lost', () => {
    expect(staged().violations(found(['b'], ['b']))).toEqual(['a of 0/s is lost for group g']);
    expect(staged().violations(found(['a', 'b'], ['a', 'b']))).toEqual([]);
  });

  test('an XADD without an answer may have been done or not', () => {
    const model = staged();
    model.conclude(concludeFrom(undefined), add('0/s', 'c'));
    expect(model.violations(found(['a', 'b'], ['a', 'b']))).toEqual([]);
    expect(model.violations(found(['a', 'b', 'c'], ['a', 'b', 'c']))).toEqual([]);
    expect(model.violations(found(['a', 'c'], ['a', 'c']))).toEqual(['b of 0/s is lost for group g']);
  });

  test('a command in doubt is done as a whole or not at all', () => {
    const model = staged();
    model.conclude('either', remove('0/s', ['a', 'b']));
    expect(model.violations(found([], []))).toEqual([]);
    expect(model.violations(found(['b'], ['b']))).toHaveLength(1);
  });

  test('a refusal and a no-op change nothing', () => {
    for (const reply of [0, null, new Error('NOPERM no'), new Error('KVDOWN nothing was deleted, try again')]) {
      const model = staged();
      model.conclude(concludeFrom(reply), end('0/s'));
      expect(model.violations(found([], 'NOGROUP'))).toEqual(['group g of 0/s: NOGROUP']);
    }
  });

  test('what was surely deleted does not come back, and no entry of another database comes', () => {
    const model = staged();
    model.conclude('done', remove('0/s', ['a']));
    expect(model.violations(found(['a', 'b'], ['b']))).toEqual(['a is in 0/s, where it should not be']);
    expect(model.violations(found(['b'], ['b', 'z']))).toEqual(['z came to group g of 0/s, and should not']);
  });

  test('what is acknowledged need not come, and may', () => {
    const model = staged();
    model.conclude('done', acknowledge('0/s', 'g', ['a']));
    expect(model.violations(found(['b'], ['b']))).toEqual([]);
    expect(model.violations(found(['a', 'b'], ['a', 'b']))).toEqual([]);
  });

  test('a stream without groups is to be there whole', () => {
    const model = new Model();
    model.conclude('done', add('0/s', 'a'));
    expect(model.violations(found([], []))).toEqual(['a of 0/s is lost']);
  });

  test('swapped databases change places', () => {
    const model = staged();
    model.conclude('done', swap(0, 3));
    expect(model.violations(found(['a', 'b'], ['a', 'b']))).not.toEqual([]);
    expect(model.violations([{ ...found(['a', 'b'], ['a', 'b'])[0]!, place: '3/s' }])).toEqual([]);
  });

  test('an XADD at rest succeeds, but where a key of another type is', () => {
    const model = staged();
    const tried = { place: '0/s', range: ['a', 'b'], added: 'RECOVERING wait' };
    expect(model.violations([tried])).toEqual(['XADD to 0/s at rest: RECOVERING wait']);
    model.conclude('done', replace('0/s'));
    expect(model.violations([{ place: '0/s', range: [], added: 'WRONGTYPE no' }])).toEqual([]);
  });
});
