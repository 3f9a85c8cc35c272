-- +goose Up
-- What is asked at every start and every look, however many runs there are: what the last
-- runs of a module cost, and who belongs to a run. An index without the order that is
-- asked for is not taken.
CREATE INDEX run_costs ON run (ws, module_sha256, created_at) WHERE state = 'succeeded';
DROP INDEX run_parent;
DROP INDEX run_root;
CREATE INDEX run_parent ON run (ws, parent_run, created_at);
CREATE INDEX run_root ON run (ws, root_run, created_at);
