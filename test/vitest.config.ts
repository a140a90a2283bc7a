import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    root: new URL('..', import.meta.url).pathname,
    include: ['test/**/*.test.ts'],
    globalSetup: ['test/support/shared-postgres.ts'],
    // Processes, not threads: child servers are tied to the life of the process that started them.
    pool: 'forks',
    // Two cores are the smallest machine; a third of the time tests wait for servers.
    maxWorkers: 3,
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
