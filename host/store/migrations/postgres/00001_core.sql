-- +goose Up
-- The tables of ../00001_core.sql, column by column; a test holds the two together.
-- Row-level security is not here: Provision puts it on every table that has a ws.
-- COLLATE "C" sorts as SQLite does.

CREATE TABLE lease (
    ws         TEXT COLLATE "C" PRIMARY KEY,
    epoch      BIGINT NOT NULL,          -- +1 at every take-over; every writing transaction tests it
    holder     TEXT COLLATE "C" NOT NULL,
    taken_at   BIGINT NOT NULL
);

CREATE TABLE workspace (
    ws             TEXT COLLATE "C" PRIMARY KEY,
    policy_version BIGINT NOT NULL,
    config         TEXT COLLATE "C" NOT NULL,         -- the workspace.yaml in force
    policies       TEXT COLLATE "C" NOT NULL,         -- JSON object: file name -> Cedar text
    cap_micro      BIGINT NOT NULL,
    created_at     BIGINT NOT NULL
);

CREATE TABLE principal (
    ws TEXT COLLATE "C" NOT NULL, principal_id TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL, email TEXT COLLATE "C" NOT NULL, role TEXT COLLATE "C" NOT NULL, created_at BIGINT NOT NULL,
    PRIMARY KEY (ws, principal_id)
);

CREATE TABLE token (
    ws TEXT COLLATE "C" NOT NULL, token_id TEXT COLLATE "C" NOT NULL,
    principal_id TEXT COLLATE "C" NOT NULL, hash BYTEA NOT NULL, scopes TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, revoked_at BIGINT,
    PRIMARY KEY (ws, token_id), UNIQUE (ws, hash),
    FOREIGN KEY (ws, principal_id) REFERENCES principal (ws, principal_id)
);

CREATE TABLE module (
    ws TEXT COLLATE "C" NOT NULL, module_sha256 BYTEA NOT NULL,
    image_sha256    BYTEA NOT NULL,        -- what runs
    artefact_sha256 BYTEA NOT NULL,        -- what the compiler made of it
    artefact_mac    BYTEA NOT NULL,        -- over all digests, the engine and the limits
    engine TEXT COLLATE "C" NOT NULL, size BIGINT NOT NULL, manifest TEXT COLLATE "C" NOT NULL,
    pushed_by TEXT COLLATE "C" NOT NULL, pushed_at BIGINT NOT NULL,
    PRIMARY KEY (ws, module_sha256)
);

CREATE TABLE skill (
    ws TEXT COLLATE "C" NOT NULL, name TEXT COLLATE "C" NOT NULL, module_sha256 BYTEA NOT NULL,
    PRIMARY KEY (ws, name),
    FOREIGN KEY (ws, module_sha256) REFERENCES module (ws, module_sha256)
);

-- A grant is bound to the module's bytes: a new module under an old name holds none.
CREATE TABLE grants (
    ws TEXT COLLATE "C" NOT NULL, grant_id TEXT COLLATE "C" NOT NULL,
    skill TEXT COLLATE "C" NOT NULL, module_sha256 BYTEA NOT NULL,
    operation TEXT COLLATE "C" NOT NULL, resource TEXT COLLATE "C" NOT NULL, gate TEXT COLLATE "C" NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL, created_at BIGINT NOT NULL,
    PRIMARY KEY (ws, grant_id)
);

CREATE TABLE run (
    ws TEXT COLLATE "C" NOT NULL, run_id TEXT COLLATE "C" NOT NULL,
    root_run TEXT COLLATE "C" NOT NULL, parent_run TEXT COLLATE "C" NOT NULL, on_behalf_of TEXT COLLATE "C" NOT NULL,
    skill TEXT COLLATE "C" NOT NULL, module_sha256 BYTEA NOT NULL, image_sha256 BYTEA NOT NULL,
    abi_version BIGINT NOT NULL, engine TEXT COLLATE "C" NOT NULL,
    config_sha256 BYTEA NOT NULL, manifest_sha256 BYTEA NOT NULL,
    state TEXT COLLATE "C" NOT NULL, wait_kind TEXT COLLATE "C" NOT NULL DEFAULT '', wake_at BIGINT NOT NULL DEFAULT 0,
    attended BOOLEAN NOT NULL,
    budget_micro BIGINT NOT NULL,
    estimate TEXT COLLATE "C" NOT NULL,
    key_enc BYTEA,                         -- the run's wrapped key; deleting it erases the run
    start_enc BYTEA NOT NULL,              -- seed, limits, time of start, input
    label_enc BYTEA NOT NULL,              -- label of the input
    next_seq BIGINT NOT NULL, journal_bytes BIGINT NOT NULL, chain_sha256 BYTEA NOT NULL,
    calls BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL, started_at BIGINT NOT NULL DEFAULT 0, ended_at BIGINT NOT NULL DEFAULT 0,
    result_enc BYTEA, result_label_enc BYTEA,
    failure TEXT COLLATE "C" NOT NULL DEFAULT '', receipt TEXT COLLATE "C" NOT NULL DEFAULT '', receipt_leaf BIGINT NOT NULL DEFAULT -1,
    PRIMARY KEY (ws, run_id),
    CHECK (result_enc IS NULL OR result_label_enc IS NOT NULL)
);
CREATE INDEX run_state ON run (ws, state, wake_at);
CREATE INDEX run_created ON run (ws, created_at);

CREATE TABLE journal (
    ws TEXT COLLATE "C" NOT NULL, run_id TEXT COLLATE "C" NOT NULL, seq BIGINT NOT NULL,
    call_no BIGINT NOT NULL,             -- which host call of the run the record belongs to
    kind TEXT COLLATE "C" NOT NULL, rec_ver BIGINT NOT NULL, epoch BIGINT NOT NULL, ts BIGINT NOT NULL,
    body_enc BYTEA NOT NULL, label_enc BYTEA NOT NULL, chain_sha256 BYTEA NOT NULL,
    PRIMARY KEY (ws, run_id, seq),
    FOREIGN KEY (ws, run_id) REFERENCES run (ws, run_id)
);

CREATE TABLE approval (
    ws TEXT COLLATE "C" NOT NULL, approval_id TEXT COLLATE "C" NOT NULL,
    run_id TEXT COLLATE "C" NOT NULL, call_no BIGINT NOT NULL, skill TEXT COLLATE "C" NOT NULL,
    operation TEXT COLLATE "C" NOT NULL, effect TEXT COLLATE "C" NOT NULL, requester TEXT COLLATE "C" NOT NULL,
    bound_mac BYTEA NOT NULL,              -- over everything that the approval covers
    state TEXT COLLATE "C" NOT NULL, why TEXT COLLATE "C" NOT NULL, ceiling_micro BIGINT NOT NULL,
    detail_enc BYTEA NOT NULL,             -- digest, destination, preview, labels
    created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL,
    decided_by TEXT COLLATE "C" NOT NULL DEFAULT '', decided_at BIGINT NOT NULL DEFAULT 0,
    verdict_mac BYTEA,                     -- over a person's yes: the state alone could be written by anybody with the file
    PRIMARY KEY (ws, approval_id), UNIQUE (ws, run_id, call_no),
    FOREIGN KEY (ws, run_id) REFERENCES run (ws, run_id)
);
CREATE INDEX approval_state ON approval (ws, state, expires_at);

CREATE TABLE rejection (                  -- across runs: a no is not asked for again and again
    ws TEXT COLLATE "C" NOT NULL, skill TEXT COLLATE "C" NOT NULL, operation TEXT COLLATE "C" NOT NULL, destination_mac BYTEA NOT NULL,
    count BIGINT NOT NULL,
    PRIMARY KEY (ws, skill, operation, destination_mac)
);

CREATE TABLE spend (
    ws TEXT COLLATE "C" NOT NULL, run_id TEXT COLLATE "C" NOT NULL, call_no BIGINT NOT NULL, attempt BIGINT NOT NULL,
    root_run TEXT COLLATE "C" NOT NULL, period TEXT COLLATE "C" NOT NULL,  -- YYYY-MM, UTC
    reserved_micro BIGINT NOT NULL CHECK (reserved_micro >= 0),
    settled_micro  BIGINT CHECK (settled_micro >= 0), -- NULL: still reserved
    PRIMARY KEY (ws, run_id, call_no, attempt)
);

CREATE TABLE spend_total (                -- the sums of spend, kept in the same transactions
    ws TEXT COLLATE "C" NOT NULL, scope TEXT COLLATE "C" NOT NULL, -- 'period:YYYY-MM' or 'run:<root run>'
    reserved_micro BIGINT NOT NULL CHECK (reserved_micro >= 0),
    settled_micro  BIGINT NOT NULL CHECK (settled_micro >= 0),
    warned BIGINT NOT NULL DEFAULT 0,    -- the highest percentage warned of
    PRIMARY KEY (ws, scope)
);

CREATE TABLE kv (
    ws TEXT COLLATE "C" NOT NULL, namespace TEXT COLLATE "C" NOT NULL, key_mac BYTEA NOT NULL,
    key_enc BYTEA NOT NULL, value_enc BYTEA NOT NULL, label_enc BYTEA NOT NULL,
    PRIMARY KEY (ws, namespace, key_mac)
);

CREATE TABLE kv_namespace (               -- label of everything that was ever in it
    ws TEXT COLLATE "C" NOT NULL, namespace TEXT COLLATE "C" NOT NULL, label_enc BYTEA NOT NULL,
    PRIMARY KEY (ws, namespace)
);

CREATE TABLE audit_leaf (
    ws TEXT COLLATE "C" NOT NULL, idx BIGINT NOT NULL, body BYTEA NOT NULL,
    hashes BYTEA NOT NULL,                 -- the tree hashes that this leaf completes, level by level
    PRIMARY KEY (ws, idx)
);

CREATE TABLE audit_checkpoint (
    ws TEXT COLLATE "C" NOT NULL, size BIGINT NOT NULL, note BYTEA NOT NULL, created_at BIGINT NOT NULL,
    PRIMARY KEY (ws, size)
);
