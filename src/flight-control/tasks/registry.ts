/** The tasks of this Holdfast. An event that asks for one that is not here fails for good, and says so. */
import { repositoryUpdate } from './repository-update.ts';
import type { Task } from './task.ts';

export const TASK_LIST: readonly Task[] = [repositoryUpdate];
