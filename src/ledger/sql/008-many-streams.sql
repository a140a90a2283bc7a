-- Ending very many streams: FLUSHALL. A lock for each of them in one transaction is more than Postgres has room for (its lock table
-- holds some thousands for all sessions together), so that streams are taken in parts, each in a transaction of its own:
--
--   open_end, part by part ─▶ FLUSHALL ─▶ end_streams, part by part
--
-- Nothing is done in the KV store before all parts are open; where one finds a stream in trouble those before it are cancelled.

DROP FUNCTION holdfast.open_end(bigint[], integer, text, text);

-- Opens intentions to end the incarnations of p_streams, ascending. None is opened, and a stream given with a null number, where one of
-- them is in trouble or about to move. A restore that begins later sees the intention, as it takes the stream's lock exclusively first.
CREATE FUNCTION holdfast.open_end(p_streams bigint[], p_command text, p_owner text)
RETURNS TABLE (intention_id bigint, stream_id bigint) LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock_shared(holdfast.lock_key(one)) FROM unnest(p_streams) AS one;
  RETURN QUERY
    SELECT NULL::bigint, s.stream_id FROM holdfast.stream AS s
     WHERE s.stream_id = ANY (p_streams) AND s.ended_at IS NULL
       AND (s.mode <> 'normal' OR (
         SELECT true FROM holdfast.intention AS i
          WHERE i.stream_id = s.stream_id AND i.change_id IS NOT NULL LIMIT 1)) LIMIT 1;
  IF FOUND THEN
    RETURN;
  END IF;
  RETURN QUERY
    INSERT INTO holdfast.intention AS i (stream_id, kind, command, owner)
    SELECT s.stream_id, 'end', p_command, p_owner FROM holdfast.stream AS s
     WHERE s.stream_id = ANY (p_streams) AND s.ended_at IS NULL
     ORDER BY s.stream_id
    RETURNING i.intention_id, i.stream_id;
END $$;

-- The incarnations are over that these intentions are about, but for those to which something came since: what becomes of that is found
-- out stream by stream. Gives those that are settled.
CREATE FUNCTION holdfast.end_streams(p_intentions bigint[])
RETURNS TABLE (intention_id bigint, stream_id bigint) LANGUAGE plpgsql AS $$
DECLARE
  locked bigint[];
  settled_intentions bigint[];
  settled_streams bigint[];
  over text;
BEGIN
  SELECT coalesce(array_agg(DISTINCT i.stream_id ORDER BY i.stream_id), '{}') INTO locked
    FROM holdfast.intention AS i WHERE i.intention_id = ANY (p_intentions);
  PERFORM pg_advisory_xact_lock(holdfast.lock_key(one)) FROM unnest(locked) AS one;
  WITH settled AS (
    DELETE FROM holdfast.intention AS i USING holdfast.stream AS s
     WHERE i.intention_id = ANY (p_intentions) AND i.stream_id = ANY (locked) AND s.stream_id = i.stream_id
       -- With LIMIT they are looked up for each stream; as a join they would be read whole for each part.
       AND (s.ended_at IS NOT NULL OR (
         (SELECT true FROM holdfast.entry AS e
           WHERE e.stream_id = i.stream_id AND e.committed_at >= i.opened_at LIMIT 1) IS NULL
         AND (SELECT true FROM holdfast.backlog AS b
               WHERE b.stream_id = i.stream_id AND b.accepted_at >= i.opened_at LIMIT 1) IS NULL))
    RETURNING i.intention_id, i.stream_id, i.command
  ), ended AS (
    UPDATE holdfast.stream AS s SET ended_at = clock_timestamp(), ended_by = settled.command
      FROM settled WHERE s.stream_id = settled.stream_id AND s.ended_at IS NULL
    RETURNING s.stream_id, s.ended_by
  ), recorded AS (
    UPDATE holdfast.recovery AS r SET completed_at = clock_timestamp(), last_error = 'the stream ended: ' || ended.ended_by
      FROM ended WHERE r.stream_id = ended.stream_id AND r.completed_at IS NULL
  )
  SELECT array_agg(settled.intention_id), array_agg(settled.stream_id),
         (SELECT string_agg(ended.stream_id::text, ',') FROM ended)
    INTO settled_intentions, settled_streams, over
    FROM settled;
  IF over IS NOT NULL THEN
    PERFORM pg_notify('holdfast', 'ended ' || over);
  END IF;
  RETURN QUERY SELECT * FROM unnest(settled_intentions, settled_streams);
END $$;
