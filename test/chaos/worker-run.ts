/** `npm run chaos:worker`: the worker's chaos run from the command line. Exit code 1 when a promise was broken. */
import { parseArgs } from 'node:util';
import { runWorkerChaos } from './worker-chaos.ts';

const { values } = parseArgs({
  options: {
    events: { type: 'string', default: '100000' },
    seed: { type: 'string', default: String(Date.now() % 1_000_000) },
    mode: { type: 'string', default: 'holdfast' },
    kv: { type: 'string', default: 'redis' },
    workers: { type: 'string', default: '3' },
    'kill-worker-ms': { type: 'string', default: '5000' },
    'kill-kv-ms': { type: 'string', default: '15000' },
    rate: { type: 'string', default: '2000' },
    minutes: { type: 'string', default: '15' },
  },
});
const report = await runWorkerChaos({
  seed: values.seed,
  events: Number(values.events),
  mode: values.mode === 'direct' ? 'direct' : 'holdfast',
  kv: values.kv === 'valkey' ? 'valkey' : 'redis',
  workers: Number(values.workers),
  killWorkerMs: Number(values['kill-worker-ms']),
  killKvMs: Number(values['kill-kv-ms']),
  rate: Number(values.rate),
  limitMs: Number(values.minutes) * 60_000,
  judgeStalls: true,
  say: (line) => process.stderr.write(`${line}\n`),
});
process.stdout.write(`${JSON.stringify(report, undefined, 2)}\n`);
process.exit(report.findings.length > 0 ? 1 : 0);
