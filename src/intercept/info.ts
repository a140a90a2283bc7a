/** INFO gains a `# Holdfast` section; all other sections are the KV store's own. */

import type { Exchange, Interceptor } from '../interceptor.ts';
import { error, text } from '../resp/encode.ts';
import { readReply } from '../resp/reply.ts';

/** Arguments of INFO with which a server gives more than the sections it is asked for. */
const WHOLE = new Set(['default', 'all', 'everything']);

/**
 * `fields` gives the section's names and values at the moment of asking. While the KV store cannot be reached its own
 * sections are those that it gave the session's user last, with their age in Holdfast's.
 */
export function infoInterceptor(fields: () => Readonly<Record<string, string | number>>): Interceptor {
  function withOwnSection(exchange: Exchange, theirs: string, more: Readonly<Record<string, number>> = {}): Buffer {
    const lines = Object.entries({ ...fields(), ...more }).map(([name, value]) => `${name}:${value}\r\n`);
    const gap = theirs === '' ? '' : '\r\n';
    return text(exchange.session.protocol, `${theirs}${gap}# Holdfast\r\n${lines.join('')}`);
  }

  /** What is known without the KV store; nothing where it can be asked, or never told this user. */
  function remembered(exchange: Exchange, sections: readonly string[], wanted: boolean): Buffer | undefined {
    const last = exchange.session.lastInfo();
    if (last === undefined) return undefined;
    const theirs = sectionsOf(last.text, sections);
    if (!wanted) return text(exchange.session.protocol, theirs);
    return withOwnSection(exchange, theirs, { kv_info_age_seconds: Math.round((Date.now() - last.at) / 1000) });
  }

  return {
    name: 'info',
    handles: (command) => command?.name === 'info',
    request(exchange) {
      const sections = exchange.args.slice(1).map((arg) => arg.toString('latin1').toLowerCase());
      const wanted = sections.length === 0 || sections.some((section) => section === 'holdfast' || WHOLE.has(section));
      if (!exchange.queued) {
        const answer = remembered(exchange, sections, wanted);
        if (answer !== undefined) {
          exchange.respond(answer);
          return;
        }
        exchange.onLost((cause) => remembered(exchange, sections, wanted) ?? error(cause.toReplyText()));
      }
      if (!wanted) return;
      exchange.onReply((frame) => {
        const reply = readReply(frame);
        if (reply.type !== '$' && reply.type !== '=') return frame;
        const theirs = reply.bytes.toString('latin1', reply.type === '=' ? 4 : 0);
        if (sections.length === 0 && !exchange.queued) exchange.session.noteInfo(theirs);
        return withOwnSection(exchange, theirs);
      });
    },
  };
}

/** Of a whole INFO, the sections that are asked for; all for none. */
function sectionsOf(info: string, asked: readonly string[]): string {
  if (asked.length === 0 || asked.some((section) => WHOLE.has(section))) return info;
  return info
    .split(/\r\n(?=# )/)
    .filter((section) => asked.includes(/^# (\w+)/.exec(section)?.[1]?.toLowerCase() ?? ''))
    .join('\r\n');
}
