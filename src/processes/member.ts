/**
 * One process of several behind one port. It learns its role from the primary, serves as a sidecar of its own (lanes,
 * ledger writer), asks the others about their clients through the primary, and answers for its own.
 */
import process from 'node:process';
import { messageOf } from '../errors.ts';
import type { PeerService, Peers } from '../proxy/session/peers.ts';
import type { Question, Role, ToMember, ToPrimary } from './messages.ts';

const CLIENTS_MS = 50;

export interface Member {
  readonly role: Role;
  /** For `startProxy`. */
  peers(service: PeerService): Peers;
  /** How the rest of what the primary asks is answered. */
  answerWith(answers: { status(): Promise<unknown>; readiness(): Promise<unknown>; reload(): Promise<unknown> }): void;
  /** Has the other processes reload; gives what each says, of those that answer. */
  reloadOthers(): Promise<readonly (readonly string[])[]>;
  ready(listen: readonly string[]): void;
  failed(message: string): void;
  /** Resolves when the primary wants this process to end. */
  readonly stopRequested: Promise<void>;
}

/** Waits for the role. Only in a process that node:cluster forked. */
export async function joinPrimary(): Promise<Member> {
  let service: PeerService | undefined;
  let answers: Parameters<Member['answerWith']>[0] | undefined;
  let clientsElsewhere = 0;
  let told = 0;
  let nextId = 1;
  const asked = new Map<number, (values: readonly unknown[]) => void>();
  let takeRole: (role: Role) => void = () => undefined;
  let requestStop: () => void = () => undefined;
  const roleGiven = new Promise<Role>((resolve) => {
    takeRole = resolve;
  });
  const stopRequested = new Promise<void>((resolve) => {
    requestStop = resolve;
  });
  const send = (message: ToPrimary): void => void process.send?.(message);

  async function answer(question: Question): Promise<unknown> {
    switch (question.kind) {
      case 'list':
        return service?.list(question.query) ?? [];
      case 'kill':
        return service?.kill(question.query) ?? 0;
      case 'lane':
        return service?.laneOf(question.clientId, question.pin, question.scope) ?? 0;
      case 'reload':
        return answers?.reload().catch((thrown) => [`failed: ${messageOf(thrown)}`]);
      case 'status':
        return answers?.status();
      case 'readiness':
        return answers?.readiness();
    }
  }

  process.on('message', (message: ToMember) => {
    switch (message.kind) {
      case 'role':
        takeRole(message);
        return;
      case 'question':
        answer(message.question).then(
          (value) => send({ kind: 'answer', id: message.id, value }),
          () => send({ kind: 'answer', id: message.id, value: undefined }),
        );
        return;
      case 'answers':
        asked.get(message.id)?.(message.values);
        asked.delete(message.id);
        return;
      case 'clients-elsewhere':
        clientsElsewhere = message.count;
        return;
      case 'stop':
        requestStop();
    }
  });

  function ask<T>(question: Question): Promise<T[]> {
    const id = nextId;
    nextId += 1;
    return new Promise((resolve) => {
      asked.set(id, (values) => resolve(values.filter((value) => value !== undefined && value !== null) as T[]));
      send({ kind: 'ask', id, question });
    });
  }

  send({ kind: 'join' });
  const given = await roleGiven;
  return {
    role: given,
    peers(own) {
      service = own;
      const timer = setInterval(() => {
        const count = own.clients();
        if (count !== told) send({ kind: 'clients', count });
        told = count;
      }, CLIENTS_MS);
      timer.unref();
      return {
        index: given.index,
        count: given.count,
        get clientsElsewhere() {
          return clientsElsewhere;
        },
        list: (query) => ask<string[]>({ kind: 'list', query }),
        kill: (query) => ask<number>({ kind: 'kill', query }),
        laneOf: async (clientId, pin, scope) =>
          Math.max(0, ...(await ask<number>({ kind: 'lane', clientId, pin, scope }))),
      };
    },
    answerWith(given) {
      answers = given;
    },
    reloadOthers: () => ask<string[]>({ kind: 'reload' }),
    ready: (listen) => send({ kind: 'ready', listen }),
    failed: (message) => send({ kind: 'failed', message }),
    stopRequested,
  };
}
