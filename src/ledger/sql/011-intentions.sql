-- An intention says what may have happened, and under which server: `ends` whether the command can end a stream at all, the run and
-- replication IDs of the KV store when it was sent. Only where both are the same still does the absence of a key, or of an entry, prove that
-- the command was executed; after a restart or a failover it proves a loss. Rows of before have neither and prove nothing.
ALTER TABLE holdfast.intention
  ADD COLUMN ends boolean NOT NULL DEFAULT true,
  ADD COLUMN sent_run_id text,
  ADD COLUMN sent_replication_id text,
  -- of one opening: its owner cancels by it what it never heard of
  ADD COLUMN opening uuid;
CREATE INDEX intention_opening ON holdfast.intention (opening) WHERE opening IS NOT NULL;

-- Second half of an opening, in the same statement.
CREATE FUNCTION holdfast.describe_intentions(
  p_ids bigint[], p_ends boolean, p_run_id text, p_replication_id text, p_opening uuid
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE holdfast.intention
     SET ends = p_ends, sent_run_id = p_run_id, sent_replication_id = p_replication_id, opening = p_opening
   WHERE intention_id = ANY (p_ids);
END $$;
