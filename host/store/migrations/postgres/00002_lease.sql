-- +goose Up
-- expires_at is of the database's clock, where the lease is a row and not the
-- kernel's lock; touched changes when somebody asks whether the disk takes a commit.
ALTER TABLE lease ADD COLUMN expires_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE lease ADD COLUMN touched BIGINT NOT NULL DEFAULT 0;

-- Which role serves which workspace. The policies read it by session_user, which a
-- client cannot change; only the owner of the tables can write it.
CREATE TABLE workspace_role (
    role TEXT COLLATE "C" PRIMARY KEY,
    ws   TEXT COLLATE "C" NOT NULL
);
