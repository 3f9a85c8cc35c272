-- +goose Up
-- ws is in every key: rows of two workspaces can never meet, also where a later
-- store is shared. *_enc columns are sealed by host/vault for their own row.

CREATE TABLE lease (
    ws         TEXT PRIMARY KEY,
    epoch      INTEGER NOT NULL,          -- +1 at every take-over; every writing transaction tests it
    holder     TEXT NOT NULL,
    taken_at   INTEGER NOT NULL
) STRICT;

CREATE TABLE workspace (
    ws             TEXT PRIMARY KEY,
    policy_version INTEGER NOT NULL,
    config         TEXT NOT NULL,         -- the workspace.yaml in force
    policies       TEXT NOT NULL,         -- JSON object: file name -> Cedar text
    cap_micro      INTEGER NOT NULL,
    created_at     INTEGER NOT NULL
) STRICT;

CREATE TABLE principal (
    ws TEXT NOT NULL, principal_id TEXT NOT NULL,
    name TEXT NOT NULL, email TEXT NOT NULL, role TEXT NOT NULL, created_at INTEGER NOT NULL,
    PRIMARY KEY (ws, principal_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE token (
    ws TEXT NOT NULL, token_id TEXT NOT NULL,
    principal_id TEXT NOT NULL, hash BLOB NOT NULL, scopes TEXT NOT NULL,
    created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, revoked_at INTEGER,
    PRIMARY KEY (ws, token_id), UNIQUE (ws, hash),
    FOREIGN KEY (ws, principal_id) REFERENCES principal (ws, principal_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE module (
    ws TEXT NOT NULL, module_sha256 BLOB NOT NULL,
    image_sha256    BLOB NOT NULL,        -- what runs
    artefact_sha256 BLOB NOT NULL,        -- what the compiler made of it
    artefact_mac    BLOB NOT NULL,        -- over all digests, the engine and the limits
    engine TEXT NOT NULL, size INTEGER NOT NULL, manifest TEXT NOT NULL,
    pushed_by TEXT NOT NULL, pushed_at INTEGER NOT NULL,
    PRIMARY KEY (ws, module_sha256)
) STRICT, WITHOUT ROWID;

CREATE TABLE skill (
    ws TEXT NOT NULL, name TEXT NOT NULL, module_sha256 BLOB NOT NULL,
    PRIMARY KEY (ws, name),
    FOREIGN KEY (ws, module_sha256) REFERENCES module (ws, module_sha256)
) STRICT, WITHOUT ROWID;

-- A grant is bound to the module's bytes: a new module under an old name holds none.
CREATE TABLE grants (
    ws TEXT NOT NULL, grant_id TEXT NOT NULL,
    skill TEXT NOT NULL, module_sha256 BLOB NOT NULL,
    operation TEXT NOT NULL, resource TEXT NOT NULL, gate TEXT NOT NULL,
    created_by TEXT NOT NULL, created_at INTEGER NOT NULL,
    PRIMARY KEY (ws, grant_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE run (
    ws TEXT NOT NULL, run_id TEXT NOT NULL,
    root_run TEXT NOT NULL, parent_run TEXT NOT NULL, on_behalf_of TEXT NOT NULL,
    skill TEXT NOT NULL, module_sha256 BLOB NOT NULL, image_sha256 BLOB NOT NULL,
    abi_version INTEGER NOT NULL, engine TEXT NOT NULL,
    config_sha256 BLOB NOT NULL, manifest_sha256 BLOB NOT NULL,
    state TEXT NOT NULL, wait_kind TEXT NOT NULL DEFAULT '', wake_at INTEGER NOT NULL DEFAULT 0,
    attended INTEGER NOT NULL,
    budget_micro INTEGER NOT NULL,
    estimate TEXT NOT NULL,
    key_enc BLOB,                         -- the run's wrapped key; deleting it erases the run
    start_enc BLOB NOT NULL,              -- seed, limits, time of start, input
    label_enc BLOB NOT NULL,              -- label of the input
    next_seq INTEGER NOT NULL, journal_bytes INTEGER NOT NULL, chain_sha256 BLOB NOT NULL,
    calls INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL, started_at INTEGER NOT NULL DEFAULT 0, ended_at INTEGER NOT NULL DEFAULT 0,
    result_enc BLOB, result_label_enc BLOB,
    failure TEXT NOT NULL DEFAULT '', receipt TEXT NOT NULL DEFAULT '', receipt_leaf INTEGER NOT NULL DEFAULT -1,
    PRIMARY KEY (ws, run_id),
    CHECK (result_enc IS NULL OR result_label_enc IS NOT NULL)
) STRICT, WITHOUT ROWID;
CREATE INDEX run_state ON run (ws, state, wake_at);
CREATE INDEX run_created ON run (ws, created_at);

CREATE TABLE journal (
    ws TEXT NOT NULL, run_id TEXT NOT NULL, seq INTEGER NOT NULL,
    call_no INTEGER NOT NULL,             -- which host call of the run the record belongs to
    kind TEXT NOT NULL, rec_ver INTEGER NOT NULL, epoch INTEGER NOT NULL, ts INTEGER NOT NULL,
    body_enc BLOB NOT NULL, label_enc BLOB NOT NULL, chain_sha256 BLOB NOT NULL,
    PRIMARY KEY (ws, run_id, seq),
    FOREIGN KEY (ws, run_id) REFERENCES run (ws, run_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE approval (
    ws TEXT NOT NULL, approval_id TEXT NOT NULL,
    run_id TEXT NOT NULL, call_no INTEGER NOT NULL, skill TEXT NOT NULL,
    operation TEXT NOT NULL, effect TEXT NOT NULL, requester TEXT NOT NULL,
    bound_mac BLOB NOT NULL,              -- over everything that the approval covers
    state TEXT NOT NULL, why TEXT NOT NULL, ceiling_micro INTEGER NOT NULL,
    detail_enc BLOB NOT NULL,             -- digest, destination, preview, labels
    created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
    decided_by TEXT NOT NULL DEFAULT '', decided_at INTEGER NOT NULL DEFAULT 0,
    verdict_mac BLOB,                     -- over a person's yes: the state alone could be written by anybody with the file
    PRIMARY KEY (ws, approval_id), UNIQUE (ws, run_id, call_no),
    FOREIGN KEY (ws, run_id) REFERENCES run (ws, run_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX approval_state ON approval (ws, state, expires_at);

CREATE TABLE rejection (                  -- across runs: a no is not asked for again and again
    ws TEXT NOT NULL, skill TEXT NOT NULL, operation TEXT NOT NULL, destination_mac BLOB NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (ws, skill, operation, destination_mac)
) STRICT, WITHOUT ROWID;

CREATE TABLE spend (
    ws TEXT NOT NULL, run_id TEXT NOT NULL, call_no INTEGER NOT NULL, attempt INTEGER NOT NULL,
    root_run TEXT NOT NULL, period TEXT NOT NULL,  -- YYYY-MM, UTC
    reserved_micro INTEGER NOT NULL CHECK (reserved_micro >= 0),
    settled_micro  INTEGER CHECK (settled_micro >= 0), -- NULL: still reserved
    PRIMARY KEY (ws, run_id, call_no, attempt)
) STRICT, WITHOUT ROWID;

CREATE TABLE spend_total (                -- the sums of spend, kept in the same transactions
    ws TEXT NOT NULL, scope TEXT NOT NULL, -- 'period:YYYY-MM' or 'run:<root run>'
    reserved_micro INTEGER NOT NULL CHECK (reserved_micro >= 0),
    settled_micro  INTEGER NOT NULL CHECK (settled_micro >= 0),
    warned INTEGER NOT NULL DEFAULT 0,    -- the highest percentage warned of
    PRIMARY KEY (ws, scope)
) STRICT, WITHOUT ROWID;

CREATE TABLE kv (
    ws TEXT NOT NULL, namespace TEXT NOT NULL, key_mac BLOB NOT NULL,
    key_enc BLOB NOT NULL, value_enc BLOB NOT NULL, label_enc BLOB NOT NULL,
    PRIMARY KEY (ws, namespace, key_mac)
) STRICT, WITHOUT ROWID;

CREATE TABLE kv_namespace (               -- label of everything that was ever in it
    ws TEXT NOT NULL, namespace TEXT NOT NULL, label_enc BLOB NOT NULL,
    PRIMARY KEY (ws, namespace)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_leaf (
    ws TEXT NOT NULL, idx INTEGER NOT NULL, body BLOB NOT NULL,
    hashes BLOB NOT NULL,                 -- the tree hashes that this leaf completes, level by level
    PRIMARY KEY (ws, idx)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_checkpoint (
    ws TEXT NOT NULL, size INTEGER NOT NULL, note BLOB NOT NULL, created_at INTEGER NOT NULL,
    PRIMARY KEY (ws, size)
) STRICT, WITHOUT ROWID;
