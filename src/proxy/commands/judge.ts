/**
 * Has the KV store judge a request before anything is done for it: queued in a transaction that is then discarded. Queueing
 * checks who the connection is and what it may do, to the last key, and changes nothing.
 *
 *   ACL GETUSER ──▶ may do everything with all keys: nothing is asked any more
 *   MULTI ──▶ OK ──▶ request, DISCARD ──▶ QUEUED: let in, remembered ── NOAUTH, NOPERM: the refusal
 *     └─ refused ──▶ NOAUTH: the refusal ── a user who may not MULTI cannot be judged so, and is let pass
 *
 * What was let in is remembered with its user; of a scope's user by the command alone, whose keys are the scope's. Should
 * the rights change, the command itself is refused, what was done for it taken back, and all forgotten that is remembered.
 */
import { HoldfastError } from '../../errors.ts';
import * as encode from '../../resp/encode.ts';
import { readReply, replyValue } from '../../resp/reply.ts';
import { withOwnLane } from '../session/lane-link.ts';
import type { Session } from '../session/session.ts';
import type { Lane } from '../upstream/lane.ts';

const MINUS = 45;
const MULTI = encode.request(['MULTI']);
const DISCARD = encode.request(['DISCARD']);

/** Gives the refusal, or nothing for a request that the KV store lets in. Rejects with KVDOWN. */
export async function judgeFirst(session: Session, args: readonly Buffer[]): Promise<Buffer | undefined> {
  const command = session.scope === undefined ? undefined : session.planOf(args).command;
  const what = command === undefined ? exactly(args) : command.name;
  const { known } = session.context.upstream;
  const { credentials } = session;
  if (known.requests(credentials)?.has(what) === true) return undefined;
  // Nobody can be asked: who was let in before may go on.
  if (session.admittedOffline) return undefined;
  const verdict = await withOwnLane(
    session,
    session.laneSet,
    (lane) => ask(session, lane, args),
    session.admitted,
  ).catch((thrown) => {
    if (session.admittedOffline) return undefined;
    throw thrown;
  });
  if (isRefusal(verdict, 'NOAUTH') || isRefusal(verdict, 'NOPERM')) return verdict;
  if (verdict !== undefined && verdict[0] !== MINUS) known.requests(credentials)?.add(what);
  return undefined;
}

/** What the server says to the request; nothing where it does not let its user queue. */
async function ask(session: Session, lane: Lane, args: readonly Buffer[]): Promise<Buffer | undefined> {
  const { credentials, context } = session;
  const name = credentials?.username ?? 'default';
  // Users of Holdfast's own may not ask that, unless they administer: the server would note it as an attempt.
  const asks = session.administers !== false;
  const [user, begun] = await Promise.all([
    asks ? replyOn(lane, encode.request(['ACL', 'GETUSER', name])) : undefined,
    replyOn(lane, MULTI),
  ]);
  const requests = context.upstream.known.requests(credentials);
  if (requests !== undefined && user !== undefined && mayDoEverything(user)) requests.everything = true;
  if (begun[0] === MINUS) return isRefusal(begun, 'NOAUTH') ? begun : undefined;
  const [verdict, ended] = await Promise.all([replyOn(lane, encode.request(args)), replyOn(lane, DISCARD)]);
  if (ended[0] === MINUS) lane.close(new HoldfastError('RETIRED', 'its transaction cannot be ended'));
  return verdict;
}

function exactly(args: readonly Buffer[]): string {
  return args.map((arg) => `${arg.length}:${arg.toString('latin1')}`).join('');
}

/** Whether ACL GETUSER shows a user without any restriction to commands and keys. */
function mayDoEverything(reply: Buffer): boolean {
  const fields = replyValue(readReply(reply));
  if (!Array.isArray(fields)) return false;
  const field = (name: string): unknown => fields[fields.indexOf(name) + 1];
  return field('commands') === '+@all' && field('keys') === '~*';
}

function replyOn(lane: Lane, request: Buffer): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    lane.sendWhole({ reply: resolve, lost: reject, fault: reject }, request);
  });
}

function isRefusal(reply: Buffer | undefined, code: string): boolean {
  return reply?.[0] === MINUS && reply.toString('latin1', 1, 1 + code.length) === code;
}
