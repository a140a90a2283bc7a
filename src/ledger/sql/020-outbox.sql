-- XADD from SQL, in the caller's own transaction (docs/outbox.md).
--
-- What is added waits in `outbox` and is visible to the publisher when, and only when, its transaction has committed. A
-- transaction has its place in `outbox_transaction`, taken by a deferred trigger while it commits: whoever began to commit
-- after another had committed has a greater one, and nobody waits for anybody. So entries are published in that order.
--
-- A notification costs every committing transaction a lock on the whole database cluster. While the publisher is awake it
-- says until when it will look again by itself, in a sequence, which is read past all snapshots; only who finds it asleep
-- wakes it.

CREATE TABLE holdfast.outbox (
  entry_number bigint GENERATED ALWAYS AS IDENTITY,
  xid xid8 NOT NULL,
  database integer NOT NULL,
  stream bytea NOT NULL,
  maxlen bigint,
  bytes integer NOT NULL,
  fields text[] NOT NULL,
  PRIMARY KEY (xid, entry_number)
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);

CREATE TABLE holdfast.outbox_transaction (
  xid xid8 PRIMARY KEY,
  place bigint,
  added_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);
CREATE INDEX outbox_transaction_place ON holdfast.outbox_transaction (place) WHERE place IS NOT NULL;

CREATE SEQUENCE holdfast.outbox_place CACHE 1;
-- Milliseconds since 1970: the publisher looks again after that moment.
CREATE SEQUENCE holdfast.outbox_awake_until MINVALUE 0 START 0;

CREATE FUNCTION holdfast.outbox_commit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE holdfast.outbox_transaction SET place = nextval('holdfast.outbox_place') WHERE xid = NEW.xid;
  IF (SELECT last_value FROM holdfast.outbox_awake_until) < extract(epoch FROM clock_timestamp()) * 1000 THEN
    PERFORM pg_notify('holdfast_outbox', '');
  END IF;
  RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER outbox_commit AFTER INSERT ON holdfast.outbox_transaction
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION holdfast.outbox_commit();

CREATE FUNCTION holdfast.outbox_add(p_stream text, p_database integer, p_maxlen bigint, p_fields text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  bytes bigint;
BEGIN
  IF p_stream IS NULL OR p_stream = '' THEN
    RAISE EXCEPTION 'holdfast.xadd: the stream needs a name' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  IF coalesce(cardinality(p_fields), 0) = 0 OR cardinality(p_fields) % 2 <> 0 THEN
    RAISE EXCEPTION 'holdfast.xadd: an entry is fields and values, in turn; % were given', coalesce(cardinality(p_fields), 0)
      USING ERRCODE = 'invalid_parameter_value';
  END IF;
  IF cardinality(p_fields) > 4000 THEN
    RAISE EXCEPTION 'holdfast.xadd: an entry has at most 2000 fields' USING ERRCODE = 'program_limit_exceeded';
  END IF;
  IF array_position(p_fields, NULL) IS NOT NULL THEN
    RAISE EXCEPTION 'holdfast.xadd: a field or value is NULL, which an entry cannot hold'
      USING ERRCODE = 'null_value_not_allowed';
  END IF;
  IF p_database IS NULL OR p_database < 0 THEN
    RAISE EXCEPTION 'holdfast.xadd: database must be 0 or greater' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  IF p_maxlen < 0 THEN
    RAISE EXCEPTION 'holdfast.xadd: maxlen must be 0 or greater' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  SELECT sum(octet_length(value)) INTO bytes FROM unnest(p_fields) AS given (value);
  IF bytes > 16777216 THEN
    RAISE EXCEPTION 'holdfast.xadd: the entry has % bytes, at most 16777216 are taken', bytes
      USING ERRCODE = 'program_limit_exceeded';
  END IF;
  INSERT INTO holdfast.outbox_transaction (xid) VALUES (pg_current_xact_id()) ON CONFLICT DO NOTHING;
  INSERT INTO holdfast.outbox (xid, database, stream, maxlen, bytes, fields)
  VALUES (pg_current_xact_id(), p_database, convert_to(p_stream, 'UTF8'), p_maxlen, bytes, p_fields);
END $$;

-- SELECT holdfast.xadd('orders', 'id', '42', 'state', 'paid')
-- SELECT holdfast.xadd('orders', VARIADIC ARRAY['id', '42'])
CREATE FUNCTION holdfast.xadd(stream text, VARIADIC fields text[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT holdfast.outbox_add(stream, 0, NULL, fields)
$$;

-- SELECT holdfast.xadd('orders', database => 2, maxlen => 100000, VARIADIC fields => ARRAY['id', '42'])
-- In SQL a variadic function has no defaults to speak of: hence one for each way to call it.
CREATE FUNCTION holdfast.xadd(stream text, database integer, maxlen bigint, VARIADIC fields text[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT holdfast.outbox_add(stream, database, maxlen, fields)
$$;
CREATE FUNCTION holdfast.xadd(stream text, database integer, VARIADIC fields text[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT holdfast.outbox_add(stream, database, NULL, fields)
$$;
CREATE FUNCTION holdfast.xadd(stream text, maxlen bigint, VARIADIC fields text[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT holdfast.outbox_add(stream, 0, maxlen, fields)
$$;

-- The oldest that wait, as many as together have no more than p_bytes, or one. Streams p_blocked_… wait.
CREATE FUNCTION holdfast.outbox_next(p_rows integer, p_bytes bigint, p_blocked_databases integer[], p_blocked_streams bytea[])
RETURNS TABLE (xid text, entry_number bigint, database integer, stream bytea, maxlen bigint, fields text[])
LANGUAGE sql STABLE AS $$
  SELECT sized.xid::text, sized.entry_number, sized.database, sized.stream, sized.maxlen, sized.fields
    FROM (
      SELECT listed.*, sum(listed.bytes) OVER (ORDER BY listed.place, listed.entry_number) - listed.bytes AS before
        FROM (
          SELECT t.place, o.*
            FROM (SELECT transaction.xid, transaction.place FROM holdfast.outbox_transaction AS transaction
                   WHERE transaction.place IS NOT NULL ORDER BY transaction.place) AS t
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

-- Entries that are in the KV store, or gone from it by somebody's will, leave the outbox.
CREATE FUNCTION holdfast.outbox_remove(p_xids xid8[], p_numbers bigint[]) RETURNS void LANGUAGE sql AS $$
  DELETE FROM holdfast.outbox AS o USING unnest(p_xids, p_numbers) AS done (xid, entry_number)
   WHERE o.xid = done.xid AND o.entry_number = done.entry_number;
  DELETE FROM holdfast.outbox_transaction AS t
   WHERE t.xid = ANY (p_xids) AND NOT EXISTS (SELECT FROM holdfast.outbox AS o WHERE o.xid = t.xid);
$$;

-- Entries that the KV store has under p_ids become entries of the ledger and leave the outbox, in one step: whichever of
-- both was lost by a crash, the other one says what is to be done. p_last is the greatest of p_ids. Gives
--   committed  done
--   late       the stream moved on since the IDs were given: they are in the backlog, to be published again
--   ended      nothing was done: the incarnation is over
--   conflict   nothing was done: an ID is in the ledger with other fields
CREATE FUNCTION holdfast.outbox_record(
  p_slot smallint, p_checked boolean, p_stream bigint, p_epoch bigint, p_ids bytea[], p_last bytea, p_fields bytea[],
  p_maxlen bigint[], p_xids xid8[], p_numbers bigint[]
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  streams bigint[] := array_fill(p_stream, ARRAY[cardinality(p_ids)]);
  answer text;
BEGIN
  LOOP
    BEGIN
      SELECT outcome INTO answer FROM holdfast.commit_entries(
        (SELECT max(part) FROM holdfast.entry_partition), p_slot, false, p_checked,
        streams, p_ids, array_fill(p_epoch, ARRAY[cardinality(p_ids)]), p_fields, p_maxlen,
        ARRAY[p_stream], ARRAY[p_epoch], ARRAY[p_last]
      ) ORDER BY outcome = 'conflict' DESC LIMIT 1;
      -- Some of it is written then: taken back with this block.
      IF answer = 'conflict' THEN
        RAISE EXCEPTION 'conflict' USING ERRCODE = 'HF002';
      END IF;
    EXCEPTION WHEN SQLSTATE 'HF002' THEN
      RETURN 'conflict';
    END;
    EXIT WHEN answer IS DISTINCT FROM 'partition';
  END LOOP;
  IF answer = 'stale' THEN
    IF NOT EXISTS (SELECT FROM holdfast.stream WHERE stream_id = p_stream AND ended_at IS NULL) THEN
      RETURN 'ended';
    END IF;
    PERFORM holdfast.commit_late(streams, p_ids, p_fields, p_maxlen);
  END IF;
  PERFORM holdfast.outbox_remove(p_xids, p_numbers);
  RETURN CASE answer WHEN 'stale' THEN 'late' ELSE 'committed' END;
END $$;

REVOKE ALL ON FUNCTION holdfast.outbox_add(text, integer, bigint, text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION holdfast.xadd(text, text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION holdfast.xadd(text, integer, bigint, text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION holdfast.xadd(text, integer, text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION holdfast.xadd(text, bigint, text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION holdfast.outbox_commit() FROM PUBLIC;
REVOKE ALL ON FUNCTION holdfast.outbox_remove(xid8[], bigint[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION holdfast.outbox_next(integer, bigint, integer[], bytea[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION holdfast.outbox_record(
  smallint, boolean, bigint, bigint, bytea[], bytea, bytea[], bigint[], xid8[], bigint[]) FROM PUBLIC;
