-- As before, but that no more transactions are looked at than there can be entries in the answer, whatever the planner thinks
-- of them: each has one at least. Only where some of them wait for their stream there may be more.
CREATE OR REPLACE FUNCTION holdfast.outbox_next(p_rows integer, p_bytes bigint, p_blocked_databases integer[], p_blocked_streams bytea[])
RETURNS TABLE (xid text, entry_number bigint, database integer, stream bytea, maxlen bigint, fields text[])
LANGUAGE sql STABLE AS $$
  SELECT sized.xid::text, sized.entry_number, sized.database, sized.stream, sized.maxlen, sized.fields
    FROM (
      SELECT listed.*, sum(listed.bytes) OVER (ORDER BY listed.place, listed.entry_number) - listed.bytes AS before
        FROM (
          SELECT t.place, o.*
            FROM (SELECT transaction.xid, transaction.place FROM holdfast.outbox_transaction AS transaction
                   WHERE transaction.place IS NOT NULL ORDER BY transaction.place
                   LIMIT CASE cardinality(p_blocked_databases) WHEN 0 THEN p_rows END) AS t
           CROSS JOIN LATERAL (
             SELECT waiting.* FROM holdfast.outbox AS waiting
              WHERE waiting.xid = t.xid
                AND NOT EXISTS (SELECT FROM unnest(p_blocked_databases, p_blocked_streams) AS blocked (database, stream)
                                 WHERE blocked.database = waiting.database AND blocked.stream = waiting.stream)
              ORDER BY waiting.entry_number LIMIT p_rows) AS o
           ORDER BY t.place, o.entry_number LIMIT p_rows
        ) AS listed
    ) AS sized
   WHERE sized.before < p_bytes
   ORDER BY sized.place, sized.entry_number
$$;
