-- What the worker remembers of entries (docs/worker.md). The same stream and group may mean another one to another user
-- of the KV store, whose keys are scoped; hence kv_user.
CREATE TABLE holdfast.worker_queue (
  queue_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  kv_user text NOT NULL,
  database integer NOT NULL,
  stream bytea NOT NULL,
  group_name bytea NOT NULL
);
CREATE UNIQUE INDEX worker_queue_name
  ON holdfast.worker_queue (sha256(stream), sha256(group_name), database, kv_user);

-- Entries that failed or were taken over and are not settled yet. IDs are text, for they are only ever looked up.
CREATE TABLE holdfast.worker_entry (
  queue_id bigint NOT NULL REFERENCES holdfast.worker_queue ON DELETE CASCADE,
  entry_id text COLLATE "C" NOT NULL,
  failed integer NOT NULL DEFAULT 0,
  takeovers integer NOT NULL DEFAULT 0,
  updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (queue_id, entry_id)
) WITH (fillfactor = 70);
CREATE INDEX worker_entry_updated ON holdfast.worker_entry (queue_id, updated_at);

-- The report of a permanent failure is unique. Not published: begun by a worker that may have died before or after the
-- dead letter was added.
CREATE TABLE holdfast.worker_failure (
  queue_id bigint NOT NULL REFERENCES holdfast.worker_queue ON DELETE CASCADE,
  entry_id text COLLATE "C" NOT NULL,
  task text NOT NULL,
  attempts integer NOT NULL,
  takeovers integer NOT NULL,
  error text NOT NULL,
  published boolean NOT NULL DEFAULT false,
  begun_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (queue_id, entry_id)
);
CREATE INDEX worker_failure_begun ON holdfast.worker_failure (queue_id, begun_at) WHERE published;
