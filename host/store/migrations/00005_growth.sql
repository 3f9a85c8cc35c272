-- +goose Up
-- A body over the inline limit lies in a file, which blob_ref names; body_enc is
-- empty then. Of an erased run the sums alone are left: what the chain was made of.
ALTER TABLE journal ADD COLUMN blob_ref TEXT NOT NULL DEFAULT '';
ALTER TABLE journal ADD COLUMN body_sha256 BLOB;
ALTER TABLE journal ADD COLUMN label_sha256 BLOB;
CREATE INDEX journal_segment ON journal (ws, run_id, seq) WHERE kind = 'CONTINUE';
CREATE INDEX journal_blob ON journal (ws, run_id, blob_ref) WHERE blob_ref <> '';
ALTER TABLE run ADD COLUMN erased_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE run ADD COLUMN genesis_sha256 BLOB; -- of an erased run: the head of its chain before the first record
CREATE INDEX run_ended ON run (ws, ended_at) WHERE erased_at = 0;
