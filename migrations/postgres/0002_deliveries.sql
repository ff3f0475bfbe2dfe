-- What an app can see of its deliveries and repeat, and what was removed from an event log.

-- Events up to `floor` were removed.
ALTER TABLE services ADD COLUMN floor BIGINT NOT NULL DEFAULT 0;

-- Events up to `since` were never owed. `failed_attempts` numbers the rows of that table. The gap is what was
-- removed from the log before it was delivered.
ALTER TABLE progress ADD COLUMN since BIGINT NOT NULL DEFAULT 0;
ALTER TABLE progress ADD COLUMN failed_attempts BIGINT NOT NULL DEFAULT 0;
ALTER TABLE progress ADD COLUMN gap_from BIGINT;
ALTER TABLE progress ADD COLUMN gap_to BIGINT;

CREATE TABLE failed_attempts (
    service  UUID NOT NULL,
    app      UUID NOT NULL,
    number   BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    attempt  BIGINT NOT NULL,
    at       BIGINT NOT NULL,
    status   INTEGER,
    step     TEXT COLLATE "C" NOT NULL,
    answer   BYTEA NOT NULL,
    PRIMARY KEY (service, app, number)
);
CREATE INDEX failed_attempts_by_delivery ON failed_attempts (service, app, sequence, number);
CREATE INDEX failed_attempts_by_age ON failed_attempts (at);

-- What upkeep looks for once a second is rare among many rows.
CREATE INDEX services_hidden ON services (service) WHERE hidden;
CREATE INDEX app_tokens_by_expiry ON app_tokens (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX app_secrets_by_expiry ON app_secrets (expires_at) WHERE expires_at IS NOT NULL;
