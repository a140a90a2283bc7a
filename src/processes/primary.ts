/**
 * The process that holds the port and the embedded servers of a sidecar with several processes. It starts the members,
 * starts one again that died, passes questions between them, and serves no client itself.
 *
 *   forked ──role──▶ starting ──ready──▶ serving ──died──▶ forked again, after RESTART_MS
 *                        └── failed: the whole sidecar does not start
 */
import cluster, { type Worker } from 'node:cluster';
import type { Logger } from 'pino';
import { HoldfastError } from '../errors.ts';
import type { Question, Role, ToMember, ToPrimary } from './messages.ts';

export interface PrimaryOptions {
  readonly count: number;
  readonly kvSocket: Role['kvSocket'];
  readonly databaseUrl: string | undefined;
  readonly log: Logger;
}

export interface Primary {
  /** Where clients connect. */
  readonly listen: readonly string[];
  /** Asks every member; those that are gone or do not answer within a second are missing. */
  ask(question: Question): Promise<unknown[]>;
  readonly restarts: number;
  /** Lets the members finish what is in flight, and ends them. */
  stop(): Promise<void>;
}

const ANSWER_MS = 1_000;
const RESTART_MS = 500;
const STOP_MS = 20_000;

interface Gathering {
  readonly missing: Set<number>;
  readonly values: unknown[];
  readonly done: () => void;
}

/** Resolves when all members serve. Throws `STARTUP` with a member's own words where one cannot start. */
export async function startMembers(options: PrimaryOptions): Promise<Primary> {
  const { count, log } = options;
  const members: (Worker | undefined)[] = new Array(count).fill(undefined);
  const clients = new Array<number>(count).fill(0);
  const gatherings = new Map<number, Gathering>();
  let nextId = 1;
  let restarts = 0;
  let stopping = false;

  function tell(index: number, message: ToMember): void {
    const member = members[index];
    if (member?.isConnected()) member.send(message);
  }

  /** Asks all members but `except`. */
  function gather(question: Question, except: number | undefined): Promise<unknown[]> {
    const id = nextId;
    nextId += 1;
    const missing = new Set<number>();
    for (const [index, member] of members.entries()) if (index !== except && member?.isConnected()) missing.add(index);
    const values: unknown[] = [];
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        gatherings.delete(id);
        resolve(values);
      };
      const timer = setTimeout(done, ANSWER_MS);
      gatherings.set(id, { missing, values, done });
      for (const index of missing) tell(index, { kind: 'question', id, question });
      if (missing.size === 0) done();
    });
  }

  function answered(index: number, id: number, value: unknown): void {
    const gathering = gatherings.get(id);
    if (gathering === undefined || !gathering.missing.delete(index)) return;
    gathering.values.push(value);
    if (gathering.missing.size === 0) gathering.done();
  }

  function gone(index: number): void {
    members[index] = undefined;
    clients[index] = 0;
    tellClients();
    for (const gathering of [...gatherings.values()]) {
      if (gathering.missing.delete(index) && gathering.missing.size === 0) gathering.done();
    }
  }

  function tellClients(): void {
    const total = clients.reduce((sum, each) => sum + each, 0);
    for (let i = 0; i < count; i += 1) tell(i, { kind: 'clients-elsewhere', count: total - clients[i]! });
  }

  /** Starts the member with this number; rejects where it says that it cannot. */
  function start(index: number): Promise<readonly string[]> {
    return new Promise((resolve, reject) => {
      const member = cluster.fork();
      members[index] = member;
      const { kvSocket, databaseUrl } = options;
      member.on('message', (message: ToPrimary) => {
        switch (message.kind) {
          case 'join':
            tell(index, { kind: 'role', index, count, kvSocket, databaseUrl });
            return;
          case 'ready':
            resolve(message.listen);
            return;
          case 'failed':
            reject(new HoldfastError('STARTUP', message.message));
            return;
          case 'ask':
            void gather(message.question, index).then((values) =>
              tell(index, { kind: 'answers', id: message.id, values }),
            );
            return;
          case 'answer':
            answered(index, message.id, message.value);
            return;
          case 'clients':
            clients[index] = message.count;
            tellClients();
        }
      });
      member.on('exit', (code, signal) => {
        gone(index);
        reject(new HoldfastError('STARTUP', `process ${index} ended with ${signal ?? code} before it served`));
        if (!stopping) startAgain(index, signal ?? String(code));
      });
      member.on('error', (thrown) =>
        log.warn({ member: index, reason: thrown.message }, 'a process cannot be reached'),
      );
    });
  }

  let serving = false;
  function startAgain(index: number, how: string): void {
    if (!serving) return;
    restarts += 1;
    log.error({ member: index, how }, 'a process died and is started again');
    setTimeout(() => {
      if (!stopping)
        start(index).catch((thrown) => log.error({ member: index, err: thrown }, 'a process did not start'));
    }, RESTART_MS);
  }

  async function stop(): Promise<void> {
    stopping = true;
    const ends = members.map((member, index) => {
      if (member === undefined) return undefined;
      const exited = new Promise<void>((resolve) => member.once('exit', () => resolve()));
      tell(index, { kind: 'stop' });
      const timer = setTimeout(() => member.process.kill('SIGKILL'), STOP_MS);
      return exited.finally(() => clearTimeout(timer));
    });
    await Promise.all(ends);
  }

  const starts = await Promise.allSettled(Array.from({ length: count }, (_, index) => start(index)));
  const failure = starts.find((each) => each.status === 'rejected');
  if (failure !== undefined) {
    await stop();
    throw failure.reason;
  }
  serving = true;
  const [first] = starts;
  return {
    listen: first?.status === 'fulfilled' ? first.value : [],
    ask: (question) => gather(question, undefined),
    get restarts() {
      return restarts;
    },
    stop,
  };
}
