"""The tables of the queue's database and their version; `migrations` upgrades older ones."""

from __future__ import annotations

SCHEMA_VERSION = 3

# `seq` gives the order of submission; `events` counts the events of the job so that they are numbered without gaps; `events_offset` is
# how far events.jsonl has been read, written in the same transaction as the events themselves; `intent` is what a user wants of a
# running job (pause, cancel, or resume after a pause that is under way) and survives the daemon. A queued job does not start before
# `start_at` (set by the user) and `retry_at` (after a crash), seconds since the epoch; `crashes` counts its crashed attempts in a row;
# `forced`: a user started it, even if the queue is paused; `pinned`: retention never deletes it; `rerun_of` is the job that it
# repeats. A key belongs to its owner: two owners may use the same key.
JOBS = """
CREATE TABLE {name} (
    seq                INTEGER PRIMARY KEY AUTOINCREMENT,
    id                 TEXT NOT NULL UNIQUE,
    kind               TEXT NOT NULL,
    lane               TEXT NOT NULL,
    state              TEXT NOT NULL CHECK (state IN ('queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled')),
    priority           INTEGER NOT NULL,
    owner              TEXT,
    key                TEXT,
    spec               TEXT NOT NULL,
    after              TEXT NOT NULL,
    dataset            TEXT,
    snapshot           TEXT,
    source             TEXT,
    rerun_of           TEXT,
    attempt            INTEGER NOT NULL DEFAULT 0,
    start_at           REAL,
    retry_at           REAL,
    crashes            INTEGER NOT NULL DEFAULT 0,
    forced             INTEGER NOT NULL DEFAULT 0,
    pinned             INTEGER NOT NULL DEFAULT 0,
    intent             TEXT NOT NULL DEFAULT '',
    reason             TEXT NOT NULL DEFAULT '',
    error              TEXT,
    step               INTEGER NOT NULL DEFAULT 0,
    steps              INTEGER NOT NULL DEFAULT 0,
    updates_per_second REAL,
    eta_s              REAL,
    metrics            TEXT NOT NULL DEFAULT '{{}}',
    events             INTEGER NOT NULL DEFAULT 0,
    events_offset      INTEGER NOT NULL DEFAULT 0,
    created_at         REAL NOT NULL,
    started_at         REAL,
    finished_at        REAL
) STRICT;
"""
INDEXES = """
CREATE INDEX jobs_waiting ON jobs (lane, priority DESC, seq) WHERE state = 'queued';
CREATE INDEX jobs_unfinished ON jobs (state) WHERE state IN ('queued', 'running', 'paused');
CREATE INDEX jobs_started ON jobs (lane, owner, started_at);
CREATE UNIQUE INDEX jobs_key ON jobs (owner, key) WHERE key IS NOT NULL;
"""
# The owner of a dataset: only this owner and operators may remove it, or append to it if it is bounded. Older datasets have no owner.
DATASET_OWNERS = """
CREATE TABLE dataset_owners (
    name  TEXT PRIMARY KEY REFERENCES datasets (name) ON DELETE CASCADE,
    owner TEXT
) STRICT, WITHOUT ROWID;
"""
# `meta`: the version under 'schema'; under 'paused', as JSON, who paused the queue, when and why.
SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;"
    + JOBS.format(name="jobs")
    + INDEXES
    + """
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
"""
    + DATASET_OWNERS
    + """
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
"""
)
