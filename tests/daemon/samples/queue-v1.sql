-- The tables of version 1 of the queue's database, as offrld made them.
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE jobs (
    seq                INTEGER PRIMARY KEY AUTOINCREMENT,
    id                 TEXT NOT NULL UNIQUE,
    kind               TEXT NOT NULL,
    lane               TEXT NOT NULL,
    state              TEXT NOT NULL CHECK (state IN ('queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled')),
    priority           INTEGER NOT NULL,
    key                TEXT UNIQUE,
    spec               TEXT NOT NULL,
    after              TEXT NOT NULL,
    dataset            TEXT,
    snapshot           TEXT,
    source             TEXT,
    attempt            INTEGER NOT NULL DEFAULT 0,
    intent             TEXT NOT NULL DEFAULT '',
    reason             TEXT NOT NULL DEFAULT '',
    error              TEXT,
    step               INTEGER NOT NULL DEFAULT 0,
    steps              INTEGER NOT NULL DEFAULT 0,
    updates_per_second REAL,
    eta_s              REAL,
    metrics            TEXT NOT NULL DEFAULT '{}',
    events             INTEGER NOT NULL DEFAULT 0,
    events_offset      INTEGER NOT NULL DEFAULT 0,
    created_at         REAL NOT NULL,
    started_at         REAL,
    finished_at        REAL
) STRICT;
CREATE INDEX jobs_waiting ON jobs (lane, priority DESC, seq) WHERE state = 'queued';
CREATE INDEX jobs_unfinished ON jobs (state) WHERE state IN ('queued', 'running', 'paused');
CREATE TABLE dependencies (
    job   TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    needs TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    PRIMARY KEY (job, needs)
) STRICT, WITHOUT ROWID;
CREATE INDEX dependencies_needs ON dependencies (needs);
CREATE TABLE events (
    seq  INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
    n    INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (seq, n)
) STRICT, WITHOUT ROWID;
CREATE TABLE datasets (
    name       TEXT PRIMARY KEY,
    info       TEXT NOT NULL,
    snapshot   TEXT NOT NULL,
    job        TEXT NOT NULL,
    updated_at REAL NOT NULL
) STRICT;
-- Added to it later, without a new number.
CREATE TABLE uses (
    job  TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    used TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    PRIMARY KEY (job, used)
) STRICT, WITHOUT ROWID;
CREATE INDEX uses_used ON uses (used);
CREATE TABLE peaks (
    job          TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    device_bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE job_owners (
    job  TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    name TEXT NOT NULL
) STRICT, WITHOUT ROWID;
