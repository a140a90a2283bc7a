-- Retention (docs/ledger.md). An old partition goes whole. What some group has not acknowledged, and what is untrimmed of
-- streams without groups, moves to partition 0 first, a batch at a time, by an UPDATE of `part`: at every moment a row is in
-- one partition, so whoever reads meanwhile sees it once. Nothing here holds a lock that a commit waits for longer than one
-- small transaction; DETACH and DROP are the caller's, for DETACH … CONCURRENTLY cannot be part of a function.

-- Was never written: what the worker remembers is in worker_entry and worker_failure.
DROP TABLE holdfast.attempt;

-- As a table of its own that is attached: CREATE … PARTITION OF would lock all commits out.
CREATE OR REPLACE FUNCTION holdfast.create_partition(p_part integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('CREATE TABLE holdfast.entry_%s (LIKE holdfast.entry INCLUDING DEFAULTS, CHECK (part = %s))', p_part, p_part);
  EXECUTE format('CREATE UNIQUE INDEX entry_%s_id ON holdfast.entry_%s (stream_id, id)', p_part, p_part);
  EXECUTE format('ALTER TABLE holdfast.entry ATTACH PARTITION holdfast.entry_%s FOR VALUES IN (%s)', p_part, p_part);
END $$;

-- Commits wait for the last two statements only. The caller limits how long it may wait for them (lock_timeout).
CREATE OR REPLACE FUNCTION holdfast.open_partition() RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
  next_part integer;
BEGIN
  -- one opener at a time; readers and committers do not mind
  LOCK TABLE holdfast.entry_partition IN SHARE UPDATE EXCLUSIVE MODE;
  SELECT max(part) + 1 INTO next_part FROM holdfast.entry_partition;
  PERFORM holdfast.create_partition(next_part);
  PERFORM pg_advisory_xact_lock(holdfast.lock_key(0));
  UPDATE holdfast.entry_partition SET closed_at = clock_timestamp() WHERE closed_at IS NULL AND part > 0;
  INSERT INTO holdfast.entry_partition (part) VALUES (next_part);
  RETURN next_part;
END $$;

-- Moves rows to partition 0, all or none; gives how many it found.
CREATE FUNCTION holdfast.keep_entries(p_leader bigint, p_part integer, p_stream bigint, p_ids bytea[]) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
  kept bigint;
BEGIN
  PERFORM holdfast.assert_leader(p_leader);
  UPDATE holdfast.entry SET part = 0 WHERE part = p_part AND stream_id = p_stream AND id = ANY (p_ids);
  GET DIAGNOSTICS kept = ROW_COUNT;
  RETURN kept;
END $$;

-- History that was published again on demand: which, when, under which new IDs.
CREATE TABLE holdfast.replay (
  replay_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  stream_id bigint NOT NULL REFERENCES holdfast.stream ON DELETE CASCADE,
  from_id bytea NOT NULL,
  to_id bytea NOT NULL,
  asked_by text NOT NULL,
  began_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  ended_at timestamptz,
  entries bigint NOT NULL DEFAULT 0,
  first_new_id bytea,
  last_new_id bytea,
  last_error text
);
CREATE INDEX replay_stream ON holdfast.replay (stream_id);
