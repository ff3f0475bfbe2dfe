//! E-mails are free or taken exactly as a plain map says, wherever a change stands and whatever is forgotten.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};
use rusqlite::Connection;

use super::{EmailKey, Emails, Limits};
use crate::domain::clock::Timestamp;
use crate::domain::id::{ContactId, ServiceId};
use crate::store::sqlite::migrate;
use crate::store::sqlite::retention::Retention;
use crate::store::sqlite::upkeep::Upkeep;

/// Everything that is taken, newest change first. The tests of crashes ask the same.
const TAKEN: &str = "WITH recent AS (SELECT * FROM recent_emails_0 UNION ALL SELECT * FROM recent_emails_1), \
     newest AS (SELECT service, email, contact, max(number) FROM recent GROUP BY service, email) \
     SELECT service, email, contact FROM newest WHERE contact IS NOT NULL UNION ALL \
     SELECT service, email, contact FROM emails WHERE (service, email) NOT IN (SELECT service, email FROM newest)";

fn service(number: u8) -> ServiceId {
    ServiceId::from_bytes([number; 16])
}

fn key(number: u8) -> EmailKey {
    (service(1), format!("{number}@example.org"))
}

fn contact(number: u64) -> ContactId {
    ContactId::from_bytes(u128::from(number).to_be_bytes())
}

/// The tables with what is remembered of them.
struct Roll {
    connection: Connection,
    emails: Emails,
}

impl Roll {
    /// Two services, 1 and 2.
    fn new(recent: usize, merge: usize) -> Self {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate::migrate(&mut connection).unwrap();
        for number in 1..=2 {
            connection
                .execute(
                    "INSERT INTO services (service, name, created_at) VALUES (?1, '', 0)",
                    [service(number).as_bytes()],
                )
                .unwrap();
        }
        Self { connection, emails: Emails { limits: Limits { recent, merge }, recent: None } }
    }

    fn begin(&self) {
        self.connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    }

    fn commit(&mut self) {
        self.emails.merge(&self.connection).unwrap();
        self.connection.execute_batch("COMMIT").unwrap();
    }

    fn fail(&mut self) {
        self.connection.execute_batch("ROLLBACK").unwrap();
        self.emails.forget();
    }

    fn find(&mut self, key: &EmailKey) -> Option<ContactId> {
        self.emails.find(&self.connection, key).unwrap()
    }

    /// A group of one change.
    fn put(&mut self, key: EmailKey, contact: Option<ContactId>) {
        self.begin();
        match contact {
            Some(contact) => self.emails.take(&self.connection, key, contact).unwrap(),
            None => self.emails.free(&self.connection, key).unwrap(),
        }
        self.commit();
    }

    fn count(&self, table: &str) -> usize {
        let query = format!("SELECT count(*) FROM {table}");
        let count: i64 = self.connection.query_row(&query, [], |row| row.get(0)).unwrap();
        usize::try_from(count).unwrap()
    }

    /// Rows of the sorted table and of the two small ones.
    fn counts(&self) -> [usize; 3] {
        ["emails", "recent_emails_0", "recent_emails_1"].map(|table| self.count(table))
    }

    fn taken(&self) -> BTreeMap<EmailKey, ContactId> {
        let row = |row: &rusqlite::Row<'_>| {
            let key = (ServiceId::from_bytes(row.get(0)?), row.get(1)?);
            Ok((key, ContactId::from_bytes(row.get(2)?)))
        };
        let mut statement = self.connection.prepare(TAKEN).unwrap();
        let rows: Vec<_> = statement.query_map([], row).unwrap().collect::<Result<_, _>>().unwrap();
        let taken: BTreeMap<_, _> = rows.iter().cloned().collect();
        assert_eq!(taken.len(), rows.len(), "taken twice");
        taken
    }

    /// Upkeep until it finds nothing.
    fn clean(&mut self) {
        let mut upkeep = Upkeep::new(Retention::default());
        while upkeep.run_slice(&mut self.connection, Timestamp::from_millis(0)).unwrap().removed {}
    }

    fn hide(&mut self, number: u8) {
        self.connection
            .execute(
                "UPDATE services SET hidden = 1 WHERE service = ?1",
                [service(number).as_bytes()],
            )
            .unwrap();
        self.emails.hide(service(number));
    }
}

/// One e-mail is taken, given up and taken again, with so many changes of others in between.
fn take_free_take(others: u8, forgetful: bool, stages: &mut BTreeSet<[bool; 3]>) {
    let mut roll = Roll::new(4, 1);
    let mut other = 10;
    let email = key(1);
    for step in [Some(contact(1)), None, Some(contact(2)), None, Some(contact(3))] {
        roll.put(email.clone(), step);
        for _ in 0..others {
            roll.put(key(other), Some(contact(other.into())));
            other += 1;
            if forgetful {
                roll.emails.forget();
            }
            assert_eq!(roll.find(&email), step, "{others} others");
            assert_eq!(roll.taken().get(&email).copied(), step, "{others} others");
        }
        stages.insert(roll.counts().map(|rows| rows > 0));
        assert_eq!(roll.find(&email), step, "{others} others");
    }
}

#[test]
fn an_email_is_taken_and_free_in_every_stage_and_after_a_restart() {
    for forgetful in [false, true] {
        let mut stages = BTreeSet::new();
        for others in 0..16 {
            take_free_take(others, forgetful, &mut stages);
        }
        // Filling alone, one merging beside one filling, and one filling beside what is merged, in both tables.
        for stage in
            [[false, true, false], [true, true, true], [true, true, false], [true, false, true]]
        {
            assert!(stages.contains(&stage), "{stage:?} not in {stages:?}");
        }
    }
}

#[test]
fn a_full_layer_is_merged_in_slices_while_the_other_one_fills() {
    let mut roll = Roll::new(4, 4);
    let mut counts = Vec::new();
    for number in 0..9 {
        roll.put(key(number), Some(contact(number.into())));
        counts.push(roll.counts());
    }

    assert_eq!(counts[3], [0, 4, 0]);
    assert_eq!(counts[4], [0, 4, 1]);
    // Two for each change, four at a time: then the first table is empty.
    assert_eq!(counts[5], [4, 0, 2]);
    assert_eq!(counts[7], [4, 0, 4]);
    assert_eq!(counts[8], [4, 1, 4]);
}

#[test]
fn a_group_of_any_size_leaves_no_more_than_two_full_layers() {
    let mut roll = Roll::new(4, 1);
    roll.begin();
    for number in 0..50 {
        roll.emails.take(&roll.connection, key(number), contact(number.into())).unwrap();
        let [_, zero, one] = roll.counts();
        assert!(zero <= 4 && one <= 4, "{zero} and {one}");
    }
    roll.commit();

    assert_eq!(roll.taken().len(), 50);
    roll.emails.forget();
    assert!((0..50).all(|number| roll.find(&key(number)) == Some(contact(number.into()))));
}

#[test]
fn a_merge_that_was_cut_off_begins_anew() {
    let mut roll = Roll::new(6, 2);
    for number in 0..7 {
        roll.put(key(number), Some(contact(number.into())));
    }
    // Two are merged and still in their table. One is given up, which the newer layer says.
    assert_eq!(roll.counts(), [2, 6, 1]);
    roll.put(key(0), None);
    roll.emails.forget();

    for number in 20..26 {
        roll.put(key(number), Some(contact(number.into())));
    }

    assert_eq!(roll.find(&key(0)), None);
    assert_eq!(roll.find(&key(1)), Some(contact(1)));
    assert_eq!(roll.taken().len(), 12);
}

#[test]
fn a_group_that_failed_leaves_nothing() {
    let mut roll = Roll::new(3, 1);
    for number in 0..5 {
        roll.put(key(number), Some(contact(number.into())));
    }
    let before = (roll.taken(), roll.counts());

    roll.begin();
    roll.emails.free(&roll.connection, key(0)).unwrap();
    for number in 5..20 {
        roll.emails.take(&roll.connection, key(number), contact(number.into())).unwrap();
    }
    roll.emails.merge(&roll.connection).unwrap();
    roll.fail();

    assert_eq!((roll.taken(), roll.counts()), before);
    assert_eq!(roll.find(&key(0)), Some(contact(0)));
    assert_eq!(roll.find(&key(7)), None);
}

#[test]
fn nothing_of_a_hidden_service_comes_back() {
    for forgetful in [false, true] {
        for changes in 1..30 {
            let mut roll = Roll::new(5, 2);
            for number in 0..changes {
                let of = (service(1 + number % 2), key(number).1);
                roll.put(of, Some(contact(number.into())));
            }
            roll.hide(2);
            if forgetful {
                roll.emails.forget();
                assert_eq!(roll.find(&key(200)), None, "reads the rows before they are removed");
            }
            // A merge in between, then the rows go, then everything is merged.
            roll.put(key(100), Some(contact(100)));
            roll.clean();
            assert_eq!(roll.count("services"), 1);
            for number in 101..120 {
                roll.put(key(number), Some(contact(number.into())));
            }

            for table in ["emails", "recent_emails_0", "recent_emails_1"] {
                let left = roll.count(&format!("{table} WHERE service = x'{}'", "02".repeat(16)));
                assert_eq!(left, 0, "{table} after {changes} changes");
            }
            assert_eq!(roll.taken().len(), usize::from(changes.div_ceil(2)) + 20);
        }
    }
}

#[test]
fn numbers_go_on_when_upkeep_has_removed_the_highest() {
    let mut roll = Roll::new(4, 1);
    for number in 0..4 {
        roll.put(key(number), Some(contact(number.into())));
    }
    for number in 4..6 {
        roll.put((service(2), key(number).1), Some(contact(number.into())));
    }
    roll.hide(2);
    roll.emails.forget();
    // Loaded before the removal: the next number is beyond rows that are not remembered.
    roll.put(key(0), None);
    roll.clean();
    roll.emails.forget();

    roll.put(key(0), Some(contact(7)));

    assert_eq!(roll.find(&key(0)), Some(contact(7)));
    assert_eq!(roll.taken().len(), 4);
}

/// What happens to a roll, with six e-mails in each of two services.
#[derive(Debug, Clone)]
enum Step {
    Create(u8),
    Delete(u8),
    Commit,
    Fail,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..12_u8).prop_map(Step::Create),
        4 => (0..12_u8).prop_map(Step::Delete),
        4 => Just(Step::Commit),
        1 => Just(Step::Fail),
        1 => Just(Step::Reopen),
    ]
}

fn numbered(number: u8) -> EmailKey {
    (service(1 + number % 2), format!("{}@example.org", number / 2))
}

proptest! {
    #[test]
    fn emails_are_as_a_map_has_them(
        recent in 1..7_usize,
        merge in 1..6_usize,
        steps in proptest::collection::vec(step(), 1..200),
        last in any::<bool>(),
    ) {
        let mut roll = Roll::new(recent, merge);
        let (mut model, mut durable) = (BTreeMap::new(), BTreeMap::new());
        roll.begin();
        for (number, step) in (1..).zip(steps) {
            match step {
                Step::Create(email) => {
                    let key = numbered(email);
                    let found = roll.find(&key);
                    prop_assert_eq!(found, model.get(&key).copied());
                    if found.is_none() {
                        roll.emails.take(&roll.connection, key.clone(), contact(number)).unwrap();
                        model.insert(key, contact(number));
                    }
                }
                Step::Delete(email) => {
                    let key = numbered(email);
                    if model.remove(&key).is_some() {
                        roll.emails.free(&roll.connection, key).unwrap();
                    }
                }
                Step::Commit => {
                    roll.commit();
                    durable = model.clone();
                    roll.begin();
                }
                Step::Fail | Step::Reopen => {
                    if matches!(step, Step::Reopen) {
                        roll.commit();
                        durable = model.clone();
                        roll.begin();
                    }
                    roll.fail();
                    model = durable.clone();
                    roll.begin();
                }
            }
            let [_, zero, one] = roll.counts();
            prop_assert_eq!(zero.max(one).max(recent), recent);
        }
        if last { roll.commit() } else { roll.fail(); model = durable }
        prop_assert_eq!(roll.taken(), model.clone());
        for number in 0..12 {
            let key = numbered(number);
            prop_assert_eq!(roll.find(&key), model.get(&key).copied());
        }
    }
}
