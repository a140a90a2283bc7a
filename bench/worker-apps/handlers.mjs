/** Handlers of the worker bench, plain JavaScript so that threads start as they do in production. */
function spin(ms) {
  const end = performance.now() + ms;
  while (performance.now() < end);
}

export default {
  streams: 'bench',
  trim: true,
  handlers: {
    'in-process': { run: 'in-process', handle: async () => {} },
    thread: { run: 'thread', handle: async () => {} },
    'thread-1ms': { run: 'thread', handle: async () => spin(1) },
  },
};
