-- +goose Up
-- What ../00003_waits.sql does, where a constraint can be dropped alone.
ALTER TABLE approval DROP CONSTRAINT approval_ws_run_id_call_no_key;
CREATE INDEX approval_run ON approval (ws, run_id, state);
CREATE UNIQUE INDEX approval_open ON approval (ws, run_id, call_no) WHERE state IN ('pending', 'approved');
