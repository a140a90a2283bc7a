import { expect, test } from 'vitest';
import type { JsonValue } from '../../src/flight-control/manifest/json-value.ts';
import { type Labels, selects } from '../../src/flight-control/selector/label-selector.ts';
import { type MatchedDevice, matchDevice } from '../../src/flight-control/selector/match-device.ts';
import golden from '../golden/selector.json' with { type: 'json' };

interface Case {
  readonly id: string;
  readonly group: string;
  readonly note?: string;
  readonly device?: MatchedDevice;
  readonly fleets: Record<string, JsonValue>;
  readonly expect: unknown;
  readonly labels: Labels;
  readonly selector: JsonValue;
  readonly selects: boolean;
}

const cases = golden.cases as unknown as Case[];

test.each(cases.filter(({ device }) => device !== undefined))('$id $group $note', ({ device, fleets, ...given }) => {
  const decision = matchDevice(device!, Object.entries(fleets));
  expect(decision).toEqual(given.expect);
  // Once more on what it led to: nothing is left to do.
  const { multipleOwners } = decision;
  const message = multipleOwners === 'unchanged' ? device!.multipleOwnersMessage : multipleOwners.message;
  const again = matchDevice(
    { ...device!, owner: decision.owner, multipleOwnersMessage: message },
    Object.entries(fleets),
  );
  expect(again).toMatchObject({ owner: decision.owner, multipleOwners: 'unchanged', events: [] });
});

test.each(cases.filter(({ device }) => device === undefined))(
  '$id $group $note',
  ({ selector, labels, selects: expected }) => {
    expect(selects(selector, labels)).toBe(expected);
  },
);
