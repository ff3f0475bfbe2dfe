-- The era of the database: one row, which is not logged. It is gone after a crash, on a standby that takes over and in a
-- restored backup, which is whenever something that was committed may be gone too; and it stays when the server is
-- stopped in order. Who finds no row begins an era (`era.rs`). It is settled once every lease of before must be over. Where
-- there is no node there is none.
CREATE UNLOGGED TABLE eras (
    one     BOOLEAN PRIMARY KEY DEFAULT true CHECK (one),
    era     UUID NOT NULL,
    settled BOOLEAN NOT NULL
);
INSERT INTO eras (era, settled) SELECT gen_random_uuid(), NOT EXISTS (SELECT FROM nodes);
