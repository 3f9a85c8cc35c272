-- +goose Up
-- Why a run is to end that has a worker: whoever cancels it is answered when this is
-- durable, and nothing leaves for the run after that, whatever becomes of the daemon.
ALTER TABLE run ADD COLUMN cancel TEXT COLLATE "C" NOT NULL DEFAULT '';
