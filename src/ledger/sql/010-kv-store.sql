-- The ledger knows its KV store: which server each sidecar of this ledger compared last. A sidecar that starts in front of
-- another server, while one that lives compares its own, would restore the one's streams into the other.
-- `joined`: who came first. Rows of sidecars that are gone are told by `seen_at`, on Postgres's clock.
CREATE TABLE holdfast.sidecar (
  owner text PRIMARY KEY,
  joined bigint GENERATED ALWAYS AS IDENTITY,
  name text NOT NULL,
  kv_address text NOT NULL,
  run_id text NOT NULL,
  replication_id text NOT NULL,
  -- of the primary whose replica this server was before it became one: empty where it was none
  previous_replication_id text NOT NULL,
  seen_at timestamptz NOT NULL
);

-- Whether the KV store let in clients that do not log in, when it was compared last: for a start while it is down.
ALTER TABLE holdfast.kv_store ADD COLUMN admits_nobody boolean NOT NULL DEFAULT false;

-- Takes note of the server that a sidecar is about to compare, and gives Postgres's time. `renewed`: since when it counts.
CREATE FUNCTION holdfast.note_kv(
  p_owner text, p_name text, p_address text, p_run_id text, p_replication_id text, p_previous text
) RETURNS timestamptz LANGUAGE sql AS $$
  INSERT INTO holdfast.sidecar AS own (owner, name, kv_address, run_id, replication_id, previous_replication_id, seen_at)
  VALUES (p_owner, p_name, p_address, p_run_id, p_replication_id, p_previous, clock_timestamp())
  ON CONFLICT (owner) DO UPDATE
    SET kv_address = p_address, run_id = p_run_id, replication_id = p_replication_id, previous_replication_id = p_previous,
        seen_at = clock_timestamp()
  RETURNING own.seen_at
$$;

-- A sidecar that came before `p_owner`, lives, and has another server as its KV store: neither the same process, nor one
-- that replicates the same history, as a replica that was promoted does.
CREATE FUNCTION holdfast.other_kv(p_owner text, p_fresh_ms integer)
RETURNS TABLE (name text, kv_address text, run_id text) LANGUAGE sql AS $$
  SELECT other.name, other.kv_address, other.run_id
    FROM holdfast.sidecar AS own
    JOIN holdfast.sidecar AS other ON other.joined < own.joined
   WHERE own.owner = p_owner
     AND other.seen_at > clock_timestamp() - p_fresh_ms * interval '1 millisecond'
     AND other.run_id <> own.run_id
     AND other.replication_id NOT IN (own.replication_id, own.previous_replication_id)
     AND own.replication_id <> other.previous_replication_id
   ORDER BY other.joined
   LIMIT 1
$$;
