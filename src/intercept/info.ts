/** INFO gains a `# Holdfast` section; all other sections are the KV store's own. */
import { text } from '../resp/encode.ts';
import { readReply } from '../resp/reply.ts';
import type { Interceptor } from './interceptor.ts';

/** Arguments of INFO with which a server gives more than the sections it is asked for. */
const WHOLE = new Set(['default', 'all', 'everything']);

/** `fields` gives the section's names and values at the moment of asking. */
export function infoInterceptor(fields: () => Readonly<Record<string, string | number>>): Interceptor {
  return {
    name: 'info',
    handles: (command) => command?.name === 'info',
    request(exchange) {
      const sections = exchange.args.slice(1).map((arg) => arg.toString('latin1').toLowerCase());
      const wanted = sections.length === 0 || sections.some((section) => section === 'holdfast' || WHOLE.has(section));
      if (!wanted) return;
      exchange.onReply((frame) => {
        const reply = readReply(frame);
        if (reply.type !== '$' && reply.type !== '=') return frame;
        const own = reply.bytes.toString('latin1').replace(/^txt:/, '');
        const lines = Object.entries(fields()).map(([name, value]) => `${name}:${value}\r\n`);
        const gap = own === '' ? '' : '\r\n';
        return text(exchange.session.protocol, `${own}${gap}# Holdfast\r\n${lines.join('')}`);
      });
    },
  };
}
