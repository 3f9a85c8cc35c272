-- +goose Up
-- A run may call others: whom it waits for, and how large the tree has grown.
CREATE INDEX run_parent ON run (ws, parent_run);
CREATE INDEX run_root ON run (ws, root_run);
