-- A change of a group (SETID, DESTROY) is an intention like the others, with an owner: what settles or cancels it also ends the mark, so
-- that no group is `changing` for ever. Marks of before have no owner.
ALTER TABLE holdfast.intention DROP CONSTRAINT intention_kind_check;
ALTER TABLE holdfast.intention
  ADD CONSTRAINT intention_kind_check CHECK (kind IN ('delete', 'end', 'group')),
  ADD COLUMN group_id bigint REFERENCES holdfast.consumer_group ON DELETE CASCADE;
CREATE INDEX intention_group ON holdfast.intention (group_id) WHERE group_id IS NOT NULL;
UPDATE holdfast.consumer_group SET changing = false WHERE changing;

CREATE FUNCTION holdfast.mark_changing() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  touched holdfast.intention := CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
BEGIN
  UPDATE holdfast.consumer_group AS g
     SET changing = EXISTS (SELECT FROM holdfast.intention AS i WHERE i.group_id = g.group_id),
         changing_since = clock_timestamp()
   WHERE g.group_id = touched.group_id AND g.ended_at IS NULL;
  PERFORM pg_notify('holdfast', 'stream ' || touched.stream_id);
  RETURN NULL;
END $$;

CREATE TRIGGER intention_opens_change AFTER INSERT ON holdfast.intention
  FOR EACH ROW WHEN (NEW.group_id IS NOT NULL) EXECUTE FUNCTION holdfast.mark_changing();
CREATE TRIGGER intention_ends_change AFTER DELETE ON holdfast.intention
  FOR EACH ROW WHEN (OLD.group_id IS NOT NULL) EXECUTE FUNCTION holdfast.mark_changing();
