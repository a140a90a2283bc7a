/** Requests that the KV store has let a user make, of late. */
const REQUESTS_MAX = 4096;
/** Longer ones are judged each time. */
const REQUEST_CHARACTERS_MAX = 1024;

export class AdmittedRequests {
  /** The user may do everything with all keys. */
  everything = false;
  private readonly requests = new Set<string>();

  has(request: string): boolean {
    return this.everything || this.requests.has(request);
  }

  /** One of them was refused: rights have changed. */
  forget(): void {
    this.everything = false;
    this.requests.clear();
  }

  add(request: string): void {
    if (request.length > REQUEST_CHARACTERS_MAX) return;
    this.requests.add(request);
    if (this.requests.size <= REQUESTS_MAX) return;
    const [oldest] = this.requests;
    this.requests.delete(oldest!);
  }
}
