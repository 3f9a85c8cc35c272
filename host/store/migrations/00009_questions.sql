-- +goose Up
-- How many questions a person was asked within an hour.
CREATE INDEX approval_requester ON approval (ws, requester, created_at);
