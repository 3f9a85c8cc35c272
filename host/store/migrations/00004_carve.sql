-- +goose Up
CREATE TABLE carve (                      -- a child's budget, taken out of its parent's
    ws TEXT NOT NULL, child_run TEXT NOT NULL, parent_run TEXT NOT NULL,
    amount_micro INTEGER NOT NULL CHECK (amount_micro >= 0),
    spent_micro  INTEGER CHECK (spent_micro >= 0), -- NULL: the child has not ended
    PRIMARY KEY (ws, child_run)
) STRICT, WITHOUT ROWID;
