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
