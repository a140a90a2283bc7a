-- The ledger. Words as in docs/p1-no-acknowledged-loss.md. Entry IDs are 16 bytes, big-endian; stream and group names
-- are binary and of any length, hence the digests in the unique indexes.
--
-- Locks, always taken in this order:
--   lock_key(0)          shared by every commit of entries; exclusive to open a new partition
--   lock_key(stream_id)  shared by every commit to the stream; exclusive to raise its epoch, to match an XADD in doubt,
--                        to publish the last of its backlog
-- Streams of one batch are locked in ascending order.

CREATE FUNCTION holdfast.lock_key(id bigint) RETURNS bigint
  LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT (18502::bigint << 48) + id $$;

CREATE TABLE holdfast.identity (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  ledger uuid NOT NULL DEFAULT gen_random_uuid(),
  created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO holdfast.identity DEFAULT VALUES;

-- The KV store as it was last compared, and the epoch that its witness must carry. Every new leader raises it.
CREATE TABLE holdfast.kv_store (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  epoch bigint NOT NULL DEFAULT 0,
  run_id text,
  replication_id text,
  compared_at timestamptz,
  adopted_at timestamptz
);
INSERT INTO holdfast.kv_store DEFAULT VALUES;

-- Who leads recovery, and when it gave its last sign of life.
CREATE TABLE holdfast.leader (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  epoch bigint NOT NULL DEFAULT 0,
  pid integer,
  name text,
  seen_at timestamptz
);
INSERT INTO holdfast.leader DEFAULT VALUES;

-- One row for each incarnation of a stream. `normal`: the KV store is the sequencer. `outage`: the ledger is, nobody
-- forwards an XADD. `restoring`: a leader rebuilds it. Leaving `normal` raises the epoch.
CREATE TABLE holdfast.stream (
  stream_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  database integer NOT NULL,
  name bytea NOT NULL,
  incarnation bigint NOT NULL DEFAULT 1,
  epoch bigint NOT NULL DEFAULT 1,
  restored_epoch bigint NOT NULL DEFAULT 0,
  mode text NOT NULL DEFAULT 'normal' CHECK (mode IN ('normal', 'outage', 'restoring')),
  mode_cause text,
  mode_since timestamptz,
  -- false until the KV store was seen to have the key: a missing one is no loss then
  present boolean NOT NULL DEFAULT false,
  -- entries that count in entries-added without a row here: added and deleted before anybody looked
  added_base bigint NOT NULL DEFAULT 0,
  -- watermarks of the last good look
  seen_last_id bytea NOT NULL DEFAULT '\x00000000000000000000000000000000',
  seen_added bigint NOT NULL DEFAULT 0,
  max_deleted_id bytea NOT NULL DEFAULT '\x00000000000000000000000000000000',
  -- entries below it were trimmed
  floor_id bytea NOT NULL DEFAULT '\x00000000000000000000000000000000',
  -- up to here every entry of the KV store has a row
  reconciled_id bytea NOT NULL DEFAULT '\x00000000000000000000000000000000',
  -- under maxmemory: entries above it are in the ledger and not in the KV store yet
  window_id bytea,
  expires_at_ms bigint,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  ended_at timestamptz,
  ended_by text
);
CREATE UNIQUE INDEX stream_incarnation ON holdfast.stream (database, sha256(name), incarnation);
CREATE UNIQUE INDEX stream_current ON holdfast.stream (database, sha256(name)) WHERE ended_at IS NULL;
CREATE INDEX stream_troubled ON holdfast.stream (stream_id) WHERE ended_at IS NULL AND mode <> 'normal';

-- What was committed to a stream, counted by writers in slots of their own so that they do not wait for each other.
CREATE TABLE holdfast.stream_progress (
  stream_id bigint NOT NULL REFERENCES holdfast.stream ON DELETE CASCADE,
  slot smallint NOT NULL,
  added bigint NOT NULL,
  last_id bytea NOT NULL,
  PRIMARY KEY (stream_id, slot)
) WITH (fillfactor = 50);

-- Published entries, in partitions by order of ingest: partition 0 keeps survivors of dropped ones, the greatest is
-- written to. An ID is unique within a partition by index; against closed partitions the writer checks the few IDs that
-- are not greater than all IDs there (p_checked below).
CREATE TABLE holdfast.entry (
  stream_id bigint NOT NULL,
  epoch bigint NOT NULL,
  committed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  maxlen bigint,
  part integer NOT NULL,
  observed boolean NOT NULL DEFAULT false,
  id bytea NOT NULL,
  fields bytea NOT NULL
) PARTITION BY LIST (part);

CREATE TABLE holdfast.entry_partition (
  part integer PRIMARY KEY,
  opened_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  closed_at timestamptz
);

CREATE FUNCTION holdfast.create_partition(p_part integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('CREATE TABLE holdfast.entry_%s PARTITION OF holdfast.entry FOR VALUES IN (%s)', p_part, p_part);
  EXECUTE format('CREATE UNIQUE INDEX entry_%s_id ON holdfast.entry_%s (stream_id, id)', p_part, p_part);
  INSERT INTO holdfast.entry_partition (part) VALUES (p_part);
END $$;

CREATE FUNCTION holdfast.open_partition() RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
  next_part integer;
BEGIN
  PERFORM pg_advisory_xact_lock(holdfast.lock_key(0));
  UPDATE holdfast.entry_partition SET closed_at = clock_timestamp() WHERE closed_at IS NULL AND part > 0;
  SELECT max(part) + 1 INTO next_part FROM holdfast.entry_partition;
  PERFORM holdfast.create_partition(next_part);
  RETURN next_part;
END $$;

SELECT holdfast.create_partition(0);
SELECT holdfast.create_partition(1);

-- Accepted by the ledger, not known to be in the KV store: `outage` got its ID here; `late` got it from a KV store of an
-- earlier epoch. In doubt: the XADD was on its way when its connection broke, so it may be in the KV store under some
-- ID above after_id.
CREATE TABLE holdfast.backlog (
  stream_id bigint NOT NULL REFERENCES holdfast.stream ON DELETE CASCADE,
  id bytea NOT NULL,
  kind text NOT NULL CHECK (kind IN ('outage', 'late')),
  in_doubt boolean NOT NULL DEFAULT false,
  after_id bytea,
  -- the connection that broke: its bytes can still land until the KV store is told to close it
  kv_client_id bigint,
  kv_run_id text,
  maxlen bigint,
  accepted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  fields bytea NOT NULL,
  PRIMARY KEY (stream_id, id)
);
CREATE SEQUENCE holdfast.outage_sequence START 1099511627776;

-- An event that clients know under `id` lives under `published_id` since `epoch`.
CREATE TABLE holdfast.alias (
  stream_id bigint NOT NULL REFERENCES holdfast.stream ON DELETE CASCADE,
  id bytea NOT NULL,
  published_id bytea NOT NULL,
  epoch bigint NOT NULL,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (stream_id, id, epoch)
);

CREATE TABLE holdfast.consumer_group (
  group_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  stream_id bigint NOT NULL REFERENCES holdfast.stream ON DELETE CASCADE,
  name bytea NOT NULL,
  generation bigint NOT NULL DEFAULT 1,
  -- everything at or below it is acknowledged
  checkpoint_id bytea NOT NULL,
  last_delivered_id bytea NOT NULL,
  -- the greatest last-delivered-id ever, restores included: an acknowledgement up to it can be one of an old delivery
  ever_delivered_id bytea NOT NULL DEFAULT '\x00000000000000000000000000000000',
  entries_read bigint,
  -- XGROUP SETID or DESTROY is on its way: what a look sees of this group proves nothing
  changing boolean NOT NULL DEFAULT false,
  changing_since timestamptz,
  checkpointed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  progressed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  ended_at timestamptz
);
CREATE UNIQUE INDEX consumer_group_current ON holdfast.consumer_group (stream_id, sha256(name)) WHERE ended_at IS NULL;

-- Acknowledgements above the checkpoint: as they passed through (IDs concatenated, one row for each flush) …
CREATE TABLE holdfast.acknowledgement (
  acknowledgement_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  group_id bigint NOT NULL REFERENCES holdfast.consumer_group ON DELETE CASCADE,
  max_id bytea NOT NULL,
  ids bytea NOT NULL,
  recorded_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX acknowledgement_group ON holdfast.acknowledgement (group_id, max_id);

-- … and as pages of the pending entries list: of what lies in (from_id, to_id], everything but `ids` is acknowledged.
CREATE TABLE holdfast.pending_page (
  group_id bigint NOT NULL REFERENCES holdfast.consumer_group ON DELETE CASCADE,
  from_id bytea NOT NULL,
  to_id bytea NOT NULL,
  ids bytea NOT NULL,
  recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (group_id, to_id)
);

-- What clients will to reshape, committed before the command is forwarded, settled by its reply.
CREATE TABLE holdfast.intention (
  intention_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  stream_id bigint NOT NULL REFERENCES holdfast.stream ON DELETE CASCADE,
  kind text NOT NULL CHECK (kind IN ('delete', 'end')),
  command text NOT NULL,
  ids bytea,
  owner text NOT NULL,
  -- the connection broke before the reply
  doubted boolean NOT NULL DEFAULT false,
  opened_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX intention_stream ON holdfast.intention (stream_id);

-- Entries that clients deleted, until no restore can ask for them any more.
CREATE TABLE holdfast.deletion (
  stream_id bigint NOT NULL REFERENCES holdfast.stream ON DELETE CASCADE,
  id bytea NOT NULL,
  PRIMARY KEY (stream_id, id)
);

CREATE TABLE holdfast.recovery (
  recovery_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  stream_id bigint NOT NULL REFERENCES holdfast.stream ON DELETE CASCADE,
  epoch bigint NOT NULL,
  cause text NOT NULL,
  noticed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  began_at timestamptz,
  completed_at timestamptz,
  attempts integer NOT NULL DEFAULT 0,
  entries_restored bigint NOT NULL DEFAULT 0,
  entries_merged bigint NOT NULL DEFAULT 0,
  aliases bigint NOT NULL DEFAULT 0,
  possible_duplicates bigint NOT NULL DEFAULT 0,
  windowed boolean NOT NULL DEFAULT false,
  last_error text
);
CREATE INDEX recovery_open ON holdfast.recovery (stream_id) WHERE completed_at IS NULL;

-- The worker's count of attempts, which a restore must not forget.
CREATE TABLE holdfast.attempt (
  stream_id bigint NOT NULL REFERENCES holdfast.stream ON DELETE CASCADE,
  id bytea NOT NULL,
  group_name bytea NOT NULL,
  attempts integer NOT NULL DEFAULT 0,
  takeovers integer NOT NULL DEFAULT 0,
  failed_at timestamptz,
  updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (stream_id, id, group_name)
);

-- Commits a batch of entries that the KV store gave IDs to, all or none. Gives no row when all of them are committed
-- (again: the same ID with the same fields is the same event). Otherwise:
--   partition  nothing was done: p_part is closed by now
--   stale      nothing was done: `item` is a stream whose epoch moved, or which ended
--   conflict   `item` is the position (from 1) of a row whose ID holds other fields; the rest is committed
-- p_stream … p_maxlen describe the entries, p_streams … p_lasts their streams: distinct, ascending.
CREATE FUNCTION holdfast.commit_entries(
  p_part integer, p_slot smallint, p_observed boolean, p_checked boolean,
  p_stream bigint[], p_id bytea[], p_epoch bigint[], p_fields bytea[], p_maxlen bigint[],
  p_streams bigint[], p_epochs bigint[], p_lasts bytea[]
) RETURNS TABLE (outcome text, item bigint) LANGUAGE plpgsql AS $$
DECLARE
  locked bigint;
  inserted bigint;
BEGIN
  PERFORM pg_advisory_xact_lock_shared(holdfast.lock_key(0));
  FOREACH locked IN ARRAY p_streams LOOP
    IF p_checked THEN
      PERFORM pg_advisory_xact_lock(holdfast.lock_key(locked));
    ELSE
      PERFORM pg_advisory_xact_lock_shared(holdfast.lock_key(locked));
    END IF;
  END LOOP;
  IF p_part <> (SELECT max(part) FROM holdfast.entry_partition) THEN
    RETURN QUERY SELECT 'partition', NULL::bigint;
    RETURN;
  END IF;
  RETURN QUERY
    SELECT 'stale', named.stream_id
      FROM unnest(p_streams, p_epochs) AS named (stream_id, epoch)
      LEFT JOIN holdfast.stream AS stream USING (stream_id)
     WHERE stream.epoch IS DISTINCT FROM named.epoch OR stream.ended_at IS NOT NULL;
  IF FOUND THEN
    RETURN;
  END IF;

  WITH added AS (
    INSERT INTO holdfast.entry (part, stream_id, id, epoch, observed, maxlen, fields)
    SELECT p_part, given.stream_id, given.id, given.epoch, p_observed, given.maxlen, given.fields
      FROM unnest(p_stream, p_id, p_epoch, p_fields, p_maxlen) AS given (stream_id, id, epoch, fields, maxlen)
     WHERE NOT p_checked
        OR NOT EXISTS (SELECT FROM holdfast.entry AS old WHERE old.stream_id = given.stream_id AND old.id = given.id)
    ON CONFLICT DO NOTHING
    RETURNING stream_id
  ), counted AS (
    SELECT stream_id, count(*) AS entries FROM added GROUP BY stream_id
  ), progressed AS (
    INSERT INTO holdfast.stream_progress AS progress (stream_id, slot, added, last_id)
    SELECT named.stream_id, p_slot, coalesce(counted.entries, 0), named.last_id
      FROM unnest(p_streams, p_lasts) AS named (stream_id, last_id)
      LEFT JOIN counted USING (stream_id)
    ON CONFLICT (stream_id, slot) DO UPDATE
      SET added = progress.added + excluded.added, last_id = GREATEST(progress.last_id, excluded.last_id)
  )
  SELECT coalesce(sum(entries), 0) INTO inserted FROM counted;

  IF inserted < cardinality(p_id) THEN
    IF NOT p_observed THEN
      UPDATE holdfast.entry AS old SET observed = false
        FROM unnest(p_stream, p_id, p_fields) AS given (stream_id, id, fields)
       WHERE old.stream_id = given.stream_id AND old.id = given.id AND old.observed AND old.fields = given.fields;
    END IF;
    RETURN QUERY
      SELECT 'conflict', given.position
        FROM unnest(p_stream, p_id, p_fields) WITH ORDINALITY AS given (stream_id, id, fields, position)
        JOIN holdfast.entry AS old ON old.stream_id = given.stream_id AND old.id = given.id
       WHERE old.fields <> given.fields;
  END IF;
END $$;

-- Entries whose stream moved on since the KV store gave the ID. For each: `committed` (the ledger has that very entry),
-- `late` (in the backlog now, to be published again before the client hears), `ended` (the incarnation is over).
CREATE FUNCTION holdfast.commit_late(p_stream bigint[], p_id bytea[], p_fields bytea[], p_maxlen bigint[])
RETURNS TABLE (item bigint, outcome text) LANGUAGE plpgsql AS $$
DECLARE
  locked bigint;
BEGIN
  FOR locked IN SELECT DISTINCT stream_id FROM unnest(p_stream) AS named (stream_id) ORDER BY stream_id LOOP
    PERFORM pg_advisory_xact_lock_shared(holdfast.lock_key(locked));
  END LOOP;
  RETURN QUERY
  WITH given AS (
    SELECT * FROM unnest(p_stream, p_id, p_fields, p_maxlen) WITH ORDINALITY
      AS given (stream_id, id, fields, maxlen, position)
  ), judged AS (
    SELECT given.*,
           CASE
             WHEN stream.stream_id IS NULL OR stream.ended_at IS NOT NULL THEN 'ended'
             WHEN EXISTS (SELECT FROM holdfast.entry AS old
                           WHERE old.stream_id = given.stream_id AND old.id = given.id AND old.fields = given.fields)
               THEN 'committed'
             ELSE 'late'
           END AS verdict
      FROM given LEFT JOIN holdfast.stream AS stream USING (stream_id)
  ), kept AS (
    INSERT INTO holdfast.backlog (stream_id, id, kind, maxlen, fields)
    SELECT stream_id, id, 'late', maxlen, fields FROM judged WHERE verdict = 'late'
    ON CONFLICT (stream_id, id) DO NOTHING
  )
  SELECT position, verdict FROM judged;
  PERFORM pg_notify('holdfast', 'backlog');
END $$;

-- XADD without the KV store: gives the ID, or a null one where the stream is back to normal (forward it then). A
-- requested ID that is not above everything known gives 0-0, the servers' "equal or smaller" error. p_requested:
-- null for `*`, 8 bytes for `ms-*`, 16 for a whole ID.
CREATE FUNCTION holdfast.accept_entries(
  p_stream bigint[], p_requested bytea[], p_fields bytea[], p_maxlen bigint[], p_after bytea[], p_client bigint[],
  p_run text[]
) RETURNS TABLE (item bigint, id bytea) LANGUAGE plpgsql AS $$
DECLARE
  locked bigint;
  given record;
  current_mode text;
  top bytea;
  given_id bytea;
  clock_ms bigint;
BEGIN
  FOR locked IN SELECT DISTINCT stream_id FROM unnest(p_stream) AS named (stream_id) ORDER BY stream_id LOOP
    PERFORM pg_advisory_xact_lock_shared(holdfast.lock_key(locked));
  END LOOP;
  locked := NULL;
  FOR given IN
    SELECT * FROM unnest(p_stream, p_requested, p_fields, p_maxlen, p_after, p_client, p_run) WITH ORDINALITY
      AS given (stream_id, requested, fields, maxlen, after_id, kv_client_id, kv_run_id, position)
     ORDER BY stream_id, position
  LOOP
    IF locked IS DISTINCT FROM given.stream_id THEN
      locked := given.stream_id;
      SELECT CASE WHEN stream.ended_at IS NULL THEN stream.mode END,
             GREATEST(
               stream.seen_last_id,
               (SELECT last_id FROM holdfast.stream_progress AS progress
                 WHERE progress.stream_id = stream.stream_id ORDER BY last_id DESC LIMIT 1),
               (SELECT backlog.id FROM holdfast.backlog WHERE backlog.stream_id = stream.stream_id
                 ORDER BY backlog.id DESC LIMIT 1))
        INTO current_mode, top
        FROM holdfast.stream AS stream WHERE stream.stream_id = locked;
    END IF;
    IF current_mode IS NULL OR current_mode = 'normal' THEN
      RETURN QUERY SELECT given.position, NULL::bytea;
      CONTINUE;
    END IF;
    IF octet_length(given.requested) = 16 THEN
      given_id := given.requested;
    ELSIF octet_length(given.requested) = 8 THEN
      given_id := given.requested || int8send(nextval('holdfast.outage_sequence'));
    ELSE
      clock_ms := floor(extract(epoch FROM clock_timestamp()) * 1000);
      given_id := GREATEST(int8send(clock_ms), substr(top, 1, 8)) || int8send(nextval('holdfast.outage_sequence'));
    END IF;
    -- the last ms of the stream may carry a greater sequence than ours, after explicit IDs: the next ms then
    IF given.requested IS NULL AND given_id <= top THEN
      given_id := int8send(('x' || encode(substr(top, 1, 8), 'hex'))::bit(64)::bigint + 1)
        || int8send(nextval('holdfast.outage_sequence'));
    END IF;
    IF given_id <= top THEN
      RETURN QUERY SELECT given.position, '\x00000000000000000000000000000000'::bytea;
      CONTINUE;
    END IF;
    INSERT INTO holdfast.backlog (stream_id, id, kind, in_doubt, after_id, kv_client_id, kv_run_id, maxlen,
                                  fields)
    VALUES (given.stream_id, given_id, 'outage', given.after_id IS NOT NULL, given.after_id, given.kv_client_id,
            given.kv_run_id, given.maxlen, given.fields);
    top := given_id;
    RETURN QUERY SELECT given.position, given_id;
  END LOOP;
  PERFORM pg_notify('holdfast', 'backlog');
END $$;

-- Leaves `normal` for `outage` or `restoring`; gives the new epoch, or nothing where the epoch moved meanwhile or the
-- stream is restoring already. A restore may follow an outage, not the other way round. p_looked_at: when the look began
-- that found the loss; what clients have changed on purpose since then is none.
CREATE FUNCTION holdfast.raise_epoch(
  p_stream bigint, p_epoch bigint, p_mode text, p_cause text, p_looked_at timestamptz
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  raised bigint;
BEGIN
  PERFORM pg_advisory_xact_lock(holdfast.lock_key(p_stream));
  UPDATE holdfast.stream
     SET epoch = epoch + 1, mode = p_mode, mode_cause = p_cause, mode_since = clock_timestamp()
   WHERE stream_id = p_stream AND epoch = p_epoch AND ended_at IS NULL
     AND (mode = 'normal' OR (mode = 'outage' AND p_mode = 'restoring'))
     AND (p_looked_at IS NULL OR NOT EXISTS (
       SELECT FROM holdfast.intention WHERE intention.stream_id = p_stream AND kind = 'end'
       UNION ALL
       SELECT FROM holdfast.consumer_group AS g
        WHERE g.stream_id = p_stream AND (g.changing OR g.ended_at > p_looked_at)))
  RETURNING epoch INTO raised;
  IF raised IS NOT NULL THEN
    IF p_mode = 'restoring' THEN
      INSERT INTO holdfast.recovery (stream_id, epoch, cause) VALUES (p_stream, raised, p_cause);
    END IF;
    PERFORM pg_notify('holdfast', 'stream ' || p_stream);
  END IF;
  RETURN raised;
END $$;

-- Raises the fencing epoch for a new leader; from then on the previous one's writes here and in the KV store fail.
CREATE FUNCTION holdfast.lead(p_name text) RETURNS bigint LANGUAGE sql AS $$
  UPDATE holdfast.leader SET seen_at = clock_timestamp();
  WITH raised AS (
    UPDATE holdfast.kv_store SET epoch = epoch + 1 RETURNING epoch
  )
  UPDATE holdfast.leader SET epoch = raised.epoch, pid = pg_backend_pid(), name = p_name, seen_at = clock_timestamp()
    FROM raised
  RETURNING raised.epoch
$$;

-- First statement of whatever a leader writes: fails where another one leads by now, and keeps a new one waiting until
-- this transaction is over.
CREATE FUNCTION holdfast.assert_leader(p_epoch bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM holdfast.kv_store WHERE epoch = p_epoch FOR SHARE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'another sidecar leads' USING ERRCODE = 'HF001';
  END IF;
END $$;

-- Turns backlog rows that are in the KV store now into entries.
CREATE FUNCTION holdfast.publish_backlog(p_leader bigint, p_slot smallint, p_stream bigint, p_ids bytea[])
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  inserted bigint;
BEGIN
  PERFORM holdfast.assert_leader(p_leader);
  PERFORM pg_advisory_xact_lock_shared(holdfast.lock_key(0));
  WITH moved AS (
    DELETE FROM holdfast.backlog WHERE stream_id = p_stream AND id = ANY (p_ids)
    RETURNING id, maxlen, fields
  ), added AS (
    INSERT INTO holdfast.entry (part, stream_id, id, epoch, maxlen, fields)
    SELECT (SELECT max(part) FROM holdfast.entry_partition), p_stream, moved.id,
           (SELECT epoch FROM holdfast.stream WHERE stream_id = p_stream), moved.maxlen, moved.fields
      FROM moved
     WHERE NOT EXISTS (SELECT FROM holdfast.entry AS old WHERE old.stream_id = p_stream AND old.id = moved.id)
    ON CONFLICT DO NOTHING
    RETURNING id
  )
  SELECT count(*) INTO inserted FROM added;
  INSERT INTO holdfast.stream_progress AS progress (stream_id, slot, added, last_id)
  SELECT p_stream, p_slot, inserted, (SELECT id FROM unnest(p_ids) AS given (id) ORDER BY id DESC LIMIT 1)
  ON CONFLICT (stream_id, slot) DO UPDATE
    SET added = progress.added + excluded.added, last_id = GREATEST(progress.last_id, excluded.last_id);
  UPDATE holdfast.stream SET present = true WHERE stream_id = p_stream AND NOT present;
  PERFORM pg_notify('holdfast', 'published ' || p_stream);
END $$;

-- Gives a backlog row another ID, known before it is published so that doing it twice changes nothing.
CREATE FUNCTION holdfast.alias_backlog(p_leader bigint, p_stream bigint, p_ids bytea[], p_new_ids bytea[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM holdfast.assert_leader(p_leader);
  UPDATE holdfast.alias SET published_id = given.new_id
    FROM unnest(p_ids, p_new_ids) AS given (id, new_id)
   WHERE alias.stream_id = p_stream AND alias.published_id = given.id;
  INSERT INTO holdfast.alias (stream_id, id, published_id, epoch)
  SELECT p_stream, given.id, given.new_id, stream.epoch
    FROM unnest(p_ids, p_new_ids) AS given (id, new_id), holdfast.stream
   WHERE stream.stream_id = p_stream
  ON CONFLICT (stream_id, id, epoch) DO UPDATE SET published_id = excluded.published_id;
  UPDATE holdfast.backlog SET id = given.new_id
    FROM unnest(p_ids, p_new_ids) AS given (id, new_id)
   WHERE backlog.stream_id = p_stream AND backlog.id = given.id;
END $$;

-- The same for an entry whose ID the KV store has given to another one.
CREATE FUNCTION holdfast.alias_entry(p_leader bigint, p_stream bigint, p_id bytea, p_new_id bytea)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM holdfast.assert_leader(p_leader);
  UPDATE holdfast.alias SET published_id = p_new_id WHERE stream_id = p_stream AND published_id = p_id;
  INSERT INTO holdfast.alias (stream_id, id, published_id, epoch)
  SELECT p_stream, p_id, p_new_id, epoch FROM holdfast.stream WHERE stream_id = p_stream
  ON CONFLICT (stream_id, id, epoch) DO UPDATE SET published_id = excluded.published_id;
  UPDATE holdfast.entry SET id = p_new_id WHERE stream_id = p_stream AND id = p_id;
END $$;

-- Rows are in the KV store under p_found: they are those entries.
CREATE FUNCTION holdfast.claim_backlog(p_leader bigint, p_slot smallint, p_stream bigint, p_ids bytea[], p_found bytea[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM holdfast.alias_backlog(p_leader, p_stream, p_ids, p_found);
  UPDATE holdfast.entry SET observed = false WHERE stream_id = p_stream AND id = ANY (p_found) AND observed;
  PERFORM holdfast.publish_backlog(p_leader, p_slot, p_stream, p_found);
END $$;

-- The restore of p_epoch is complete: back to normal, or on to the backlog that gathered meanwhile.
CREATE FUNCTION holdfast.complete_restore(
  p_leader bigint, p_stream bigint, p_epoch bigint, p_last bytea, p_added bigint, p_window bytea,
  p_restored bigint, p_merged bigint, p_aliases bigint
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  next_mode text;
BEGIN
  PERFORM holdfast.assert_leader(p_leader);
  PERFORM pg_advisory_xact_lock(holdfast.lock_key(p_stream));
  SELECT CASE WHEN p_window IS NOT NULL
                OR EXISTS (SELECT FROM holdfast.backlog WHERE stream_id = p_stream) THEN 'outage' ELSE 'normal' END
    INTO next_mode;
  UPDATE holdfast.stream
     SET mode = next_mode, mode_since = clock_timestamp(), restored_epoch = p_epoch, present = true,
         window_id = p_window, seen_last_id = GREATEST(seen_last_id, p_last), seen_added = GREATEST(seen_added, p_added)
   WHERE stream_id = p_stream AND epoch = p_epoch AND mode = 'restoring';
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  -- what the side key's groups were created with; a look before the first read must not take it for a loss
  UPDATE holdfast.consumer_group
     SET ever_delivered_id = GREATEST(ever_delivered_id, last_delivered_id), last_delivered_id = checkpoint_id
   WHERE stream_id = p_stream AND ended_at IS NULL;
  UPDATE holdfast.recovery
     SET completed_at = clock_timestamp(), entries_restored = p_restored, entries_merged = p_merged,
         aliases = p_aliases, windowed = p_window IS NOT NULL, last_error = NULL
   WHERE stream_id = p_stream AND completed_at IS NULL;
  PERFORM pg_notify('holdfast', 'stream ' || p_stream);
  RETURN true;
END $$;

-- The outage is over once nothing waits any more; the caller holds the stream's lock.
CREATE FUNCTION holdfast.end_outage(p_leader bigint, p_stream bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  PERFORM holdfast.assert_leader(p_leader);
  UPDATE holdfast.stream SET mode = 'normal', mode_since = clock_timestamp()
   WHERE stream_id = p_stream AND mode = 'outage' AND window_id IS NULL
     AND NOT EXISTS (SELECT FROM holdfast.backlog WHERE stream_id = p_stream);
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  PERFORM pg_notify('holdfast', 'stream ' || p_stream);
  RETURN true;
END $$;

-- What became of a group: p_replace ends its present generation; a null p_checkpoint says that there is none now.
CREATE FUNCTION holdfast.settle_group(
  p_stream bigint, p_name bytea, p_replace boolean, p_checkpoint bytea, p_delivered bytea, p_read bigint
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF p_replace THEN
    UPDATE holdfast.consumer_group SET ended_at = clock_timestamp(), changing = false
     WHERE stream_id = p_stream AND name = p_name AND ended_at IS NULL;
  END IF;
  IF p_checkpoint IS NOT NULL THEN
    INSERT INTO holdfast.consumer_group (stream_id, name, generation, checkpoint_id, last_delivered_id, entries_read)
    SELECT p_stream, p_name, coalesce(max(generation), 0) + 1, p_checkpoint, p_delivered, p_read
      FROM holdfast.consumer_group WHERE stream_id = p_stream AND name = p_name
    ON CONFLICT DO NOTHING;
    UPDATE holdfast.stream SET present = true WHERE stream_id = p_stream AND NOT present;
  END IF;
  PERFORM pg_notify('holdfast', 'stream ' || p_stream);
END $$;

CREATE FUNCTION holdfast.end_stream(p_stream bigint, p_command text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(holdfast.lock_key(p_stream));
  UPDATE holdfast.stream SET ended_at = clock_timestamp(), ended_by = p_command
   WHERE stream_id = p_stream AND ended_at IS NULL;
  IF FOUND THEN
    UPDATE holdfast.recovery SET completed_at = clock_timestamp(), last_error = 'the stream ended: ' || p_command
     WHERE stream_id = p_stream AND completed_at IS NULL;
    PERFORM pg_notify('holdfast', 'stream ' || p_stream);
  END IF;
END $$;

-- The stream has another name now; the stream that had it is over. Its epoch rises, as an XADD that is on its way may
-- have been executed under either name.
CREATE FUNCTION holdfast.move_stream(p_stream bigint, p_database integer, p_name bytea) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(holdfast.lock_key(p_stream));
  UPDATE holdfast.stream
     SET database = p_database, name = p_name, epoch = epoch + 1, expires_at_ms = NULL,
         incarnation = 1 + coalesce((SELECT max(old.incarnation) FROM holdfast.stream AS old
                                      WHERE old.database = p_database AND sha256(old.name) = sha256(p_name)), 0)
   WHERE stream_id = p_stream AND ended_at IS NULL;
  PERFORM pg_notify('holdfast', 'stream ' || p_stream);
END $$;

CREATE FUNCTION holdfast.settle_swap(p_intentions bigint[], p_first integer, p_second integer) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  moving record;
  others record;
BEGIN
  DELETE FROM holdfast.intention WHERE intention_id = ANY (p_intentions);
  -- Through a database that no server has, since both may know the same name.
  FOR moving IN
    SELECT stream_id, name FROM holdfast.stream WHERE database = p_first AND ended_at IS NULL ORDER BY stream_id
  LOOP
    PERFORM holdfast.move_stream(moving.stream_id, -1, moving.name);
  END LOOP;
  FOR others IN
    SELECT stream_id, name FROM holdfast.stream WHERE database = p_second AND ended_at IS NULL ORDER BY stream_id
  LOOP
    PERFORM holdfast.move_stream(others.stream_id, p_first, others.name);
  END LOOP;
  FOR moving IN
    SELECT stream_id, name FROM holdfast.stream WHERE database = -1 AND ended_at IS NULL ORDER BY stream_id
  LOOP
    PERFORM holdfast.move_stream(moving.stream_id, p_second, moving.name);
  END LOOP;
END $$;

-- XSETID: the stream goes on with other watermarks.
CREATE FUNCTION holdfast.settle_xsetid(
  p_intentions bigint[], p_stream bigint, p_last bytea, p_added bigint, p_max_deleted bytea
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM holdfast.intention WHERE intention_id = ANY (p_intentions);
  PERFORM pg_advisory_xact_lock(holdfast.lock_key(p_stream));
  UPDATE holdfast.stream_progress SET last_id = LEAST(last_id, p_last) WHERE stream_id = p_stream;
  UPDATE holdfast.stream
     SET epoch = epoch + 1, seen_last_id = p_last, max_deleted_id = p_max_deleted, seen_added = p_added,
         added_base = p_added - coalesce((SELECT sum(added) FROM holdfast.stream_progress AS progress
                                           WHERE progress.stream_id = p_stream), 0)
   WHERE stream_id = p_stream AND ended_at IS NULL;
  PERFORM pg_notify('holdfast', 'stream ' || p_stream);
END $$;

-- Opens intentions to end incarnations: of p_streams, or of those in p_database, or of all where both are null. If one of
-- them is in trouble none is opened and it is given with a null number. A restore that begins later sees the intention,
-- as it takes the stream's lock exclusively first.
CREATE FUNCTION holdfast.open_end(p_streams bigint[], p_database integer, p_command text, p_owner text)
RETURNS TABLE (intention_id bigint, stream_id bigint) LANGUAGE plpgsql AS $$
DECLARE
  chosen bigint[];
  locked bigint;
BEGIN
  SELECT coalesce(array_agg(s.stream_id ORDER BY s.stream_id), '{}') INTO chosen
    FROM holdfast.stream AS s
   WHERE s.ended_at IS NULL AND (p_streams IS NULL OR s.stream_id = ANY (p_streams))
     AND (p_database IS NULL OR s.database = p_database);
  FOREACH locked IN ARRAY chosen LOOP
    PERFORM pg_advisory_xact_lock_shared(holdfast.lock_key(locked));
  END LOOP;
  RETURN QUERY
    SELECT NULL::bigint, s.stream_id FROM holdfast.stream AS s
     WHERE s.stream_id = ANY (chosen) AND s.ended_at IS NULL AND s.mode <> 'normal' LIMIT 1;
  IF FOUND THEN
    RETURN;
  END IF;
  RETURN QUERY
    INSERT INTO holdfast.intention AS i (stream_id, kind, command, owner)
    SELECT s.stream_id, 'end', p_command, p_owner FROM holdfast.stream AS s
     WHERE s.stream_id = ANY (chosen) AND s.ended_at IS NULL
    RETURNING i.intention_id, i.stream_id;
END $$;

-- Entries of an ended incarnation that belong to the next one: that of p_successor, or of the same name, begun here where
-- there is none yet.
CREATE FUNCTION holdfast.hand_over(p_stream bigint, p_successor bigint, p_ids bytea[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  heir bigint := p_successor;
  moved bigint;
BEGIN
  IF heir IS NULL THEN
    INSERT INTO holdfast.stream (database, name, incarnation, present)
    SELECT database, name, 1 + (SELECT max(old.incarnation) FROM holdfast.stream AS old
                                 WHERE old.database = stream.database AND sha256(old.name) = sha256(stream.name)), true
      FROM holdfast.stream WHERE stream_id = p_stream
    ON CONFLICT DO NOTHING;
    SELECT next.stream_id INTO heir
      FROM holdfast.stream AS ended
      JOIN holdfast.stream AS next ON next.database = ended.database AND sha256(next.name) = sha256(ended.name)
     WHERE ended.stream_id = p_stream AND next.ended_at IS NULL;
  END IF;
  UPDATE holdfast.entry SET stream_id = heir
   WHERE stream_id = p_stream AND id = ANY (p_ids)
     AND NOT EXISTS (SELECT FROM holdfast.entry AS old WHERE old.stream_id = heir AND old.id = entry.id);
  GET DIAGNOSTICS moved = ROW_COUNT;
  INSERT INTO holdfast.stream_progress AS progress (stream_id, slot, added, last_id)
  SELECT heir, 64, moved, (SELECT id FROM unnest(p_ids) AS given (id) ORDER BY id DESC LIMIT 1)
  ON CONFLICT (stream_id, slot) DO UPDATE
    SET added = progress.added + excluded.added, last_id = GREATEST(progress.last_id, excluded.last_id);
  PERFORM pg_notify('holdfast', 'stream ' || heir);
END $$;

-- A page of a group's pending entries list replaces what was recorded of its range, acknowledgements of before the pass
-- included. A page that overlaps only in part keeps its other part.
CREATE FUNCTION holdfast.record_pending_page(
  p_leader bigint, p_stream bigint, p_epoch bigint, p_group bigint, p_from bytea, p_to bytea, p_ids bytea,
  p_pass_started timestamptz
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM holdfast.assert_leader(p_leader);
  PERFORM FROM holdfast.stream JOIN holdfast.consumer_group USING (stream_id)
    WHERE stream_id = p_stream AND stream.epoch = p_epoch AND stream.ended_at IS NULL
      AND group_id = p_group AND consumer_group.ended_at IS NULL AND NOT changing
      FOR SHARE OF stream;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  DELETE FROM holdfast.pending_page WHERE group_id = p_group AND to_id > p_from AND to_id <= p_to;
  UPDATE holdfast.pending_page SET from_id = p_to WHERE group_id = p_group AND from_id < p_to AND to_id > p_to;
  INSERT INTO holdfast.pending_page (group_id, from_id, to_id, ids) VALUES (p_group, p_from, p_to, p_ids);
  DELETE FROM holdfast.acknowledgement
   WHERE group_id = p_group AND max_id <= p_to AND recorded_at < p_pass_started;
END $$;
