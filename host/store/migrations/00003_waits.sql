-- +goose Up
-- A call may ask again: after an attempt of which a person said that it did not
-- happen, a blind effect needs a new approval. So a call has no longer one approval
-- at most; which one counts is in its
-- journal. Only one can be open.
ALTER TABLE approval RENAME TO approval_before;
CREATE TABLE approval (
    ws TEXT NOT NULL, approval_id TEXT NOT NULL,
    run_id TEXT NOT NULL, call_no INTEGER NOT NULL, skill TEXT NOT NULL,
    operation TEXT NOT NULL, effect TEXT NOT NULL, requester TEXT NOT NULL,
    bound_mac BLOB NOT NULL,              -- over everything that the approval covers
    state TEXT NOT NULL, why TEXT NOT NULL, ceiling_micro INTEGER NOT NULL,
    detail_enc BLOB NOT NULL,             -- digest, destination, preview, labels
    created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
    decided_by TEXT NOT NULL DEFAULT '', decided_at INTEGER NOT NULL DEFAULT 0,
    verdict_mac BLOB,                     -- over a person's yes: the state alone could be written by anybody with the file
    PRIMARY KEY (ws, approval_id),
    FOREIGN KEY (ws, run_id) REFERENCES run (ws, run_id)
) STRICT, WITHOUT ROWID;
INSERT INTO approval (ws, approval_id, run_id, call_no, skill, operation, effect, requester, bound_mac, state, why, ceiling_micro, detail_enc, created_at, expires_at, decided_by, decided_at, verdict_mac)
    SELECT ws, approval_id, run_id, call_no, skill, operation, effect, requester, bound_mac, state, why, ceiling_micro, detail_enc, created_at, expires_at, decided_by, decided_at, verdict_mac FROM approval_before;
DROP TABLE approval_before;
CREATE INDEX approval_state ON approval (ws, state, expires_at);
CREATE INDEX approval_run ON approval (ws, run_id, state);
CREATE UNIQUE INDEX approval_open ON approval (ws, run_id, call_no) WHERE state IN ('pending', 'approved');
