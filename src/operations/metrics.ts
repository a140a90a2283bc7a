/**
 * The metrics of one process. Parts of Holdfast count for themselves and know nothing of Prometheus; their figures are
 * read when somebody asks.
 */
import { Counter, collectDefaultMetrics, Gauge, Registry } from 'prom-client';

export interface Figure {
  readonly name: string;
  readonly help: string;
  /** A total since the start of the process, or what is at this moment. */
  readonly kind: 'total' | 'current';
  read(): number;
}

/** Makers of figures whose names begin with `prefix`. */
export function figuresNamed(
  prefix: string,
): Record<Figure['kind'], (name: string, help: string, read: () => number) => Figure> {
  return {
    current: (name, help, read) => ({ name: `${prefix}${name}`, help, kind: 'current', read }),
    total: (name, help, read) => ({ name: `${prefix}${name}`, help, kind: 'total', read }),
  };
}

/** Node's own figures (event loop lag, memory, CPU) under `holdfast_`. */
export function createMetrics(): Registry {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry, prefix: 'holdfast_' });
  return registry;
}

export function addFigures(registry: Registry, figures: readonly Figure[]): void {
  for (const { name, help, kind, read } of figures) {
    const settings = { name, help, registers: [registry] };
    if (kind === 'current') {
      new Gauge({
        ...settings,
        collect() {
          this.set(read());
        },
      });
    } else {
      new Counter({
        ...settings,
        collect() {
          this.reset();
          this.inc(read());
        },
      });
    }
  }
}
