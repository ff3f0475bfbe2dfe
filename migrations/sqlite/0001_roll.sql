-- Identifiers are 16 bytes, times are milliseconds since 1970 in UTC. Every key begins with the service,
-- so that a store can be divided by tenant.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;

-- `head` is the last number of the service's event log: kept here, so that numbers never start again when old
-- events were pruned. A hidden service is being removed.
CREATE TABLE services (
    service       BLOB PRIMARY KEY,
    name          TEXT NOT NULL,
    created_at    INTEGER NOT NULL,
    head          INTEGER NOT NULL DEFAULT 0,
    last_event_at INTEGER NOT NULL DEFAULT 0,
    contacts      INTEGER NOT NULL DEFAULT 0,
    hidden        INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

CREATE TABLE apps (
    service    BLOB NOT NULL,
    app        BLOB NOT NULL,
    name       TEXT NOT NULL,
    scopes     INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (service, app)
) WITHOUT ROWID;

-- A caller shows only a token: this is the one look-up that does not know its service yet.
CREATE TABLE app_tokens (
    hash       BLOB PRIMARY KEY,
    service    BLOB NOT NULL,
    app        BLOB NOT NULL,
    expires_at INTEGER
) WITHOUT ROWID;
CREATE INDEX app_tokens_by_app ON app_tokens (service, app);

CREATE TABLE app_secrets (
    service    BLOB NOT NULL,
    app        BLOB NOT NULL,
    number     INTEGER NOT NULL,
    secret     BLOB NOT NULL,
    expires_at INTEGER,
    PRIMARY KEY (service, app, number)
) WITHOUT ROWID;

CREATE TABLE contacts (
    service     BLOB NOT NULL,
    contact     BLOB NOT NULL,
    version     INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    email       TEXT NOT NULL,
    extension   INTEGER,
    search_name TEXT NOT NULL,
    fields      TEXT NOT NULL,
    PRIMARY KEY (service, contact)
) WITHOUT ROWID;
CREATE UNIQUE INDEX contacts_email ON contacts (service, email);
CREATE UNIQUE INDEX contacts_extension ON contacts (service, extension) WHERE extension IS NOT NULL;

CREATE TABLE events (
    service         BLOB NOT NULL,
    sequence        INTEGER NOT NULL,
    event           BLOB NOT NULL,
    contact         BLOB NOT NULL,
    kind            INTEGER NOT NULL,
    contact_version INTEGER NOT NULL,
    full_name       TEXT NOT NULL,
    at              INTEGER NOT NULL,
    PRIMARY KEY (service, sequence)
) WITHOUT ROWID;

CREATE TABLE subscriptions (
    service     BLOB NOT NULL,
    app         BLOB NOT NULL,
    url         TEXT NOT NULL,
    enabled     INTEGER NOT NULL,
    reason      TEXT NOT NULL DEFAULT '',
    ticket      INTEGER NOT NULL,
    verified_at INTEGER,
    updated_at  INTEGER NOT NULL,
    PRIMARY KEY (service, app)
) WITHOUT ROWID;

-- One row per subscription, rewritten in every group in which it changed.
CREATE TABLE progress (
    service          BLOB NOT NULL,
    app              BLOB NOT NULL,
    generation       INTEGER NOT NULL,
    cursor           INTEGER NOT NULL,
    bitmap           BLOB NOT NULL,
    failing_since    INTEGER,
    failing_attempts INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (service, app)
) WITHOUT ROWID;

CREATE TABLE held (
    service      BLOB NOT NULL,
    app          BLOB NOT NULL,
    sequence     INTEGER NOT NULL,
    contact      BLOB NOT NULL,
    retries_used INTEGER NOT NULL,
    attempts     INTEGER NOT NULL,
    due_at       INTEGER NOT NULL,
    PRIMARY KEY (service, app, sequence)
) WITHOUT ROWID;

CREATE TABLE exhausted (
    service  BLOB NOT NULL,
    app      BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    contact  BLOB NOT NULL,
    attempts INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    PRIMARY KEY (service, app, sequence)
) WITHOUT ROWID;

CREATE TABLE idempotency_keys (
    service      BLOB NOT NULL,
    app          BLOB NOT NULL,
    key          TEXT NOT NULL,
    request_hash BLOB NOT NULL,
    answer       TEXT NOT NULL,
    at           INTEGER NOT NULL,
    PRIMARY KEY (service, app, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (at);
