/** Which streams are ledgered: a list of globs over key names, `!` excludes; the last one that matches decides. */

/** Glob of the servers (`* ? [a-z] [^x] \x`) as a regular expression over latin1 text. */
function globExpression(glob: string): RegExp {
  let source = '';
  for (let at = 0; at < glob.length; at += 1) {
    const character = glob[at]!;
    if (character === '*') source += '[^]*';
    else if (character === '?') source += '[^]';
    else if (character === '[') {
      const end = glob.indexOf(']', at + 1);
      if (end < 0) source += '\\[';
      else {
        const inside = glob.slice(at + 1, end).replace(/[\\\]]/g, '\\$&');
        source += inside.startsWith('^') ? `[^${inside.slice(1)}]` : `[${inside}]`;
        at = end;
      }
    } else if (character === '\\' && at + 1 < glob.length) {
      at += 1;
      source += glob[at]!.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&');
    } else source += character.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&');
  }
  return new RegExp(`^${source}$`);
}

export type StreamFilter = (name: Buffer) => boolean;

const REMEMBERED_MAX = 10_000;

/** `patterns` as in the setting `ledger.streams`, e.g. `['*', '!log:*']`. */
export function streamFilter(patterns: readonly string[]): StreamFilter {
  const rules = patterns.map((pattern) => {
    const excludes = pattern.startsWith('!');
    const glob = Buffer.from(excludes ? pattern.slice(1) : pattern).toString('latin1');
    return { includes: !excludes, expression: globExpression(glob) };
  });
  const remembered = new Map<string, boolean>();
  return (name) => {
    const text = name.toString('latin1');
    const known = remembered.get(text);
    if (known !== undefined) return known;
    let answer = false;
    for (const rule of rules) if (rule.expression.test(text)) answer = rule.includes;
    if (remembered.size >= REMEMBERED_MAX) remembered.clear();
    remembered.set(text, answer);
    return answer;
  };
}
