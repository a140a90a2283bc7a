-- An entry under an ID of the client's own may be there already when it is accepted: by the XADD whose connection broke, taken
-- in by comparison since, or by a batch whose outcome was not heard. It is what was asked for, not a mistake of the client.
CREATE OR REPLACE FUNCTION holdfast.accept_entries(
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
    IF given_id <= top AND given.after_id IS NOT NULL AND EXISTS (
         SELECT FROM holdfast.entry
          WHERE entry.stream_id = given.stream_id AND entry.id = given_id AND entry.fields = given.fields
         UNION ALL
         SELECT FROM holdfast.backlog
          WHERE backlog.stream_id = given.stream_id AND backlog.id = given_id AND backlog.fields = given.fields)
    THEN
      RETURN QUERY SELECT given.position, given_id;
      CONTINUE;
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
