/** How many devices of one group may be sent their update now. */

export interface DisruptionBudget {
  readonly maxUnavailable: number | undefined;
  readonly minAvailable: number | undefined;
}

export interface BudgetGroup {
  readonly total: number;
  readonly connected: number;
  /** Connected, and not at what was rendered for them. */
  readonly updating: number;
  readonly waiting: number;
}

export function budgetRoom({ maxUnavailable, minAvailable }: DisruptionBudget, group: BudgetGroup): number {
  const { total, connected, updating, waiting } = group;
  const byUnavailable = maxUnavailable === undefined ? waiting : maxUnavailable - updating;
  // A group never needs all of its devices available, or it could not be updated at all.
  const byAvailable =
    minAvailable === undefined ? waiting : connected - updating - Math.min(minAvailable, Math.max(0, total - 1));
  return Math.max(0, Math.min(byUnavailable, byAvailable, waiting));
}
