import { describe, expect, it } from 'vitest';
import { commandTable } from '../../src/command/table.ts';
import { type ReplyValue, replyValue } from '../../src/resp/reply.ts';
import { findNames } from '../../src/scope/find-names.ts';
import { describeRule, isUnknownToScopes, prefixedKeys, scopeRule } from '../../src/scope/rules.ts';
import { connectRaw } from '../support/raw-client.ts';
import { kvKinds, startKv } from '../support/servers.ts';

const { entries, lookup } = commandTable();

function found(command: string, ...args: string[]): string[] {
  const request = [command, ...args].map((arg) => Buffer.from(arg));
  const names: string[] = [];
  findNames(scopeRule(lookup(command)), request, (at, role) => names.push(`${role} ${request[at]}`));
  return names;
}

describe('the scope table', () => {
  it('has a rule for every command, none for want of knowledge', () => {
    expect(entries.filter(isUnknownToScopes).map((entry) => entry.name)).toEqual([]);
    for (const entry of entries) expect(describeRule(scopeRule(entry)).length).toBeGreaterThan(3);
  });

  it('refuses what no server of the table has', () => {
    expect(scopeRule(undefined).kind).toBe('refused');
  });

  it('lets no command on the fast path whose replies or errors name keys', () => {
    for (const name of [
      'blpop',
      'lmpop',
      'xread',
      'xreadgroup',
      'xpending',
      'keys',
      'scan',
      'eval',
      'sort',
      'zunion',
    ]) {
      expect(prefixedKeys(lookup(name)!), name).toBeUndefined();
    }
    expect(prefixedKeys(lookup('mset')!)).toEqual({ first: 1, last: -1, step: 2 });
    expect(prefixedKeys(lookup('rename')!)).toEqual({ first: 1, last: 2, step: 1 });
    expect(prefixedKeys(lookup('bitop')!)).toEqual({ first: 2, last: -1, step: 1 });
  });

  it('finds names where the servers look for them', () => {
    expect(found('SORT', 'k', 'BY', 'STORE', 'GET', 'BY', 'STORE', 'LIMIT', 'DESC')).toEqual([
      'key k',
      'sort-pattern STORE',
      'sort-pattern BY',
      'key LIMIT',
    ]);
    expect(found('GEORADIUS', 'k', '1', '2', '3', 'm', 'COUNT', '1', 'STORE', 'STORE', 'STOREDIST', 'd')).toEqual([
      'key k',
      'key STORE',
      'key d',
    ]);
    expect(found('GEORADIUSBYMEMBER', 'k', 'STORE', '3', 'm', 'STORE', 'd')).toEqual(['key k', 'key d']);
    expect(found('XREADGROUP', 'COUNT', '1', 'GROUP', 'STREAMS', 'STREAMS', 'STREAMS', 'a', 'b', '>', '>')).toEqual([
      'key a',
      'key b',
    ]);
    expect(found('MIGRATE', 'h', '1', '', '0', '1', 'AUTH2', 'KEYS', 'keys', 'KEYS', 'a', 'b')).toEqual([
      'key a',
      'key b',
    ]);
    expect(found('MIGRATE', 'h', '1', 'k', '0', '1', 'COPY')).toEqual(['key k']);
    expect(found('ZUNIONSTORE', 'd', '2', 'a', 'b', 'WEIGHTS', '1', '2')).toEqual(['key d', 'key a', 'key b']);
  });

  it('takes everything for a key that it cannot read', () => {
    expect(found('XREAD', 'NEWOPTION', 'STREAMS', 'k', '0')).toHaveLength(4);
    expect(found('XREAD', 'STREAMS', 'a', 'b', '0')).toHaveLength(3);
    expect(found('SORT', 'k', 'NEWOPTION', 'x')).toHaveLength(3);
    expect(found('GEORADIUS', 'k', '1', '2', '3', 'm', 'INTO', 'x')).toHaveLength(3);
    expect(found('ZUNION', '1a', 'k', 'l')).toEqual(['key k', 'key l']);
    expect(found('LMPOP', '3', 'k', 'LEFT')).toEqual(['key k', 'key LEFT']);
    expect(found('MIGRATE', 'h', '1', '', '0', '1', 'KEYS')).toEqual(['key ', 'key KEYS']);
    expect(found('MIGRATE', 'h', '1', 'k', '0', '1', 'KEYS', 'x')).toEqual(['key k', 'key KEYS', 'key x']);
  });
});

/** Argument types of COMMAND DOCS, any depth. */
function argumentTypes(docs: ReplyValue): string[] {
  if (!Array.isArray(docs)) return [];
  const types: string[] = [];
  docs.forEach((value, at) => {
    if (value === 'type' && typeof docs[at + 1] === 'string') types.push(String(docs[at + 1]));
    types.push(...argumentTypes(value));
  });
  return types;
}

describe.each(kvKinds)('against what the installed %s says of itself', (kind) => {
  it('knows every command that has keys or patterns among its arguments', async () => {
    const kv = await startKv(kind);
    const client = await connectRaw(kv.port);
    const docs = replyValue(await client.send('COMMAND', 'DOCS')) as ReplyValue[];
    await client.close();
    let keyed = 0;
    const check = (name: string, doc: ReplyValue[]): void => {
      const at = doc.indexOf('subcommands');
      if (at >= 0) {
        const subcommands = doc[at + 1] as ReplyValue[];
        for (let i = 0; i + 1 < subcommands.length; i += 2)
          check(String(subcommands[i]), subcommands[i + 1] as ReplyValue[]);
        return;
      }
      const types = argumentTypes(doc[doc.indexOf('arguments') + 1]!);
      // COMMAND LIST has patterns of command names.
      if (name === 'command|list' || (!types.includes('key') && !types.includes('pattern'))) return;
      const entry = lookup(name);
      expect(entry, `${name} is missing: run npm run generate:commands`).toBeDefined();
      const rule = scopeRule(entry);
      // A pattern of CONFIG GET and its kind: refused; of the elements of one key: its key is prefixed.
      expect(rule.kind, `${name} has keys or patterns`).not.toBe('plain');
      keyed += 1;
    };
    for (let i = 0; i + 1 < docs.length; i += 2) check(String(docs[i]), docs[i + 1] as ReplyValue[]);
    expect(keyed).toBeGreaterThan(180);
  });
});
