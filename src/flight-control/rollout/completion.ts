/** When a batch is done, and whether the next may begin. */

export interface BatchDevice {
  readonly selected: boolean;
  readonly renderedTemplateVersion: string | undefined;
  /** The device has reported the version that was rendered for it last. */
  readonly upToDate: boolean;
  /** It has reported that the update failed. */
  readonly failed: boolean;
  /** Longer ago than the update timeout it was rendered. */
  readonly overdue: boolean;
}

export interface BatchReport {
  readonly total: number;
  readonly successful: number;
  readonly failed: number;
  readonly timedOut: number;
  /** Rounded down. */
  readonly successPercentage: number;
}

export interface BatchProgress {
  readonly complete: boolean;
  /** `null` for a batch that took nobody. */
  readonly report: BatchReport | null;
}

export function batchProgress(devices: readonly BatchDevice[], templateVersion: string): BatchProgress {
  const taken = devices.filter(({ selected }) => selected);
  if (taken.length === 0) return { complete: true, report: null };
  // What an older template version came to says nothing of this one.
  const rendered = taken.filter((device) => device.renderedTemplateVersion === templateVersion);
  const successful = rendered.filter(({ upToDate }) => upToDate).length;
  const unfinished = rendered.filter(({ upToDate }) => !upToDate);
  const failed = unfinished.filter((device) => device.failed).length;
  const timedOut = unfinished.filter((device) => !device.failed && device.overdue).length;
  return {
    complete: successful + failed + timedOut === taken.length,
    report: {
      total: taken.length,
      successful,
      failed,
      timedOut,
      successPercentage: Math.floor((successful * 100) / taken.length),
    },
  };
}

const THRESHOLD_DEFAULT = 90;

export type Approval = 'approved' | 'waiting' | 'suspended';

export interface ApprovalState {
  /** -1 is the preliminary step, which always goes on. */
  readonly batchNumber: number;
  readonly method: 'manual' | 'automatic';
  /** Of the batch before; `undefined` where it took nobody, or there was none. */
  readonly lastSuccessPercentage: number | undefined;
  /** Percent. */
  readonly batchThreshold: number | undefined;
  readonly policyThreshold: number | undefined;
}

export function approval(state: ApprovalState): Approval {
  if (state.batchNumber < 0) return 'approved';
  if (state.method === 'manual') return 'waiting';
  const { lastSuccessPercentage: last, batchThreshold, policyThreshold } = state;
  if (last === undefined) return 'approved';
  return last >= (batchThreshold ?? policyThreshold ?? THRESHOLD_DEFAULT) ? 'approved' : 'suspended';
}
