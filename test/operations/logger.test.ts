import { expect, it } from 'vitest';
import { Secret } from '../../src/config/secret.ts';
import { createLogger } from '../../src/operations/logger.ts';

function collecting() {
  const lines: string[] = [];
  return { lines, destination: { write: (line: string) => void lines.push(line) } };
}

it('writes JSON lines with named levels and leaves out what is below the level', () => {
  const { lines, destination } = collecting();
  const log = createLogger({ level: 'warn', pretty: false, destination });
  log.info('not this');
  log.warn({ stream: 'task-queue' }, 'this');
  expect(lines).toHaveLength(1);
  expect(JSON.parse(lines[0]!)).toMatchObject({ level: 'warn', stream: 'task-queue', msg: 'this' });
});

it('shows no secret, wherever it stands', () => {
  const { lines, destination } = collecting();
  const log = createLogger({ level: 'info', pretty: false, destination });
  const password = 'opensesame';
  log.info({
    password,
    kv: { password },
    config: { ledger: { databaseUrl: password } },
    wrapped: new Secret(password),
  });
  expect(lines.join()).not.toContain(password);
  expect(lines.join()).toContain('[redacted]');
});
