/** `redis://`, `rediss://` and `unix:/path`, as they come from settings. */

/** What ioredis takes in place of the URL. */
export function ioredisTarget(url: string): string {
  return url.startsWith('unix:') ? url.replace(/^unix:(\/\/(?=\/))?/, '') : url;
}

/** For messages. */
export function withoutPassword(url: string): string {
  return url.replace(/\/\/[^@/]*@/, '//***@');
}
