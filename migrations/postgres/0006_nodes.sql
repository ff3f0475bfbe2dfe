-- Several nodes on one store: who is there, who sends for which subscriptions, and what is to be heard by the others.

-- One row for each process. It counts `renewals` up as long as it lives; who sees no change for a whole lease removes
-- the row. `seen_at` is for people: the database's clock at the last renewal.
CREATE TABLE nodes (
    node       UUID PRIMARY KEY,
    name       TEXT COLLATE "C" NOT NULL,
    version    TEXT COLLATE "C" NOT NULL,
    started_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    seen_at    TIMESTAMPTZ NOT NULL DEFAULT now(),
    renewals   BIGINT NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- Each subscription belongs to a shard (`shard_of`). The node that has it sends for it; the epoch counts each change of
-- hands. Whoever records a delivery locks the row of its shard and compares the epoch.
CREATE TABLE shards (
    shard SMALLINT PRIMARY KEY,
    node  UUID,
    epoch BIGINT NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
INSERT INTO shards (shard) SELECT generate_series(0, 63);

-- Lanes that are not simply active (1 paused, 2 failing), for the other nodes to show. It counts while the shard has this
-- epoch. What is lost in a crash is written again when it changes.
CREATE UNLOGGED TABLE lane_conditions (
    service   UUID NOT NULL,
    app       UUID NOT NULL,
    epoch     BIGINT NOT NULL,
    condition SMALLINT NOT NULL,
    PRIMARY KEY (service, app)
);

-- Each transaction that writes inserts an id of its own first. When the end of its commit is not known it is made again
-- with the same id, which is there if the first one happened.
CREATE TABLE groups (
    id UUID PRIMARY KEY,
    at BIGINT NOT NULL
);
CREATE INDEX groups_by_age ON groups (at);

-- Changes that other nodes must hear of: `tenancy` counts those of services, apps and tokens, `shard/N` those of
-- subscriptions and secrets in that shard.
INSERT INTO counts (name, count) VALUES ('tenancy', 0);
INSERT INTO counts (name, count) SELECT 'shard/' || n, 0 FROM generate_series(0, 63) n;

-- In which order requests to subscribe arrived.
CREATE SEQUENCE subscription_tickets;

-- How much of its request rate a service has used up, over all nodes: the time at which that is made good, in microseconds
-- since 1970 on the database's clock. Not logged: what is lost is at most a minute's worth of requests for each service.
CREATE UNLOGGED TABLE request_levels (
    service  UUID PRIMARY KEY,
    empty_at BIGINT NOT NULL
) WITH (fillfactor = 50);

-- What groups change, row by row: each is looked up by its whole key. Joined to arrays in one statement, a table of which
-- the planner knows that it has few rows would be read from end to end, and all its dead versions with it.
CREATE FUNCTION write_rolls(
    services UUID[], versions BIGINT[], heads BIGINT[], event_times BIGINT[], counts BIGINT[], audit_heads BIGINT[],
    audit_times BIGINT[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. cardinality(services) LOOP
        UPDATE rolls SET version = version + 1, head = heads[i], last_event_at = event_times[i], contacts = counts[i],
            audit_head = audit_heads[i], audit_at = audit_times[i]
            WHERE service = services[i] AND version = versions[i];
    END LOOP;
END
$$;
CREATE FUNCTION write_progress(
    services UUID[], apps UUID[], versions BIGINT[], generations BIGINT[], cursors BIGINT[], bitmaps BYTEA[],
    failing_times BIGINT[], failing_counts BIGINT[], failed_counts BIGINT[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. cardinality(services) LOOP
        UPDATE progress SET version = version + 1, generation = generations[i], cursor = cursors[i], bitmap = bitmaps[i],
            failing_since = failing_times[i], failing_attempts = failing_counts[i], failed_attempts = failed_counts[i]
            WHERE service = services[i] AND app = apps[i] AND version = versions[i];
    END LOOP;
END
$$;
CREATE FUNCTION write_contacts(
    services UUID[], ids UUID[], versions BIGINT[], times BIGINT[], numbers INTEGER[], names TEXT[], contents TEXT[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. cardinality(services) LOOP
        UPDATE contacts SET version = versions[i], updated_at = times[i], extension = numbers[i], search_name = names[i],
            fields = contents[i]
            WHERE service = services[i] AND contact = ids[i];
    END LOOP;
END
$$;
CREATE FUNCTION delete_contacts(services UUID[], ids UUID[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. cardinality(services) LOOP
        DELETE FROM contacts WHERE service = services[i] AND contact = ids[i];
    END LOOP;
END
$$;
CREATE FUNCTION release_held(services UUID[], apps UUID[], sequences BIGINT[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. cardinality(services) LOOP
        DELETE FROM held WHERE service = services[i] AND app = apps[i] AND sequence = sequences[i];
    END LOOP;
END
$$;
-- All but the newest attempts of a delivery.
CREATE FUNCTION forget_failed(services UUID[], apps UUID[], sequences BIGINT[], kept BIGINT)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. cardinality(services) LOOP
        DELETE FROM failed_attempts f WHERE f.service = services[i] AND f.app = apps[i] AND f.sequence = sequences[i]
            AND f.number <= (SELECT number FROM failed_attempts o WHERE o.service = services[i] AND o.app = apps[i]
            AND o.sequence = sequences[i] ORDER BY number DESC OFFSET kept LIMIT 1);
    END LOOP;
END
$$;
CREATE FUNCTION forget_old_failed(services UUID[], apps UUID[], numbers BIGINT[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. cardinality(services) LOOP
        DELETE FROM failed_attempts WHERE service = services[i] AND app = apps[i] AND number <= numbers[i];
    END LOOP;
END
$$;
