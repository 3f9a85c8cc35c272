-- +goose Up
-- What a sweep asks each second: who is queued, whose time has come, and who waits for a
-- person or for a run that it called. However many runs wait for something else, it looks
-- at none of them. An index that has all that is asked for is taken without statistics.
DROP INDEX run_state;
CREATE INDEX run_state ON run (ws, state, wait_kind, created_at);
CREATE INDEX run_wakes ON run (ws, wake_at) WHERE state = 'waiting' AND wait_kind <> 'approval' AND wake_at > 0;
DROP INDEX run_parent;
CREATE INDEX run_parent ON run (ws, parent_run, ended_at, created_at);
