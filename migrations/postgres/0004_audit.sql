-- Who changed what, when and from where; and when a token was made and last used.

-- One row tells of one change, or of all changes of contacts that one caller made in one transaction: then `entries`
-- counts them, `action` is 'contacts', `sequence` is the event of the first, and `subject` has 17 bytes for each (see
-- `audit_rows.rs`). Entries are numbered from `first` on, without gaps within a service. The zero service is the server.
CREATE TABLE audit (
    service  UUID NOT NULL,
    first    BIGINT NOT NULL,
    entries  BIGINT NOT NULL,
    at       BIGINT NOT NULL,
    who      TEXT COLLATE "C" NOT NULL,
    address  TEXT COLLATE "C",
    action   TEXT COLLATE "C" NOT NULL,
    sequence BIGINT,
    app      UUID,
    subject  BYTEA,
    target   TEXT COLLATE "C",
    reason   TEXT COLLATE "C",
    PRIMARY KEY (service, first)
);
-- Without the many rows of contacts, so that these cost nothing here and the few others are found.
CREATE INDEX audit_by_action ON audit (service, action, first) WHERE action <> 'contacts';

CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only';
END
$$;
CREATE TRIGGER audit_is_append_only BEFORE UPDATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();

-- The last number of the service's audit log, and the time of its entry. That of the server stands in `counts`.
ALTER TABLE rolls ADD COLUMN audit_head BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rolls ADD COLUMN audit_at BIGINT NOT NULL DEFAULT 0;

-- A service with its roll, and for a copy of the store the way to put both in.
CREATE VIEW service_states AS
    SELECT s.service, s.name, s.created_at, s.hidden, s.floor, r.head, r.last_event_at, r.contacts, r.audit_head, r.audit_at
    FROM services s CROSS JOIN LATERAL
        (SELECT * FROM rolls r WHERE r.service = s.service ORDER BY r.version DESC LIMIT 1) r;

CREATE FUNCTION insert_service_state() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO services (service, name, created_at, hidden, floor)
        VALUES (NEW.service, NEW.name, NEW.created_at, NEW.hidden, NEW.floor);
    INSERT INTO rolls (service, head, last_event_at, contacts, audit_head)
        VALUES (NEW.service, NEW.head, NEW.last_event_at, NEW.contacts, NEW.audit_head);
    RETURN NEW;
END
$$;
CREATE TRIGGER insert_service_state INSTEAD OF INSERT ON service_states
    FOR EACH ROW EXECUTE FUNCTION insert_service_state();

-- `server_audit`: the last number of the server's audit log.
CREATE TABLE counts (
    name  TEXT COLLATE "C" PRIMARY KEY,
    count BIGINT NOT NULL
) WITH (fillfactor = 50);
INSERT INTO counts (name, count) VALUES ('server_audit', 0), ('server_audit_at', 0);

ALTER TABLE app_tokens ADD COLUMN created_at BIGINT;
ALTER TABLE app_tokens ADD COLUMN used_at BIGINT;

-- There are two while a rotation lasts.
CREATE TABLE admin_tokens (
    hash       BYTEA PRIMARY KEY,
    created_at BIGINT,
    used_at    BIGINT,
    expires_at BIGINT
);
