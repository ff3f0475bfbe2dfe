-- What an app can see of its deliveries and repeat, and what was removed from an event log.

-- Events up to `floor` were removed.
ALTER TABLE services ADD COLUMN floor INTEGER NOT NULL DEFAULT 0;

-- Events up to `since` were never owed. `failed_attempts` numbers the rows of that table. The gap is what was
-- removed from the log before it was delivered.
ALTER TABLE progress ADD COLUMN since INTEGER NOT NULL DEFAULT 0;
ALTER TABLE progress ADD COLUMN failed_attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE progress ADD COLUMN gap_from INTEGER;
ALTER TABLE progress ADD COLUMN gap_to INTEGER;

CREATE TABLE failed_attempts (
    service  BLOB NOT NULL,
    app      BLOB NOT NULL,
    number   INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    status   INTEGER,
    step     TEXT NOT NULL,
    answer   BLOB NOT NULL,
    PRIMARY KEY (service, app, number)
) WITHOUT ROWID;
CREATE INDEX failed_attempts_by_delivery ON failed_attempts (service, app, sequence, number);
CREATE INDEX failed_attempts_by_age ON failed_attempts (at);

-- What upkeep looks for once a second is rare among many rows.
CREATE INDEX services_hidden ON services (service) WHERE hidden = 1;
CREATE INDEX app_tokens_by_expiry ON app_tokens (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX app_secrets_by_expiry ON app_secrets (expires_at) WHERE expires_at IS NOT NULL;
