-- Who changed what, when and from where; and when a token was made and last used.

-- One row tells of one change, or of all changes of contacts that one caller made in one transaction: then `entries`
-- counts them, `action` is 'contacts', `sequence` is the event of the first, and `subject` has 17 bytes for each (see
-- `audit.rs`). Entries are numbered from `first` on, without gaps within a service. The zero service is the server.
CREATE TABLE audit (
    service  BLOB NOT NULL,
    first    INTEGER NOT NULL,
    entries  INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    who      TEXT NOT NULL,
    address  TEXT,
    action   TEXT NOT NULL,
    sequence INTEGER,
    app      BLOB,
    subject  BLOB,
    target   TEXT,
    reason   TEXT,
    PRIMARY KEY (service, first)
) WITHOUT ROWID;
-- Without the many rows of contacts, so that these cost nothing here and the few others are found.
CREATE INDEX audit_by_action ON audit (service, action, first) WHERE action <> 'contacts';

CREATE TRIGGER audit_is_append_only BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;

-- The last number of the service's audit log; that of the server stands in `meta`.
ALTER TABLE services ADD COLUMN audit_head INTEGER NOT NULL DEFAULT 0;

ALTER TABLE app_tokens ADD COLUMN created_at INTEGER;
ALTER TABLE app_tokens ADD COLUMN used_at INTEGER;

-- There are two while a rotation lasts.
CREATE TABLE admin_tokens (
    hash       BLOB PRIMARY KEY,
    created_at INTEGER,
    used_at    INTEGER,
    expires_at INTEGER
) WITHOUT ROWID;
INSERT INTO admin_tokens (hash) SELECT value FROM meta WHERE name = 'admin_token_hash';
DELETE FROM meta WHERE name = 'admin_token_hash';
