-- The tables of the embedded store, by the same numbers. Identifiers are UUIDs, times are milliseconds since 1970 in
-- UTC. Every key begins with the service, so that a store can be divided by tenant. Texts compare by their bytes.
-- Rows that every group rewrites leave half of each page free: the new version then stands in the same page, and no
-- index hears of it.

-- `copy` and its like: what is true of the store as a whole.
CREATE TABLE meta (
    name  TEXT COLLATE "C" PRIMARY KEY,
    value BYTEA NOT NULL
);

-- `head` is the last number of the service's event log: kept here, so that numbers never start again when old
-- events were pruned. A hidden service is being removed. Whoever changes the roll of a service locks its row first.
-- Numbers from `extension_next` on are free unless a contact has them; below it the free ones are in `free_extensions`.
CREATE TABLE services (
    service        UUID PRIMARY KEY,
    name           TEXT COLLATE "C" NOT NULL,
    created_at     BIGINT NOT NULL,
    head           BIGINT NOT NULL DEFAULT 0,
    last_event_at  BIGINT NOT NULL DEFAULT 0,
    contacts       BIGINT NOT NULL DEFAULT 0,
    extension_next INTEGER NOT NULL DEFAULT 100,
    hidden         BOOLEAN NOT NULL DEFAULT false
) WITH (fillfactor = 50);

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
CREATE UNIQUE INDEX contacts_extension ON contacts (service, extension) WHERE extension IS NOT NULL;

CREATE TABLE free_extensions (
    service UUID NOT NULL,
    number  INTEGER NOT NULL,
    PRIMARY KEY (service, number)
);

CREATE TABLE events (
    service         UUID NOT NULL,
    sequence        BIGINT NOT NULL,
    event           UUID NOT NULL,
    contact         UUID NOT NULL,
    kind            SMALLINT NOT NULL,
    contact_version BIGINT NOT NULL,
    full_name       TEXT COLLATE "C" NOT NULL,
    at              BIGINT NOT NULL,
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

-- One row per subscription, rewritten in every group in which it changed.
CREATE TABLE progress (
    service          UUID NOT NULL,
    app              UUID NOT NULL,
    generation       BIGINT NOT NULL,
    cursor           BIGINT NOT NULL,
    bitmap           BYTEA NOT NULL,
    failing_since    BIGINT,
    failing_attempts BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (service, app)
) WITH (fillfactor = 50);

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
