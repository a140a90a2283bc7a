import { expect, test } from 'vitest';
import { commandTable } from '../../src/command/table.ts';
import { caseNamed, FAULTS, FORMS, idOf, matrixOf, SENDERS, STATES } from './matrix.ts';
import { SUBJECTS, WITHOUT_KEYS } from './subjects.ts';

test('no command of the table that may write to a stream is missing', () => {
  const subjects = new Set(SUBJECTS.map(({ command }) => command));
  const missing = commandTable()
    .entries.filter(({ flags }) => flags.has('write'))
    .concat(['eval', 'evalsha', 'fcall', 'flushdb', 'flushall'].map((name) => commandTable().lookup(name)!))
    .filter(({ name }) => !subjects.has(name) && !WITHOUT_KEYS.has(name));
  expect(missing.map(({ name }) => name)).toEqual([]);
  for (const name of [...subjects, ...WITHOUT_KEYS]) expect(commandTable().lookup(name), name).toBeDefined();
});

test('subjects have names of their own', () => {
  expect(new Set(SUBJECTS.map(({ name }) => name)).size).toBe(SUBJECTS.length);
});

test('a command meets every two values of two axes, in the same cases each time', () => {
  const [xdel] = SUBJECTS.filter(({ name }) => name === 'xdel');
  const cases = matrixOf([xdel!]);
  expect(matrixOf([xdel!]).map(idOf)).toEqual(cases.map(idOf));
  const has = (part: object) =>
    cases.some((one) => Object.entries(part).every(([axis, value]) => one[axis as 'state'] === value));
  for (const fault of FAULTS) {
    for (const state of STATES) expect(has({ fault, state }), `${fault} ${state}`).toBe(true);
    for (const form of FORMS) expect(has({ fault, form }), `${fault} ${form}`).toBe(true);
    for (const sender of SENDERS) expect(has({ fault, sender }), `${fault} ${sender}`).toBe(true);
    for (const sidecars of [1, 2]) expect(has({ fault, sidecars }), `${fault} ${sidecars}`).toBe(true);
  }
  expect(caseNamed(idOf(cases[0]!))).toEqual(cases[0]);
});
