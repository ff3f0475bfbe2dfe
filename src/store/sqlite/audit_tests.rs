//! Rows of the audit log: how many a group writes, that they stay as they are, and that only age removes them.

use rusqlite::Connection;

use super::{Audit, list, remove_old};
use crate::domain::audit::{Action, Entry, Origin, SERVER, Subject};
use crate::domain::clock::Timestamp;
use crate::domain::event::EventKind;
use crate::domain::id::{ContactId, ServiceId};
use crate::domain::tenancy::Token;
use crate::store::rows::AuditQuery;
use crate::store::sqlite::migrate;
use crate::store::sqlite::services::Services;

const SERVICE: ServiceId = ServiceId::from_bytes([1; 16]);
const OTHER: ServiceId = ServiceId::from_bytes([2; 16]);

fn open() -> Connection {
    let mut connection = Connection::open_in_memory().unwrap();
    migrate::migrate(&mut connection).unwrap();
    for service in [SERVICE, OTHER] {
        connection
            .execute(
                "INSERT INTO services (service, name, created_at) VALUES (?1, 's', 0)",
                [service.as_bytes()],
            )
            .unwrap();
    }
    connection
}

fn caller(text: &str) -> Origin {
    Origin::of_token(Token::from_text(text).hash().id(), [192, 0, 2, 1].into())
}

fn contact(number: u64) -> ContactId {
    ContactId::from_bytes(u128::from(number).to_be_bytes())
}

fn write(connection: &Connection, audit: Audit, millis: i64) {
    super::write(audit, connection, &mut Services::default(), Timestamp::from_millis(millis))
        .unwrap();
}

/// One group with these changes of contacts.
fn write_contacts(connection: &Connection, service: ServiceId, events: &[u64], millis: i64) {
    let mut audit = Audit::default();
    for event in events {
        audit.note_contact(service, caller("a"), EventKind::Create, contact(*event), *event);
    }
    write(connection, audit, millis);
}

fn rows(connection: &Connection) -> i64 {
    connection.query_row("SELECT count(*) FROM audit", [], |row| row.get(0)).unwrap()
}

fn entries(connection: &Connection, service: ServiceId) -> Vec<Entry> {
    let query = AuditQuery { limit: 10_000, ..AuditQuery::default() };
    list(connection, service, query).unwrap().unwrap().entries
}

#[test]
fn a_group_has_one_row_for_each_caller_of_each_service() {
    let connection = open();
    let mut audit = Audit::default();
    let kinds = [EventKind::Create, EventKind::Edit, EventKind::Delete].into_iter().cycle();
    let kind_of = |number: u64| kinds.clone().nth(usize::try_from(number).unwrap()).unwrap();
    for number in 0..30 {
        let (who, kind) = (["a", "b"][usize::from(number % 3 == 0)], kind_of(number));
        let service = if number % 2 == 0 { SERVICE } else { OTHER };
        audit.note_contact(service, caller(who), kind, contact(number), number / 2 + 1);
    }

    write(&connection, audit, 0);

    assert_eq!(rows(&connection), 4);
    let bytes: i64 = connection
        .query_row("SELECT sum(length(subject)) FROM audit", [], |row| row.get(0))
        .unwrap();
    assert_eq!(bytes, 30 * 17);
    for service in [SERVICE, OTHER] {
        let entries = entries(&connection, service);
        assert!(entries.iter().zip(1..).all(|(entry, number)| entry.number == number));
        let mut events: Vec<u64> =
            entries.iter().map(|entry| entry.subject.sequence.unwrap()).collect();
        events.sort_unstable();
        assert_eq!(events, (1..=15).collect::<Vec<u64>>());
        for entry in entries {
            let parity = u64::from(service == OTHER);
            let number = (entry.subject.sequence.unwrap() - 1) * 2 + parity;
            assert_eq!(entry.subject.contact, Some(contact(number)));
            assert_eq!(entry.action, Action::from(kind_of(number)));
            assert_eq!(entry.origin, caller(["a", "b"][usize::from(number % 3 == 0)]));
        }
    }
}

#[test]
fn a_row_ends_where_the_next_change_does_not_fit() {
    let connection = open();

    // 63 apart fits, 64 does not; beyond a thousand changes a second row begins.
    write_contacts(&connection, SERVICE, &[1, 64, 128], 0);
    assert_eq!(rows(&connection), 2);
    write_contacts(&connection, SERVICE, &(129..129 + 1_001).collect::<Vec<u64>>(), 0);
    assert_eq!(rows(&connection), 4);

    // Another kind of entry keeps its place among them.
    let mut audit = Audit::default();
    audit.note_contact(OTHER, caller("a"), EventKind::Create, contact(1), 1);
    audit.note(OTHER, caller("a"), Action::TokenRotate, Subject::default());
    audit.note_contact(OTHER, caller("a"), EventKind::Create, contact(2), 2);
    write(&connection, audit, 0);

    let events: Vec<u64> =
        entries(&connection, SERVICE).iter().map(|entry| entry.subject.sequence.unwrap()).collect();
    assert_eq!(events, [1, 64].into_iter().chain(128..129 + 1_001).collect::<Vec<u64>>());
    let actions: Vec<Action> = entries(&connection, OTHER).iter().map(|it| it.action).collect();
    assert_eq!(actions, [Action::ContactCreate, Action::TokenRotate, Action::ContactCreate]);
}

#[test]
fn rows_are_never_changed() {
    let connection = open();
    write_contacts(&connection, SERVICE, &[1], 0);

    let refused = connection.execute("UPDATE audit SET who = 'somebody'", []);

    assert!(refused.unwrap_err().to_string().contains("append-only"));
    assert_eq!(entries(&connection, SERVICE)[0].origin, caller("a"));
}

#[test]
fn age_removes_rows_in_slices_and_numbers_go_on() {
    let connection = open();
    for group in 0..10_u64 {
        write_contacts(&connection, SERVICE, &[2 * group + 1, 2 * group + 2], group as i64);
    }
    write_contacts(&connection, OTHER, &[1], 3);
    let mut audit = Audit::default();
    audit.note(SERVER, Origin::LOCAL, Action::ServiceDelete, Subject::default());
    write(&connection, audit, 1);
    // Gone, and its entries are still there.
    connection.execute("DELETE FROM services WHERE service = ?1", [OTHER.as_bytes()]).unwrap();
    assert_eq!(entries(&connection, OTHER).len(), 1);
    let prune = |millis| {
        let (mut position, mut removed) = (None, Vec::new());
        for _ in 0..20 {
            let before = Timestamp::from_millis(millis);
            let slice = remove_old(&connection, position, before, 4).unwrap();
            position = slice.position;
            if slice.rows > 0 {
                removed.push(slice.rows);
            } else if position.is_none() {
                return removed;
            }
        }
        panic!("it never ends: {removed:?}");
    };

    assert_eq!(prune(1), [1]);
    assert_eq!(entries(&connection, SERVICE)[0].number, 3);
    assert_eq!(prune(6), [4, 3]);
    assert!(list(&connection, OTHER, AuditQuery::default()).unwrap().is_none());
    assert_eq!(prune(100), [4]);
    assert_eq!(rows(&connection), 0);

    write_contacts(&connection, SERVICE, &[21], 200);
    assert_eq!(entries(&connection, SERVICE)[0].number, 21);
    let mut audit = Audit::default();
    audit.note(SERVER, Origin::LOCAL, Action::ServiceCreate, Subject::default());
    write(&connection, audit, 200);
    assert_eq!(entries(&connection, SERVER)[0].number, 2);
}

#[test]
fn a_clock_that_was_set_back_makes_no_entry_older_than_the_one_before() {
    let connection = open();
    write_contacts(&connection, SERVICE, &[1], 1_000);

    write_contacts(&connection, SERVICE, &[2], 500);

    let times: Vec<i64> = entries(&connection, SERVICE).iter().map(|it| it.at.millis()).collect();
    assert_eq!(times, [1_000, 1_000]);
}

#[test]
fn a_time_is_found_by_halving() {
    let connection = open();
    for group in 0..50_i64 {
        let first = 3 * group.unsigned_abs();
        write_contacts(&connection, SERVICE, &[first + 1, first + 2, first + 3], 10 * group);
    }

    for since in -1..=501 {
        let query = AuditQuery {
            limit: 500,
            since: Some(Timestamp::from_millis(since)),
            ..AuditQuery::default()
        };
        let found = list(&connection, SERVICE, query).unwrap().unwrap().entries;

        let all = entries(&connection, SERVICE);
        let expected: Vec<Entry> = all.into_iter().filter(|it| it.at.millis() >= since).collect();
        assert_eq!(found, expected, "{since}");
    }
}

#[test]
fn a_page_with_a_rare_action_ends_before_it_has_looked_at_everything() {
    let connection = open();
    for group in 1..=5_100_u64 {
        write_contacts(&connection, SERVICE, &[group], 0);
    }
    let query =
        AuditQuery { limit: 5, action: Some(Action::ContactDelete), ..AuditQuery::default() };

    let first = list(&connection, SERVICE, query).unwrap().unwrap();
    assert_eq!((first.entries.len(), first.next), (0, Some(5_000)));
    let query = AuditQuery { after: 5_000, ..query };
    let last = list(&connection, SERVICE, query).unwrap().unwrap();
    assert_eq!((last.entries.len(), last.next), (0, None));

    let plan: String = connection
        .query_row(
            "EXPLAIN QUERY PLAN SELECT first FROM audit WHERE service = x'01' AND first >= 5 \
             AND action = 'replay' AND action <> 'contacts' ORDER BY first",
            [],
            |row| row.get(3),
        )
        .unwrap();
    assert!(plan.contains("audit_by_action"), "{plan}");
}
