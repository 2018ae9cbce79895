-- The controller's durable truth. Times are microseconds since 1970.

-- Who is in office: one row, raised at every start.
CREATE TABLE term (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    number   INTEGER NOT NULL CHECK (number > 0),
    instance TEXT NOT NULL
) STRICT;

CREATE TABLE host (
    id           TEXT PRIMARY KEY,
    -- What its agent said last, a drover.v1.Host.
    registration BLOB NOT NULL,
    cordoned     INTEGER NOT NULL DEFAULT 0 CHECK (cordoned IN (0, 1)),
    generation   INTEGER NOT NULL,
    registered   INTEGER NOT NULL
) STRICT;

-- One row is the truth of one migration; every write names the generation it has read.
CREATE TABLE migration (
    id               TEXT PRIMARY KEY,
    generation       INTEGER NOT NULL,
    request_id       TEXT UNIQUE,
    request_content  BLOB,
    guest            TEXT NOT NULL,
    guest_name       TEXT NOT NULL,
    source           TEXT NOT NULL,
    destination      TEXT NOT NULL,
    labels           TEXT NOT NULL CHECK (json_valid(labels)),
    requested_by     TEXT NOT NULL,
    -- Where it is in the saga.
    position         TEXT NOT NULL,
    -- The phase it is in, or was in last.
    phase            TEXT NOT NULL,
    -- 0: active or stuck, and keeps the guest's place.
    finished         INTEGER NOT NULL CHECK (finished IN (0, 1)),
    -- As in the API, for lists.
    state            TEXT NOT NULL,
    attempt          INTEGER NOT NULL,
    unknowns         INTEGER NOT NULL,
    cancel_requested INTEGER,
    too_late         INTEGER NOT NULL CHECK (too_late IN (0, 1)),
    guest_host       TEXT,
    -- The life of the guest that was validated, a drover.agent.v1.Incarnation.
    incarnation      BLOB,
    -- Ticket and cookie, a drover.agent.v1.PrepareIncomingResponse.
    prepared         BLOB,
    trace_id         TEXT NOT NULL,
    root_span        TEXT NOT NULL,
    parent_span      TEXT,
    created          INTEGER NOT NULL,
    started          INTEGER,
    transfer_started INTEGER,
    ended            INTEGER,
    updated          INTEGER NOT NULL,
    -- What is only read as a whole, a drover.v1.Migration with just these fields.
    details          BLOB NOT NULL
) STRICT;

-- Not a hope: two unfinished migrations of one guest cannot be written.
CREATE UNIQUE INDEX one_unfinished_migration_per_guest ON migration (guest) WHERE finished = 0;
CREATE INDEX migration_by_state ON migration (state, id);

-- Attempts at phases. A start is written before the phase acts; nothing is ever taken back.
CREATE TABLE step (
    migration TEXT NOT NULL REFERENCES migration (id),
    number    INTEGER NOT NULL,
    phase     TEXT NOT NULL,
    attempt   INTEGER NOT NULL,
    span_id   TEXT NOT NULL,
    started   INTEGER NOT NULL,
    ended     INTEGER,
    outcome   TEXT CHECK ((outcome IS NULL) = (ended IS NULL)),
    detail    TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (migration, number)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER step_is_append_only BEFORE UPDATE ON step
WHEN old.ended IS NOT NULL OR new.ended IS NULL
    OR new.phase <> old.phase OR new.attempt <> old.attempt OR new.started <> old.started
BEGIN
    SELECT raise(ABORT, 'a step is written once and ended once');
END;

CREATE TRIGGER step_is_kept BEFORE DELETE ON step
BEGIN
    SELECT raise(ABORT, 'steps are kept');
END;

-- What watchers must not miss.
CREATE TABLE event (
    migration TEXT NOT NULL REFERENCES migration (id),
    sequence  INTEGER NOT NULL,
    time      INTEGER NOT NULL,
    -- A drover.v1.WatchMigrationResponse with only its event.
    content   BLOB NOT NULL,
    PRIMARY KEY (migration, sequence)
) STRICT, WITHOUT ROWID;
