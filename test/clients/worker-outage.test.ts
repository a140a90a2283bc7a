/**
 * Workers of other people's queues live through the loss of the KV store as they do without Holdfast: idle or in the middle
 * of a job, they take the next one. The KV store is killed and comes back empty.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import BeeQueue from 'bee-queue';
import Bull from 'bull';
import { Queue as BullMqQueue, Worker as BullMqWorker } from 'bullmq';
import { afterAll, describe, expect, test } from 'vitest';
import { front } from '../proxy/through-proxy.ts';
import { kvKinds, startKv, temporaryDirectory } from '../support/servers.ts';
import { runProgram } from './run-program.ts';

/** A queue with a worker that takes `name`s, works on "slow…" until it is told to end, and notes what is done. */
interface Jobs {
  add(name: string): Promise<unknown>;
  done(): Promise<readonly string[]>;
  /** What is begun and not done. */
  begun(): Promise<readonly string[]>;
  finishSlow(): Promise<void>;
  alive(): boolean;
  /** What the worker said. */
  said(): string;
  stop(): Promise<void>;
}

type Start = (port: number, directory: string) => Promise<Jobs>;

const PYTHON = '/usr/bin/python3';
const PATIENCE = { timeout: 40_000, interval: 100 };

const children: ChildProcess[] = [];
afterAll(() => {
  for (const child of children.splice(0)) endGroup(child);
});

/** With what it has started. */
function endGroup(child: ChildProcess): void {
  if (child.exitCode === null && child.signalCode === null) process.kill(-child.pid!, 'SIGKILL');
}

async function linesOf(file: string): Promise<string[]> {
  return existsSync(file) ? (await readFile(file, 'utf8')).split('\n').filter(Boolean) : [];
}

/** A worker that is a program: it appends to `begun` and `done`, and ends slow jobs when there is a file `finish`. */
async function program(
  directory: string,
  files: Readonly<Record<string, string>>,
  worker: readonly string[],
  adding: (name: string) => readonly string[],
  env: Readonly<Record<string, string>>,
): Promise<Jobs> {
  for (const [name, text] of Object.entries(files)) await writeFile(join(directory, name), text);
  const [command, ...args] = worker;
  const whole = { ...process.env, ...env };
  const child = spawn(command!, args, {
    cwd: directory,
    env: whole,
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
  });
  children.push(child);
  let said = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (said += chunk));
  return {
    add: async (name) => {
      const [adder, ...rest] = adding(name);
      const assigned = Object.entries(env).map(([key, value]) => `${key}=${value}`);
      const result = await runProgram('env', [...assigned, adder!, ...rest], { cwd: directory });
      if (result.exitCode !== 0) throw new Error(result.stderr);
    },
    done: () => linesOf(join(directory, 'done')),
    begun: () => linesOf(join(directory, 'begun')),
    finishSlow: () => writeFile(join(directory, 'finish'), ''),
    alive: () => child.exitCode === null && child.signalCode === null,
    said: () => said,
    stop: () =>
      new Promise((resolve) => {
        if (child.exitCode !== null || child.signalCode !== null) resolve();
        child.once('close', () => resolve());
        endGroup(child);
      }),
  };
}

const WORK_PYTHON = `
import os, time
def note(what, name):
    with open(what, 'a') as out: out.write(name + '\\n')
def work(name):
    note('begun', name)
    while name.startswith('slow') and not os.path.exists('finish'): time.sleep(0.05)
    note('done', name)
`;

const celery: Start = (port, directory) =>
  program(
    directory,
    {
      'work.py': WORK_PYTHON,
      'app.py': `
from celery import Celery
import work
app = Celery('app', broker='redis://127.0.0.1:${port}/0', backend='redis://127.0.0.1:${port}/0')
@app.task
def job(name): work.work(name)
`,
    },
    [PYTHON, '-m', 'celery', '-A', 'app', 'worker', '-c', '1', '-l', 'info'],
    (name) => [PYTHON, '-c', `from app import job; job.delay('${name}')`],
    { C_FORCE_ROOT: '1' },
  );

const rq: Start = (port, directory) =>
  program(
    directory,
    { 'work.py': WORK_PYTHON },
    [PYTHON, '/usr/bin/rq', 'worker', '--url', `redis://127.0.0.1:${port}`],
    (name) => [
      PYTHON,
      '-c',
      `import redis, rq; rq.Queue(connection=redis.Redis(port=${port})).enqueue('work.work', '${name}')`,
    ],
    { PYTHONPATH: directory },
  );

const sidekiq: Start = (port, directory) =>
  program(
    directory,
    {
      'app.rb': `
require 'sidekiq'
class Job
  include Sidekiq::Worker
  def note(what, name) = File.open(what, 'a') { |out| out.puts(name) }
  def perform(name)
    note('begun', name)
    sleep 0.05 while name.start_with?('slow') && !File.exist?('finish')
    note('done', name)
  end
end
`,
    },
    ['sidekiq', '-r', './app.rb', '-c', '1'],
    (name) => ['ruby', '-r', './app.rb', '-e', `Job.perform_async('${name}')`],
    { REDIS_URL: `redis://127.0.0.1:${port}/0` },
  );

/** For workers of this process. */
function working(): Pick<Jobs, 'done' | 'begun' | 'finishSlow' | 'alive' | 'said'> & {
  work(name: string): Promise<void>;
  failed(thrown: unknown): void;
} {
  const begun: string[] = [];
  const done: string[] = [];
  const failures: string[] = [];
  let finish: () => void = () => undefined;
  const finished = new Promise<void>((resolve) => {
    finish = resolve;
  });
  return {
    async work(name) {
      begun.push(name);
      if (name.startsWith('slow')) await finished;
      done.push(name);
    },
    failed: (thrown) => failures.push(String(thrown)),
    done: async () => done,
    begun: async () => begun,
    finishSlow: async () => finish(),
    alive: () => true,
    said: () => failures.join('\n'),
  };
}

const bullMq: Start = async (port) => {
  const { work, failed, ...seen } = working();
  const connection = { host: '127.0.0.1', port, maxRetriesPerRequest: null };
  const queue = new BullMqQueue('jobs', { connection });
  const worker = new BullMqWorker('jobs', async (job) => work(job.name), { connection });
  queue.on('error', failed);
  worker.on('error', failed);
  const stop = async () => {
    await worker.close(true);
    await queue.close();
  };
  return { ...seen, add: (name) => queue.add(name, {}), stop };
};

const bull: Start = async (port) => {
  const { work, failed, ...seen } = working();
  const queue = new Bull('jobs', { redis: { host: '127.0.0.1', port } });
  queue.on('error', failed);
  void queue.process(async (job: { data: { name: string } }) => work(job.data.name));
  return { ...seen, add: (name) => queue.add({ name }), stop: () => queue.close(true) };
};

/** It loads its scripts when it starts and never again: directly too, only one that starts then can add after a restart. */
const beeQueue: Start = async (port) => {
  const { work, failed, ...seen } = working();
  const redis = { host: '127.0.0.1', port };
  const queue = new BeeQueue<{ name: string }>('jobs', { redis });
  const add = async (name: string): Promise<void> => {
    const producer = new BeeQueue<{ name: string }>('jobs', { redis, isWorker: false });
    await producer.createJob({ name }).save();
    await producer.close();
  };
  queue.on('error', failed);
  queue.process(async (job: { data: { name: string } }) => work(job.data.name));
  return { ...seen, add, stop: () => queue.close(0) };
};

const WORKERS: readonly (readonly [string, Start])[] = [
  ...(existsSync('/usr/lib/python3/dist-packages/celery') ? [['Celery', celery] as const] : []),
  ...(existsSync('/usr/bin/rq') ? [['RQ', rq] as const] : []),
  ...(existsSync('/usr/bin/sidekiq') ? [['Sidekiq', sidekiq] as const] : []),
  ['BullMQ', bullMq],
  ['Bull', bull],
  ['bee-queue', beeQueue],
];

describe.each(kvKinds)('workers of other queues on %s', (kind) => {
  test.each(WORKERS)(
    '%s lives through a kill and an empty restart, idle and busy',
    async (_, start) => {
      const kv = await startKv(kind);
      const { port } = await front(kv.port);
      const jobs = await start(port, await temporaryDirectory());
      const isDone = async (name: string): Promise<void> => {
        await expect
          .poll(async () => (jobs.alive() ? (await jobs.done()).includes(name) : jobs.said()), PATIENCE)
          .toBe(true);
      };
      try {
        await jobs.add('first');
        await isDone('first');

        await kv.kill9();
        await kv.restart();
        await jobs.add('after idle');
        await isDone('after idle');

        await jobs.add('slow');
        await expect.poll(async () => (await jobs.begun()).includes('slow'), PATIENCE).toBe(true);
        await kv.kill9();
        await kv.restart();
        await jobs.finishSlow();
        await isDone('slow');
        await jobs.add('after busy');
        await isDone('after busy');
        expect(await jobs.done()).toEqual(['first', 'after idle', 'slow', 'after busy']);
      } finally {
        await jobs.stop();
      }
    },
    120_000,
  );
});
