-- +goose Up
-- expires_at is of the database's clock, where the lease is a row and not the
-- kernel's lock; touched changes when somebody asks whether the disk takes a commit.
ALTER TABLE lease ADD COLUMN expires_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE lease ADD COLUMN touched INTEGER NOT NULL DEFAULT 0;
