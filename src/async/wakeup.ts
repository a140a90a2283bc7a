/** Something that may have come about: those who wait for it look again whenever they are woken. */
export class Condition {
  readonly #waiting = new Set<() => void>();

  /** Resolves at the next `wake()`, or after `limitMs`. */
  changed(limitMs: number): Promise<void> {
    return new Promise((resolve) => {
      const wake = (): void => {
        clearTimeout(timer);
        this.#waiting.delete(wake);
        resolve();
      };
      const timer = setTimeout(wake, limitMs);
      this.#waiting.add(wake);
    });
  }

  wake(): void {
    for (const wake of [...this.#waiting]) wake();
  }
}
