/** Whether an event has a device rendered anew, and under which numbers. */

export interface RenderState {
  /** The number of what was rendered last; 0 before the first time. */
  readonly renderedVersion: number;
  /** The greatest number that the device has reported. */
  readonly reportedVersion: number;
  /** What the device's spec was expanded from. */
  readonly templateVersion: string | undefined;
  /** What it was last rendered from. */
  readonly renderedTemplateVersion: string | undefined;
  /** The hash of the spec is that of what was rendered last. */
  readonly sameSpec: boolean;
}

export type RenderDecision =
  | { readonly kind: 'skip' }
  /** Nothing to render, but the device stands at another template version than its annotation says. */
  | { readonly kind: 'annotate'; readonly renderedTemplateVersion: string }
  | { readonly kind: 'render'; readonly renderedVersion: number; readonly renderedTemplateVersion: string | undefined };

/** What was rendered may have changed although the spec did not. */
const RENDER_ANYWAY: ReadonlySet<string> = new Set(['DependencyChangeDetected', 'ApplicationLifecycleChanged']);

export function decideRender(reason: string, state: RenderState): RenderDecision {
  const { renderedVersion, reportedVersion, templateVersion, renderedTemplateVersion, sameSpec } = state;
  const sameTemplate = templateVersion === renderedTemplateVersion;
  if (reason === 'FleetRolloutDeviceSelected' && sameTemplate && sameSpec) return { kind: 'skip' };
  const mustRender = !sameSpec || RENDER_ANYWAY.has(reason) || reason === 'FleetRolloutDeviceSelected';
  if (mustRender) {
    return {
      kind: 'render',
      renderedVersion: Math.max(renderedVersion, reportedVersion) + 1,
      renderedTemplateVersion: templateVersion,
    };
  }
  if (sameTemplate || templateVersion === undefined) return { kind: 'skip' };
  return { kind: 'annotate', renderedTemplateVersion: templateVersion };
}
