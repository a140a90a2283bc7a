-- Resources of Flight Control, beside the ledger. Names compare by bytes, so that a page goes on where the last one ended.

CREATE TABLE flight_control.resource (
  org uuid NOT NULL,
  kind text COLLATE "C" NOT NULL,
  name text COLLATE "C" NOT NULL,
  api_version text NOT NULL,
  labels jsonb NOT NULL DEFAULT '{}',
  annotations jsonb NOT NULL DEFAULT '{}',
  -- `Fleet/name`, or nothing
  owner text COLLATE "C",
  spec jsonb NOT NULL DEFAULT '{}',
  status jsonb NOT NULL DEFAULT '{}',
  -- grows when the spec changes in meaning
  generation bigint NOT NULL DEFAULT 1,
  -- grows with every write: who writes names the one that was read
  resource_version bigint NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org, kind, name)
) WITH (fillfactor = 85);
CREATE INDEX resource_labels ON flight_control.resource USING gin (labels jsonb_path_ops) WITH (fastupdate = off);
CREATE INDEX resource_owner ON flight_control.resource (org, owner, name) WHERE owner IS NOT NULL;

-- A frozen copy of what a fleet's template was.
CREATE TABLE flight_control.template_version (
  org uuid NOT NULL,
  fleet text COLLATE "C" NOT NULL,
  name text COLLATE "C" NOT NULL,
  version_number bigint GENERATED ALWAYS AS IDENTITY,
  spec jsonb NOT NULL,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (org, fleet, name)
);
CREATE INDEX template_version_newest ON flight_control.template_version (org, fleet, version_number DESC);

CREATE TABLE flight_control.event (
  event_number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  org uuid NOT NULL,
  -- what the event's producer called it: the same event is stored once
  name uuid NOT NULL,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  object_kind text COLLATE "C" NOT NULL,
  object_name text COLLATE "C" NOT NULL,
  reason text COLLATE "C" NOT NULL,
  body jsonb NOT NULL,
  UNIQUE (org, name)
);
CREATE INDEX event_object ON flight_control.event (org, object_kind, object_name, event_number);
CREATE INDEX event_reason ON flight_control.event (org, reason, event_number);
CREATE INDEX event_org ON flight_control.event (org, event_number);

-- Stores events, each once, and queues those of p_queued, in the caller's transaction. p_bodies are whole events.
CREATE FUNCTION flight_control.add_events(p_org uuid, p_stream text, p_bodies jsonb[], p_queued boolean[]) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
  stored bigint;
BEGIN
  WITH given AS (
    SELECT * FROM unnest(p_bodies, p_queued) WITH ORDINALITY AS given (body, queued, position)
  ), added AS (
    INSERT INTO flight_control.event (org, name, object_kind, object_name, reason, body)
    SELECT p_org, (body #>> '{metadata,name}')::uuid, body #>> '{involvedObject,kind}', body #>> '{involvedObject,name}',
           body ->> 'reason', body
      FROM given ORDER BY position
    ON CONFLICT (org, name) DO NOTHING
    RETURNING name
  ), queued AS (
    SELECT holdfast.xadd(p_stream,
             'body', jsonb_build_object('orgId', p_org, 'event', body)::text,
             'timestamp', floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint::text)
      FROM (SELECT given.* FROM given JOIN added ON added.name = (given.body #>> '{metadata,name}')::uuid
             WHERE given.queued ORDER BY given.position) AS ordered
  )
  SELECT (SELECT count(*) FROM added) + 0 * (SELECT count(*) FROM queued) INTO stored;
  RETURN stored;
END $$;
