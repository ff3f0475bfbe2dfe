-- Which e-mails of a service are taken. A unique index of `contacts` wrote a random page for each new contact;
-- here changes are appended to one small table and moved into the sorted one many at a time.

-- Sorted. What the two tables below say goes first.
CREATE TABLE emails (
    service BLOB NOT NULL,
    email   TEXT NOT NULL,
    contact BLOB NOT NULL,
    PRIMARY KEY (service, email)
) WITHOUT ROWID;

-- The order of the index, which holds all three columns: read once, written once.
INSERT INTO emails SELECT service, email, contact FROM contacts ORDER BY service, email;
DROP INDEX contacts_email;

-- Changes in the order in which they were made, numbered over both tables. Without a contact the e-mail was given
-- up. The table with the highest number is appended to; the other one is being moved into `emails`, or is empty.
CREATE TABLE recent_emails_0 (
    number  INTEGER PRIMARY KEY,
    service BLOB NOT NULL,
    email   TEXT NOT NULL,
    contact BLOB
);
CREATE TABLE recent_emails_1 (
    number  INTEGER PRIMARY KEY,
    service BLOB NOT NULL,
    email   TEXT NOT NULL,
    contact BLOB
);
