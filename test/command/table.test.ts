import { describe, expect, it } from 'vitest';
import type { CommandDescription } from '../../src/command/command.ts';
import { keyPlaces, readCommandReply } from '../../src/command/read-command-reply.ts';
import { commandTable } from '../../src/command/table.ts';
import { connectRaw } from '../support/raw-client.ts';
import { kvKinds, startKv } from '../support/servers.ts';

const table = commandTable();

function lookup(name: string) {
  const buffer = Buffer.from(`<${name}>`);
  return table.lookupBytes(buffer, 1, buffer.length - 1);
}

describe('the command table', () => {
  it('finds every command by its bytes, in any letter case', () => {
    const commands = table.entries.filter((entry) => entry.container === undefined);
    expect(commands.length).toBeGreaterThan(240);
    for (const entry of commands) {
      expect(lookup(entry.name)).toBe(entry);
      expect(lookup(entry.name.toUpperCase())).toBe(entry);
      expect(lookup(entry.name[0]!.toUpperCase() + entry.name.slice(1))).toBe(entry);
      expect(table.entries[entry.index]).toBe(entry);
    }
  });

  it('finds every subcommand by its bytes below its container, and not as a command', () => {
    let found = 0;
    for (const entry of table.entries) {
      if (entry.container === undefined) continue;
      const name = Buffer.from(entry.name.slice(entry.container.name.length + 1).toUpperCase());
      expect(table.subcommand(entry.container, name, 0, name.length)).toBe(entry);
      expect(table.lookup(entry.name.toUpperCase())).toBe(entry);
      expect(lookup(entry.name)).toBeUndefined();
      found += 1;
    }
    expect(found).toBeGreaterThan(100);
  });

  it('knows nothing that is not a command', () => {
    for (const name of ['', 'ge', 'gett', 'set ', 's\0t', 'GE\xd4', 'xgroup|create', '[et', 'x'.repeat(100_000)]) {
      expect(lookup(name)).toBeUndefined();
    }
    const get = table.lookup('get')!;
    expect(table.subcommand(get, Buffer.from('get'), 0, 3)).toBeUndefined();
  });

  it("marks Holdfast's own commands", () => {
    expect(lookup('getorset')?.own).toBe(true);
    expect(table.lookup('holdfast|scope')?.own).toBe(true);
    expect(lookup('get')?.own).toBe(false);
    expect(
      table.entries
        .filter((entry) => entry.own)
        .every((entry) => entry.servers.length === 0 && entry.name.match(/^(getorset|holdfast)/)),
    ).toBe(true);
  });
});

describe.each(kvKinds)('compared with the installed %s', (name) => {
  it('has every command and subcommand of the server, with its keys in the same places', {
    timeout: 20_000,
  }, async () => {
    const server = await startKv(name);
    const client = await connectRaw(server.port);
    const described = readCommandReply(await client.send('COMMAND'), name);
    await client.close();
    const check = (description: CommandDescription): void => {
      const entry = table.lookup(description.name);
      expect(entry, `${description.name} is missing: run npm run generate:commands`).toBeDefined();
      expect(keyPlaces({ ...description, keySpecs: entry!.keySpecs })).toBe(keyPlaces(description));
      expect(entry!.servers).toContain(name);
      for (const flag of description.flags) expect(entry!.flags).toContain(flag);
      description.subcommands.forEach(check);
    };
    described.forEach(check);
    expect(described.length).toBeGreaterThan(200);
  });
});
