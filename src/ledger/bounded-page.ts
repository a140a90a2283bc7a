/** Rows of entries are of any size up to `ledger.entryBytesMax`: a page of so many rows alone could be gigabytes. */
const PAGE_BYTES = 4 * 1024 * 1024;

/**
 * The first rows of `page`, a query with the columns `id` and `fields`, that have so many bytes together; at least one.
 * `paged` is how many rows `page` has. The sizes are read without the fields themselves.
 */
export function boundedPage(page: string, order: 'ASC' | 'DESC' = 'ASC'): string {
  return `(SELECT * FROM (
            SELECT *, count(*) OVER () AS paged,
                   sum(octet_length(fields)) OVER (ORDER BY id ${order}) - octet_length(fields) AS bytes_before
              FROM (${page}) AS page
          ) AS measured WHERE bytes_before < ${PAGE_BYTES})`;
}
