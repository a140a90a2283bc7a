-- Also where triggers are off for replication: an entry without a place would never be published.
ALTER TABLE holdfast.outbox_transaction ENABLE ALWAYS TRIGGER outbox_commit;
