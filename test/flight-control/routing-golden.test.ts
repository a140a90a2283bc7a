import { expect, test } from 'vitest';
import { parseBody } from '../../src/flight-control/routing/parse-body.ts';
import { QUEUED_REASONS, routeEvent } from '../../src/flight-control/routing/route-event.ts';
import golden from '../golden/routing.json' with { type: 'json' };

interface Case {
  readonly id: string;
  readonly group: string;
  readonly name?: string;
  readonly body?: string;
  readonly expect?: string;
  readonly kind: string;
  readonly reason: string;
  readonly details: unknown;
  readonly annotations: unknown;
  readonly tasks: readonly string[];
  readonly goesToQueue: boolean;
}

const cases = golden.cases as unknown as Case[];
const ORG = '00000000-0000-0000-0000-000000000000';

test.each(cases.filter(({ body }) => body === undefined))('$id $kind $reason', (given) => {
  const { kind, reason, details, annotations } = given;
  const event = { metadata: { name: 'x', annotations }, involvedObject: { kind, name: 'n' }, reason, details };
  const body = parseBody(JSON.stringify({ orgId: ORG, event }));
  expect(routeEvent(body.event)).toEqual(given.tasks);
  expect(QUEUED_REASONS.has(reason)).toBe(given.goesToQueue);
});

test.each(cases.filter(({ body }) => body !== undefined))('$id $name', ({ body, expect: expected }) => {
  const generated = /^GENERATE: '(.*)' repeated (\d+) times$/.exec(body!);
  const text = generated === null ? body! : generated[1]!.repeat(Number(generated[2]));
  let tasks: string;
  try {
    tasks = routeEvent(parseBody(text).event).join(',');
  } catch {
    tasks = 'permanent failure';
  }
  if (tasks === 'permanent failure') expect(expected).toContain('permanent failure');
  else expect(tasks === '' ? 'no task' : tasks).toBe(expected!.startsWith('no task') ? 'no task' : expected);
});
