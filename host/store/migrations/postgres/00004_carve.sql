-- +goose Up
CREATE TABLE carve (                      -- a child's budget, taken out of its parent's
    ws TEXT COLLATE "C" NOT NULL, child_run TEXT COLLATE "C" NOT NULL, parent_run TEXT COLLATE "C" NOT NULL,
    amount_micro BIGINT NOT NULL CHECK (amount_micro >= 0),
    spent_micro  BIGINT CHECK (spent_micro >= 0), -- NULL: the child has not ended
    PRIMARY KEY (ws, child_run)
);
