/** Something that loops wait for, a little while at most: whoever learns that it may be there rings. */
export interface Bell {
  ring(): void;
  readonly awaited: boolean;
  /** Resolves at the next ring, or after `limitMs`. */
  wait(limitMs: number): Promise<void>;
}

export function createBell(): Bell {
  const waiting = new Set<() => void>();
  return {
    ring() {
      for (const done of [...waiting]) done();
    },
    get awaited() {
      return waiting.size > 0;
    },
    wait(limitMs) {
      return new Promise((resolve) => {
        const done = (): void => {
          clearTimeout(timer);
          waiting.delete(done);
          resolve();
        };
        const timer = setTimeout(done, limitMs);
        waiting.add(done);
      });
    },
  };
}
