/** The faults of the matrix: each falls at one boundary of the protocol, and none by the clock. */
import type { BoundaryProxy, Gate, Link, Moment } from './boundary-proxy.ts';
import type { Message } from './frames.ts';
import type { Lane } from './lane.ts';
import type { Fault } from './matrix.ts';

export interface ArmedFault {
  /** Whether its moment has come. */
  readonly fell: boolean;
  /** No moment counts from now on; resolves when what it broke is up again, as far as it comes back. */
  settle(): Promise<void>;
}

const LATE_MS = 150;
/** How long a statement stands without its end. */
const HALF_SENT_MS = 50;
const SYNC_BYTES = 5;
const SYNC = 0x53;

/** Texts of the statements that a sidecar sends with nobody asking for anything. */
export class BackgroundStatements {
  readonly #texts = new Set<string>();

  get empty(): boolean {
    return this.#texts.size === 0;
  }

  learn(proxy: BoundaryProxy): () => void {
    return proxy.watch(({ words: [text] }) => {
      if (text !== undefined) this.#texts.add(text);
    });
  }

  has(message: Message): boolean {
    return message.words[0] === undefined || this.#texts.has(message.words[0]);
  }
}

export async function armFault(
  fault: Fault,
  lane: Lane,
  isCommand: (request: Message) => boolean,
  background: BackgroundStatements,
): Promise<ArmedFault> {
  const sidecar = lane.sidecars[0]!;
  const { kvProxy, ledgerProxy } = sidecar;
  let fell = false;
  let repaired: Promise<void> = Promise.resolve();
  const removals: (() => void)[] = [];

  /** `act` gives whether the message goes on. What it repairs goes on behind it. */
  function gate(proxy: BoundaryProxy, moment: Moment, matches: Gate['matches'], act: (link: Link) => Promise<boolean>) {
    removals.push(
      proxy.place({
        moment,
        matches,
        async act(link) {
          fell = true;
          return (await act(link)) ? 'pass' : 'drop';
        },
      }),
    );
  }
  const kvDies = async (): Promise<boolean> => {
    await lane.killKv();
    repaired = lane.kv.start();
    return false;
  };
  const sidecarDies = async (): Promise<boolean> => {
    sidecar.die();
    repaired = lane.replaceFirst();
    return false;
  };
  const cutLedger = async (): Promise<boolean> => {
    ledgerProxy.reset();
    return false;
  };
  const cutKv = async (link: Link): Promise<boolean> => {
    link.cut();
    return false;
  };
  /** The so-manieth statement that is nobody's background. */
  const statement = (wanted: number): Gate['matches'] => {
    let count = 0;
    return (request) => {
      if (background.has(request)) return false;
      count += 1;
      return count === wanted;
    };
  };
  const halfSent = async (link: Link): Promise<boolean> => {
    const { bytes } = link.request;
    const endsInSync = bytes[bytes.length - SYNC_BYTES] === SYNC && bytes.length > SYNC_BYTES;
    link.write(endsInSync ? bytes.subarray(0, bytes.length - SYNC_BYTES) : bytes);
    await new Promise((resolve) => setTimeout(resolve, HALF_SENT_MS));
    return cutLedger();
  };

  const [, target, moment, at] = /^(kv-dies|kv-cut|pg-cut|sidecar-dies)-(.+?)(?:-(\d))?$/.exec(fault) ?? [];
  const place = moment?.replace(/^(kv|pg)-/, '');
  if (target === 'kv-dies') gate(kvProxy, place as Moment, isCommand, kvDies);
  else if (fault === 'kv-cut-late') {
    gate(kvProxy, 'before', isCommand, async (link) => {
      link.deliverLate(link.request.bytes, LATE_MS);
      repaired = new Promise((resolve) => setTimeout(resolve, LATE_MS));
      return false;
    });
  } else if (target === 'kv-cut') gate(kvProxy, place as Moment, isCommand, cutKv);
  else if (target === 'pg-cut') {
    const act = place === 'during' ? halfSent : cutLedger;
    gate(ledgerProxy, place === 'after' ? 'ran' : 'before', statement(Number(at)), act);
  } else if (target === 'sidecar-dies') {
    if (moment!.startsWith('kv-')) gate(kvProxy, place as Moment, isCommand, sidecarDies);
    else gate(ledgerProxy, place === 'after' ? 'ran' : 'before', statement(Number(at)), sidecarDies);
  } else if (fault === 'pg-readonly') {
    await lane.setReadOnly(true);
    fell = true;
  }

  return {
    get fell() {
      return fell;
    },
    async settle() {
      for (const remove of removals) remove();
      if (fault === 'pg-readonly') await lane.setReadOnly(false);
      await repaired;
    },
  };
}
