import { posix } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  type ConfigItem,
  type ConfigSources,
  failureMessage,
  type GitFile,
  renderConfig,
  SourceError,
} from '../../src/flight-control/rendering/render-config.ts';
import { decideRender } from '../../src/flight-control/rendering/render-decision.ts';
import { type GoldenCase, goldenCases } from './golden.ts';

type Files = Record<string, [content: string, mode: string]>;

interface World {
  readonly git?: Record<string, { readonly refs: Record<string, { readonly files: Files }> }>;
  readonly http?: Record<string, { readonly url: string; readonly responses: Record<string, [number, string]> }>;
  readonly secrets?: Record<string, Record<string, string>>;
}

interface ConfigCase extends GoldenCase {
  readonly config: readonly ConfigItem[] | null;
  readonly world: World;
  readonly rendered?: unknown;
  readonly error?: {
    readonly class?: string;
    readonly message?: string;
    readonly permanent?: string;
    readonly retried?: string;
  };
}

interface DecisionCase extends GoldenCase {
  readonly annotations: Record<string, string>;
  readonly event: string;
  readonly specSinceLastRender: 'changed' | 'same' | 'never rendered';
  readonly expect: 'skip' | { readonly renderedVersion?: string; readonly renderedTemplateVersion?: string };
}

/** `\x..` are bytes. */
function bytes(text: string): Buffer {
  const latin1 = text.replace(/\\x([0-9a-f]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
  return Buffer.from(latin1, latin1 === text ? 'utf8' : 'latin1');
}

/** The outside world of a case. What git and HTTP servers answer is a test of the sources themselves. */
function sourcesOf(world: World): ConfigSources {
  return {
    async git(repository, targetRevision, path) {
      const refs = world.git?.[repository]?.refs;
      if (refs === undefined) throw new SourceError('noSuchRepository', `there is no repository ${repository}`, false);
      const files = refs[targetRevision]?.files;
      if (files === undefined) throw new SourceError('noSuchRevision', `there is no revision ${targetRevision}`, false);
      const wanted = posix.normalize(`/${path}`).replace(/\/$/, '').slice(1);
      const found = Object.entries(files).flatMap(([name, [content, mode]]): GitFile[] => {
        const isBelow = name.startsWith(`${wanted}/`);
        if (path.includes('..') || (name !== wanted && !isBelow)) return [];
        return [
          {
            path: isBelow ? name.slice(wanted.length + 1) : '',
            content: bytes(content),
            executable: mode === '100755',
          },
        ];
      });
      if (found.length === 0) throw new SourceError('notFound', `there is no ${path}`, false);
      return found;
    },
    async http(repository, suffix) {
      const { url, responses } = world.http![repository]!;
      const [status, body] = responses[url + suffix]!;
      if (status !== 200) throw new SourceError('httpStatus', `${url}${suffix} answered ${status}`, true);
      return bytes(body);
    },
    async secret(namespace, name) {
      const data = Object.entries(world.secrets![`${namespace}/${name}`]!);
      return new Map(data.map(([key, value]) => [key, bytes(value)]));
    },
  };
}

const all = goldenCases<ConfigCase & DecisionCase>('rendering');

describe('config items', () => {
  it.each(all.filter(([, { group }]) => group !== 'renderDecision'))(
    '%s',
    async (_, { config, world, ...expected }) => {
      const result = await renderConfig(config, sourcesOf(world));
      if (expected.error === undefined) {
        expect(result).toEqual({ rendered: expected.rendered });
        return;
      }
      if (!('failed' in result)) throw new Error('was rendered');
      const { error } = expected;
      if (error.class !== undefined)
        expect(result.failed[0]).toMatchObject({ failure: error.class, retry: error.retried === 'yes' });
      if (error.message !== undefined) {
        expect(failureMessage(result.failed)).toBe(error.message.replace(/<why.*>/, result.failed[0]!.message));
      }
    },
  );

  it('what is no base64, or no file on a device, is named', async () => {
    const inline = (path: string, content: string): ConfigItem => ({
      name: 'c',
      inline: [{ path, content, contentEncoding: 'base64' }],
    });
    const result = await renderConfig([inline('/a', 'not base64!'), inline('/var/lib/flightctl/x', '')], sourcesOf({}));
    expect(result).toMatchObject({
      failed: [
        { failure: 'invalid', message: 'content of /a is not base64' },
        { failure: 'forbiddenPath', message: expect.stringContaining('"/var/lib/flightctl/x"') },
      ],
    });
  });
});

describe('whether a device is rendered', () => {
  it.each(all.filter(([, { group }]) => group === 'renderDecision'))(
    '%s',
    (_, { annotations, event, specSinceLastRender, ...expected }) => {
      const decision = decideRender(event, {
        renderedVersion: Number(annotations['device-controller/renderedVersion'] ?? 0),
        reportedVersion: 0,
        templateVersion: annotations['fleet-controller/templateVersion'],
        renderedTemplateVersion: annotations['fleet-controller/renderedTemplateVersion'],
        sameSpec: specSinceLastRender === 'same',
      });
      if (expected.expect === 'skip') {
        expect(decision).toEqual({ kind: 'skip' });
        return;
      }
      const { renderedVersion, renderedTemplateVersion } = expected.expect;
      expect(decision.kind).toBe(renderedVersion === undefined ? 'annotate' : 'render');
      if (renderedVersion !== undefined) expect(decision).toMatchObject({ renderedVersion: Number(renderedVersion) });
      if (renderedTemplateVersion !== undefined) expect(decision).toMatchObject({ renderedTemplateVersion });
    },
  );

  it('counts on from what the device has reported', () => {
    const state = {
      renderedVersion: 3,
      reportedVersion: 7,
      templateVersion: undefined,
      renderedTemplateVersion: undefined,
    };
    expect(decideRender('ResourceUpdated', { ...state, sameSpec: false })).toMatchObject({ renderedVersion: 8 });
  });
});
