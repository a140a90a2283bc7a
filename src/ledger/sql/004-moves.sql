-- RENAME, MOVE and SWAPDB: a stream goes on in another place. While the move is on its way or in doubt its intention says
-- where to, so that whoever settles it later can look there, and nobody takes what stands there for a stream of its own.
--
--   open_moves ─▶ command ─▶ lock_moving ─▶ hand_over of what stood at the target ─▶ settle_moves
--
-- A move shares its streams with no other intention to end or move them: their order in the KV store would be unknown here.
ALTER TABLE holdfast.intention
  -- of one command: settled together
  ADD COLUMN change_id bigint,
  -- set for a stream that moves; null for one whose place is taken
  ADD COLUMN target_database integer,
  ADD COLUMN target_name bytea,
  -- the connection that broke before the reply: its bytes can still land until the KV store is told to close it
  ADD COLUMN kv_client_id bigint,
  ADD COLUMN kv_run_id text;
CREATE INDEX intention_target ON holdfast.intention (target_database, sha256(target_name));

-- As before, but that none is opened, and a stream given with a null number, where one of them is about to move.
CREATE OR REPLACE FUNCTION holdfast.open_end(p_streams bigint[], p_database integer, p_command text, p_owner text)
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
     WHERE s.stream_id = ANY (chosen) AND s.ended_at IS NULL
       AND (s.mode <> 'normal' OR EXISTS (
         SELECT FROM holdfast.intention AS i WHERE i.stream_id = s.stream_id AND i.change_id IS NOT NULL)) LIMIT 1;
  IF FOUND THEN
    RETURN;
  END IF;
  RETURN QUERY
    INSERT INTO holdfast.intention AS i (stream_id, kind, command, owner)
    SELECT s.stream_id, 'end', p_command, p_owner FROM holdfast.stream AS s
     WHERE s.stream_id = ANY (chosen) AND s.ended_at IS NULL
    RETURNING i.intention_id, i.stream_id;
END $$;

-- Opens the intention to move streams to other places, and to end those whose places they take. Opens none, and gives a
-- stream with a null number, where one of them is in trouble or another intention to end or move it is open.
CREATE FUNCTION holdfast.open_moves(
  p_streams bigint[], p_databases integer[], p_names bytea[], p_command text, p_owner text
) RETURNS TABLE (intention_id bigint, stream_id bigint) LANGUAGE plpgsql AS $$
DECLARE
  chosen bigint[];
  locked bigint;
  change bigint;
BEGIN
  SELECT coalesce(array_agg(s.stream_id ORDER BY s.stream_id), '{}') INTO chosen
    FROM holdfast.stream AS s
   WHERE s.ended_at IS NULL
     AND (s.stream_id = ANY (p_streams)
          OR (s.database, sha256(s.name)) IN (
            SELECT place.database, sha256(place.name) FROM unnest(p_databases, p_names) AS place (database, name)));
  -- exclusive, against another one that opens at the same time
  FOREACH locked IN ARRAY chosen LOOP
    PERFORM pg_advisory_xact_lock(holdfast.lock_key(locked));
  END LOOP;
  RETURN QUERY
    SELECT NULL::bigint, s.stream_id FROM holdfast.stream AS s
     WHERE s.stream_id = ANY (chosen) AND s.ended_at IS NULL
       AND (s.mode <> 'normal' OR EXISTS (
         SELECT FROM holdfast.intention AS i WHERE i.stream_id = s.stream_id AND i.kind = 'end')) LIMIT 1;
  IF FOUND THEN
    RETURN;
  END IF;
  change := nextval(pg_get_serial_sequence('holdfast.intention', 'intention_id'));
  RETURN QUERY
    INSERT INTO holdfast.intention AS i (stream_id, kind, command, owner, change_id, target_database, target_name)
    SELECT s.stream_id, 'end', p_command, p_owner, change, move.database, move.name
      FROM holdfast.stream AS s
      LEFT JOIN unnest(p_streams, p_databases, p_names) AS move (stream_id, database, name)
        ON move.stream_id = s.stream_id
     WHERE s.stream_id = ANY (chosen) AND s.ended_at IS NULL
    RETURNING i.intention_id, i.stream_id;
END $$;

-- All streams of two databases change places.
CREATE FUNCTION holdfast.open_swap(p_first integer, p_second integer, p_command text, p_owner text)
RETURNS TABLE (intention_id bigint, stream_id bigint) LANGUAGE sql AS $$
  WITH moving AS (
    SELECT array_agg(s.stream_id) AS streams, array_agg(p_first + p_second - s.database) AS databases,
           array_agg(s.name) AS names
      FROM holdfast.stream AS s WHERE s.ended_at IS NULL AND s.database IN (p_first, p_second)
  )
  SELECT opened.* FROM moving, holdfast.open_moves(streams, databases, names, p_command, p_owner) AS opened
$$;

-- Locks all that a move touches: the streams that move, and those that stand where they go, also where these began after
-- the intention was opened. Gives the latter, each with the one that takes its place.
CREATE FUNCTION holdfast.lock_moving(p_change bigint)
RETURNS TABLE (stream_id bigint, heir bigint, since timestamptz) LANGUAGE plpgsql AS $$
DECLARE
  held bigint[] := '{}';
  wanted bigint[];
  locked bigint;
BEGIN
  LOOP
    -- What begins meanwhile has a greater number: the order of locks stays.
    SELECT array_agg(touched.id ORDER BY touched.id) INTO wanted FROM (
      SELECT i.stream_id AS id FROM holdfast.intention AS i WHERE i.change_id = p_change
      UNION
      SELECT there.stream_id FROM holdfast.intention AS i
        JOIN holdfast.stream AS there
          ON there.database = i.target_database AND sha256(there.name) = sha256(i.target_name)
       WHERE i.change_id = p_change AND there.ended_at IS NULL
    ) AS touched WHERE touched.id <> ALL (held);
    EXIT WHEN wanted IS NULL;
    FOREACH locked IN ARRAY wanted LOOP
      PERFORM pg_advisory_xact_lock(holdfast.lock_key(locked));
    END LOOP;
    held := held || wanted;
  END LOOP;
  RETURN QUERY
    SELECT there.stream_id, i.stream_id, i.opened_at FROM holdfast.intention AS i
      JOIN holdfast.stream AS moving ON moving.stream_id = i.stream_id AND moving.ended_at IS NULL
      JOIN holdfast.stream AS there
        ON there.database = i.target_database AND sha256(there.name) = sha256(i.target_name)
     WHERE i.change_id = p_change AND there.ended_at IS NULL
       AND NOT EXISTS (
         SELECT FROM holdfast.intention AS other
          WHERE other.change_id = p_change AND other.stream_id = there.stream_id AND other.target_database IS NOT NULL);
END $$;

-- The streams are in their new places, which must be free. Their epochs rise, as an XADD that is on its way may have been
-- executed under either name. Their time to live went with them.
CREATE FUNCTION holdfast.settle_moves(p_change bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  moving record;
BEGIN
  -- Through databases that no server has, since a stream may go where another one still stands.
  UPDATE holdfast.stream SET database = -1 - stream.database
    FROM holdfast.intention AS i
   WHERE i.change_id = p_change AND i.target_database IS NOT NULL
     AND stream.stream_id = i.stream_id AND stream.ended_at IS NULL;
  FOR moving IN
    SELECT i.stream_id, i.target_database, i.target_name FROM holdfast.intention AS i
     WHERE i.change_id = p_change AND i.target_database IS NOT NULL ORDER BY i.stream_id
  LOOP
    UPDATE holdfast.stream
       SET database = moving.target_database, name = moving.target_name, epoch = epoch + 1,
           incarnation = 1 + coalesce((SELECT max(old.incarnation) FROM holdfast.stream AS old
                                        WHERE old.database = moving.target_database
                                          AND sha256(old.name) = sha256(moving.target_name)), 0)
     WHERE stream_id = moving.stream_id AND ended_at IS NULL;
    PERFORM pg_notify('holdfast', 'stream ' || moving.stream_id);
  END LOOP;
  DELETE FROM holdfast.intention WHERE change_id = p_change;
END $$;

-- Who goes where another one of the same command has left, whose commits since then may have been meant for that place.
CREATE FUNCTION holdfast.places_taken(p_change bigint)
RETURNS TABLE (stream_id bigint, heir bigint, since timestamptz) LANGUAGE sql AS $$
  SELECT i.stream_id, follower.stream_id, i.opened_at
    FROM holdfast.intention AS i
    JOIN holdfast.stream AS leaving ON leaving.stream_id = i.stream_id AND leaving.ended_at IS NULL
    JOIN holdfast.intention AS follower
      ON follower.target_database = leaving.database AND sha256(follower.target_name) = sha256(leaving.name)
   WHERE i.change_id = p_change AND follower.change_id = p_change AND i.target_database IS NOT NULL
$$;

DROP FUNCTION holdfast.settle_swap(bigint[], integer, integer);
DROP FUNCTION holdfast.move_stream(bigint, integer, bytea);
DROP FUNCTION holdfast.hand_over(bigint, bigint, bytea[]);

-- What came to a stream that is over or elsewhere, and belongs to the one that has its place now: that of p_successor, or of the same
-- name, begun here where there is none yet. Those are the entries p_ids, and whatever was accepted, deleted or
-- acknowledged since p_since. The caller holds the locks of both.
CREATE FUNCTION holdfast.hand_over(p_stream bigint, p_successor bigint, p_ids bytea[], p_since timestamptz)
RETURNS void LANGUAGE plpgsql AS $$
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

  IF cardinality(p_ids) > 0 THEN
    UPDATE holdfast.entry SET stream_id = heir
     WHERE stream_id = p_stream AND id = ANY (p_ids)
       AND NOT EXISTS (SELECT FROM holdfast.entry AS old WHERE old.stream_id = heir AND old.id = entry.id);
    GET DIAGNOSTICS moved = ROW_COUNT;
    -- One that goes on elsewhere has never had them.
    UPDATE holdfast.stream_progress SET added = added - CASE slot WHEN 64 THEN moved ELSE 0 END,
           last_id = LEAST(last_id, GREATEST(
             (SELECT id FROM holdfast.entry WHERE stream_id = p_stream ORDER BY id DESC LIMIT 1),
             (SELECT seen_last_id FROM holdfast.stream WHERE stream_id = p_stream)))
     WHERE stream_id = p_stream;
    INSERT INTO holdfast.stream_progress (stream_id, slot, added, last_id)
    SELECT p_stream, 64, -moved, '\x00000000000000000000000000000000'
    ON CONFLICT DO NOTHING;
    INSERT INTO holdfast.stream_progress AS progress (stream_id, slot, added, last_id)
    SELECT heir, 64, moved, (SELECT id FROM unnest(p_ids) AS given (id) ORDER BY id DESC LIMIT 1)
    ON CONFLICT (stream_id, slot) DO UPDATE
      SET added = progress.added + excluded.added, last_id = GREATEST(progress.last_id, excluded.last_id);
  END IF;

  -- Accepted by the ledger alone: still to be published, in the place where its producers meant it to be.
  UPDATE holdfast.backlog
     SET stream_id = heir,
         id = CASE WHEN EXISTS (SELECT FROM holdfast.backlog AS same WHERE same.stream_id = heir AND same.id = backlog.id)
                   THEN substr(id, 1, 8) || int8send(nextval('holdfast.outage_sequence')) ELSE id END
   WHERE stream_id = p_stream AND accepted_at >= p_since;
  IF FOUND THEN
    UPDATE holdfast.stream
       SET mode = 'outage', mode_since = clock_timestamp(), epoch = epoch + 1,
           mode_cause = (SELECT over.mode_cause FROM holdfast.stream AS over WHERE over.stream_id = p_stream)
     WHERE stream_id = heir AND mode = 'normal';
  END IF;
  UPDATE holdfast.alias SET stream_id = heir
   WHERE stream_id = p_stream AND created_at >= p_since
     AND NOT EXISTS (SELECT FROM holdfast.alias AS same
                      WHERE same.stream_id = heir AND same.id = alias.id AND same.epoch = alias.epoch);

  IF p_successor IS NOT NULL AND NOT EXISTS (
    SELECT FROM holdfast.intention WHERE stream_id = p_stream AND change_id IS NOT NULL
  ) THEN
    -- Its record began when the stream had come to its new place and had not been recorded there: it is the same stream.
    INSERT INTO holdfast.deletion (stream_id, id) SELECT heir, id FROM holdfast.deletion WHERE stream_id = p_stream
    ON CONFLICT DO NOTHING;
    UPDATE holdfast.intention SET stream_id = heir
     WHERE stream_id = p_stream AND change_id IS NULL AND opened_at >= p_since;
    -- A group that was destroyed or set there is over, one that was made there goes on.
    UPDATE holdfast.consumer_group AS g SET ended_at = clock_timestamp(), changing = false
     WHERE g.stream_id = heir AND g.ended_at IS NULL
       AND EXISTS (SELECT FROM holdfast.consumer_group AS there
                    WHERE there.stream_id = p_stream AND there.name = g.name AND there.ended_at >= p_since);
    UPDATE holdfast.acknowledgement AS a SET group_id = g.group_id
      FROM holdfast.consumer_group AS there
      JOIN holdfast.consumer_group AS g ON g.stream_id = heir AND g.name = there.name AND g.ended_at IS NULL
     WHERE there.stream_id = p_stream AND there.ended_at IS NULL
       AND a.group_id = there.group_id AND a.recorded_at >= p_since;
    UPDATE holdfast.consumer_group AS there
       SET stream_id = heir,
           generation = 1 + coalesce((SELECT max(old.generation) FROM holdfast.consumer_group AS old
                                       WHERE old.stream_id = heir AND old.name = there.name), 0)
     WHERE there.stream_id = p_stream AND there.ended_at IS NULL AND there.checkpointed_at >= p_since
       AND NOT EXISTS (SELECT FROM holdfast.consumer_group AS g
                        WHERE g.stream_id = heir AND g.name = there.name AND g.ended_at IS NULL);
  END IF;
  PERFORM pg_notify('holdfast', 'stream ' || heir);
END $$;

-- As before, but that the end of a generation is written down also of a group that was not, and that the stream's row comes
-- first, as where checkpoints are saved.
CREATE OR REPLACE FUNCTION holdfast.settle_group(
  p_stream bigint, p_name bytea, p_replace boolean, p_checkpoint bytea, p_delivered bytea, p_read bigint
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF p_checkpoint IS NOT NULL THEN
    UPDATE holdfast.stream SET present = true WHERE stream_id = p_stream AND NOT present;
  END IF;
  IF p_replace THEN
    UPDATE holdfast.consumer_group SET ended_at = clock_timestamp(), changing = false
     WHERE stream_id = p_stream AND name = p_name AND ended_at IS NULL;
    IF NOT FOUND THEN
      INSERT INTO holdfast.consumer_group (stream_id, name, generation, checkpoint_id, last_delivered_id, ended_at)
      SELECT p_stream, p_name, coalesce(max(generation), 0) + 1, '\x00000000000000000000000000000000',
             '\x00000000000000000000000000000000', clock_timestamp()
        FROM holdfast.consumer_group WHERE stream_id = p_stream AND name = p_name;
    END IF;
  END IF;
  IF p_checkpoint IS NOT NULL THEN
    INSERT INTO holdfast.consumer_group (stream_id, name, generation, checkpoint_id, last_delivered_id, entries_read)
    SELECT p_stream, p_name, coalesce(max(generation), 0) + 1, p_checkpoint, p_delivered, p_read
      FROM holdfast.consumer_group WHERE stream_id = p_stream AND name = p_name
    ON CONFLICT DO NOTHING;
  END IF;
  PERFORM pg_notify('holdfast', 'stream ' || p_stream);
END $$;
