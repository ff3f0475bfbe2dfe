-- The tables of the embedded store, by the same numbers. Identifiers are UUIDs, times are milliseconds since 1970 in
-- UTC. Every key begins with the service, so that a store can be divided by tenant. Texts compare by their bytes.
--
-- Rows that every group writes anew have a `version` at the end of their key, which counts up. So each look-up begins at the
-- newest version, however many dead ones there are: while somebody leaves a transaction open PostgreSQL removes none of
-- them, and a row that keeps its key is found by going through them all.

-- `copy` and its like: what is true of the store as a whole.
CREATE TABLE meta (
    name  TEXT COLLATE "C" PRIMARY KEY,
    value BYTEA NOT NULL
);

-- A hidden service is being removed. Whoever changes anything of a service locks its row here first.
CREATE TABLE services (
    service    UUID PRIMARY KEY,
    name       TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    hidden     BOOLEAN NOT NULL DEFAULT false
);

-- One row for each service. `head` is the last number of its event log: kept here, so that numbers never start again
-- when old events were pruned.
CREATE TABLE rolls (
    service       UUID NOT NULL,
    version       BIGINT NOT NULL DEFAULT 0,
    head          BIGINT NOT NULL DEFAULT 0,
    last_event_at BIGINT NOT NULL DEFAULT 0,
    contacts      BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (service, version)
);

CREATE TABLE apps (
    service    UUID NOT NULL,
    app        UUID NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,
    scopes     BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (service, app)
);

-- A caller shows only a token: this is the one look-up that does not know its service yet.
CREATE TABLE app_tokens (
    hash       BYTEA PRIMARY KEY,
    service    UUID NOT NULL,
    app        UUID NOT NULL,
    expires_at BIGINT
);
CREATE INDEX app_tokens_by_app ON app_tokens (service, app);

CREATE TABLE app_secrets (
    service    UUID NOT NULL,
    app        UUID NOT NULL,
    number     BIGINT NOT NULL,
    secret     BYTEA NOT NULL,
    expires_at BIGINT,
    PRIMARY KEY (service, app, number)
);

-- Which extension numbers are taken each writer keeps in memory, and brings forward from the log. An index of them would
-- not serve it: numbers that are given up and taken again all the time leave dead entries at the lowest free ones.
CREATE TABLE contacts (
    service     UUID NOT NULL,
    contact     UUID NOT NULL,
    version     BIGINT NOT NULL,
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,
    email       TEXT COLLATE "C" NOT NULL,
    extension   INTEGER,
    search_name TEXT COLLATE "C" NOT NULL,
    fields      TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (service, contact)
) WITH (fillfactor = 90);
CREATE UNIQUE INDEX contacts_email ON contacts (service, email);

-- With the extension numbers that a change gave up and took, for those who remember which are taken.
CREATE TABLE events (
    service         UUID NOT NULL,
    sequence        BIGINT NOT NULL,
    event           UUID NOT NULL,
    contact         UUID NOT NULL,
    kind            SMALLINT NOT NULL,
    contact_version BIGINT NOT NULL,
    full_name       TEXT COLLATE "C" NOT NULL,
    at              BIGINT NOT NULL,
    number_freed    INTEGER,
    number_taken    INTEGER,
    PRIMARY KEY (service, sequence)
);

CREATE TABLE subscriptions (
    service     UUID NOT NULL,
    app         UUID NOT NULL,
    url         TEXT COLLATE "C" NOT NULL,
    enabled     SMALLINT NOT NULL,
    reason      TEXT COLLATE "C" NOT NULL DEFAULT '',
    ticket      BIGINT NOT NULL,
    verified_at BIGINT,
    updated_at  BIGINT NOT NULL,
    PRIMARY KEY (service, app)
);

-- One row per subscription.
CREATE TABLE progress (
    service          UUID NOT NULL,
    app              UUID NOT NULL,
    generation       BIGINT NOT NULL,
    cursor           BIGINT NOT NULL,
    bitmap           BYTEA NOT NULL,
    failing_since    BIGINT,
    failing_attempts BIGINT NOT NULL DEFAULT 0,
    version          BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (service, app, version)
);

CREATE TABLE held (
    service      UUID NOT NULL,
    app          UUID NOT NULL,
    sequence     BIGINT NOT NULL,
    contact      UUID NOT NULL,
    retries_used BIGINT NOT NULL,
    attempts     BIGINT NOT NULL,
    due_at       BIGINT NOT NULL,
    PRIMARY KEY (service, app, sequence)
);

CREATE TABLE exhausted (
    service  UUID NOT NULL,
    app      UUID NOT NULL,
    sequence BIGINT NOT NULL,
    contact  UUID NOT NULL,
    attempts BIGINT NOT NULL,
    at       BIGINT NOT NULL,
    PRIMARY KEY (service, app, sequence)
);

CREATE TABLE idempotency_keys (
    service      UUID NOT NULL,
    app          UUID NOT NULL,
    key          TEXT COLLATE "C" NOT NULL,
    request_hash BYTEA NOT NULL,
    answer       TEXT COLLATE "C" NOT NULL,
    at           BIGINT NOT NULL,
    PRIMARY KEY (service, app, key)
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (at);
