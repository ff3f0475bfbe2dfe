//! Copies between real stores of both kinds: rows of every shape, copies that were broken off, damage that must be found.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::json;

use self::places::{NULLABLE, Place, ROWS};
use super::tables::TABLES;
use super::{
    Agreed, Copied, Mark, Outcome, PAGE_BYTES, PAGE_ROWS_MAX, PageSize, Phase, Progress, Reporter,
    Role, Side, agree, copy, fill,
};
use crate::domain::contact::ContactPatch;
use crate::domain::id::ServiceId;
use crate::store::command::{ContactAnswer, ContactChange};
use crate::store::postgres::copying::PostgresSide;
use crate::store::postgres::test_database::TestDatabase;
use crate::store::{Error, Store};

#[path = "copy_test_places.rs"]
mod places;

/// Columns of PostgreSQL's tables that follow from the rest.
const MADE_ANEW: [&str; 5] = [
    "services.audit_at",
    "services.version",
    "progress.version",
    "events.number_freed",
    "events.number_taken",
];
/// Tables that follow from the rest, or are of one back end only.
const NOT_COPIED: [&str; 12] = [
    "meta",
    "emails",
    "recent_emails_0",
    "recent_emails_1",
    "counts",
    "eras",
    "groups",
    "lane_conditions",
    "nodes",
    "request_levels",
    "schema_version",
    "service_states",
];

async fn try_copy(from: &Place, to: &Place) -> Result<Outcome, Error> {
    let (mut source, mut target) = (from.try_open_soon().await?, to.try_open_soon().await?);
    copy(&mut source, &mut target, &mut |_| ()).await
}

async fn copied(from: &Place, to: &Place) -> Vec<Copied> {
    match try_copy(from, to).await.unwrap() {
        Outcome::Copied(copied) => copied,
        Outcome::EndedBefore => panic!("it had ended before"),
    }
}

/// Fills so many tables, and the beginning of the next one, as a copy does that is killed then.
async fn break_off(from: &Place, to: &Place, tables: usize) {
    let (mut source, mut target) = (from.open().await, to.open().await);
    assert!(matches!(agree(&mut source, &mut target).await.unwrap(), Agreed::Copy(_)));
    let mut ignore = |_| ();
    let mut reporter = Reporter { report: &mut ignore, at: None, done: 0, rows: 0 };
    for table in &TABLES[..tables] {
        fill(&mut source, &mut target, table, &mut reporter).await.unwrap();
    }
    if let Some(table) = TABLES.get(tables) {
        let page = source.read(table, None, 7).await.unwrap();
        target.write(table, &page).await.unwrap();
    }
}

fn position(name: &str) -> usize {
    TABLES.iter().position(|table| table.name == name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_every_shape_are_the_same_on_every_side() {
    let places = [
        Place::directory().filled(1).await,
        Place::database().await,
        Place::database().await,
        Place::directory(),
        Place::directory(),
    ];
    let first = copied(&places[0], &places[1]).await;
    assert!(first.iter().all(|table| table.rows > ROWS as u64 / 2 && table.checksum.len() == 64));

    for (from, to) in places.iter().skip(1).zip(places.iter().skip(2)) {
        assert_eq!(copied(from, to).await, first);
    }

    let mut whole = places[0].open().await;
    for place in &places[1..] {
        let mut side = place.open().await;
        for table in &TABLES {
            assert_eq!(side.rows(table).await, whole.rows(table).await, "{}", table.name);
        }
    }
    drop(whole);
    for place in &places[..4] {
        let why = place.refusal().await;
        assert!(why.contains("is sealed"), "{why}");
    }
    places[4].assert_may_serve().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_table_and_column_is_copied_or_follows_from_those() {
    let (directory, database) = (Place::directory(), Place::database().await);
    let (Side::Sqlite(directory), Side::Postgres(database)) =
        (directory.open().await, database.open().await)
    else {
        panic!("other kinds")
    };
    let name = "SELECT t.name || '.' || c.name || CASE WHEN c.\"notnull\" OR c.pk > 0 THEN '' ELSE '?' END \
                FROM sqlite_schema t JOIN pragma_table_info(t.name) c WHERE t.type = 'table'";
    let of_directory = directory.texts(name);
    let name = "SELECT table_name || '.' || column_name || CASE is_nullable WHEN 'NO' THEN '' ELSE '?' END \
                FROM information_schema.columns WHERE table_schema = 'public'";
    let of_database = database.texts(name).await;
    let mut known = BTreeSet::new();
    for table in &TABLES {
        for (column, _) in table.columns {
            let name = format!("{}.{column}", table.name);
            // Keys are sealed with when rows are new, whatever the table takes (`SqliteSide::open`).
            let empty = NULLABLE.contains(&name.as_str());
            known.insert(if empty { format!("{name}?") } else { name });
        }
    }
    // A column that may be empty and never is may differ.
    let plain = |name: &String| name.trim_end_matches('?').to_owned();
    for (columns, derived) in [(of_directory, &[][..]), (of_database, &MADE_ANEW[..])] {
        let there: BTreeSet<String> = columns
            .iter()
            .filter(|name| {
                let table = name.split('.').next().unwrap();
                !NOT_COPIED.contains(&table) && table != "shards"
            })
            // Those of services are in two tables there.
            .map(|name| plain(&name.replacen("rolls.", "services.", 1)))
            .filter(|name| !derived.contains(&name.as_str()))
            .collect();
        assert_eq!(there, known.iter().map(plain).collect());
        for name in known.iter().filter(|name| name.ends_with('?')) {
            assert!(columns.contains(name), "{name} may not be empty");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_broken_off_goes_on_and_nothing_else_comes_into_its_target() {
    for (number, (from, to)) in (0..).zip(Place::every_pair().await) {
        let from = from.filled(number).await;
        let other = Place::directory().filled(99).await;
        let tables = [0, 5, 6, TABLES.len()][usize::try_from(number).unwrap()];

        break_off(&from, &to, tables).await;

        assert!(to.refusal().await.contains("has not ended"));
        let refused = try_copy(&other, &to).await.unwrap_err().to_string();
        assert!(refused.contains("is not empty"), "{refused}");
        let refused = try_copy(&to, &Place::directory()).await.unwrap_err().to_string();
        assert!(refused.contains("has not ended"), "{refused}");
        from.assert_may_serve().await;
        other.assert_may_serve().await;

        let all = copied(&from, &to).await;
        assert_eq!(all.len(), TABLES.len());
        assert_eq!(try_copy(&from, &to).await.unwrap(), Outcome::EndedBefore);
        assert!(from.refusal().await.contains("is sealed"));
        let refused = try_copy(&from, &Place::directory()).await.unwrap_err().to_string();
        assert!(refused.contains("is sealed"), "{refused}");
        let refused = try_copy(&other, &to).await.unwrap_err().to_string();
        assert!(refused.contains("is not empty"), "{refused}");
        to.assert_may_serve().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_broken_off_between_its_marks_goes_on() {
    let (from, to) = (Place::directory().filled(1).await, Place::database().await);
    // Begun: the source has its mark, the target none yet.
    let mark = |role| Mark { id: "copy_1".to_owned(), role, other: "there".to_owned() };
    from.open().await.set_mark(&mark(Role::Source)).await.unwrap();
    from.assert_may_serve().await;
    // Ended: the source is sealed, the target not verified yet. Neither may serve.
    break_off(&from, &to, TABLES.len()).await;
    let mut source = from.open().await;
    let begun = source.mark().await.unwrap().unwrap();
    source.set_mark(&Mark { role: Role::Sealed, ..begun }).await.unwrap();
    drop(source);
    assert!(from.refusal().await.contains("is sealed"));
    assert!(to.refusal().await.contains("has not ended"));

    copied(&from, &to).await;

    to.assert_may_serve().await;
    assert!(from.refusal().await.contains("is sealed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_damaged_value_in_the_target_is_found_and_nothing_is_sealed() {
    let damages = [
        "UPDATE contacts SET fields = fields || ' ' WHERE extension = (SELECT max(extension) FROM contacts)",
        "UPDATE events SET full_name = full_name || 'x' WHERE sequence = (SELECT max(sequence) FROM events)",
        "DELETE FROM held WHERE sequence = (SELECT min(sequence) FROM held)",
        "UPDATE progress SET gap_from = NULL \
         WHERE gap_from = (SELECT max(gap_from) FROM progress)",
        "UPDATE app_secrets SET secret = key WHERE number = (SELECT max(number) FROM app_secrets)",
    ];
    for (number, (from, to)) in (10..).zip(Place::every_pair().await) {
        let from = from.filled(number).await;
        break_off(&from, &to, TABLES.len()).await;
        let damage = damages[usize::try_from(number).unwrap() % damages.len()];
        let table =
            damage.split_whitespace().find(|word| TABLES.iter().any(|table| table.name == *word));

        to.open().await.sql(damage).await;

        let found = try_copy(&from, &to).await.unwrap_err().to_string();
        assert!(found.contains(&format!("table {}: the source has", table.unwrap())), "{found}");
        assert!(to.refusal().await.contains("has not ended"));
        from.assert_may_serve().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_was_served_from_in_between_is_found_out() {
    for change in [
        // Behind the place where the copy goes on.
        "UPDATE contacts SET version = version + 1 WHERE contact = (SELECT min(contact) FROM contacts)",
        // The same, and a later contact takes over what an earlier one has given up.
        "UPDATE contacts SET extension = extension + 100000 WHERE contact = \
         (SELECT c.contact FROM contacts c WHERE c.service = (SELECT min(service) FROM contacts) \
          AND c.extension IS NOT NULL ORDER BY c.contact LIMIT 1); \
         UPDATE contacts SET email = 'old@example.org' WHERE contact = \
         (SELECT contact FROM contacts ORDER BY service, contact LIMIT 1); \
         DELETE FROM events WHERE sequence = (SELECT min(sequence) FROM events)",
    ] {
        let (from, to) = (Place::directory().filled(4).await, Place::database().await);
        break_off(&from, &to, position("subscriptions")).await;

        from.open().await.sql(change).await;

        let found = try_copy(&from, &to).await.unwrap_err().to_string();
        assert!(found.contains("begin anew with an empty target"), "{found}");
    }
    // An e-mail that moves to a contact which is still to be copied.
    let (from, to) = (Place::directory().filled(5).await, Place::database().await);
    break_off(&from, &to, position("contacts")).await;
    let change = "UPDATE contacts SET email = 'x' || email WHERE contact = \
         (SELECT contact FROM contacts ORDER BY service, contact LIMIT 1); \
         UPDATE contacts SET email = (SELECT substr(email, 2) FROM contacts ORDER BY service, contact LIMIT 1) \
         WHERE contact = (SELECT contact FROM contacts WHERE service = (SELECT min(service) FROM contacts) \
         ORDER BY service, contact LIMIT 1 OFFSET 100)";
    from.open().await.sql(change).await;
    let found = try_copy(&from, &to).await.unwrap_err().to_string();
    assert!(found.contains("begin anew with an empty target"), "{found}");
    assert!(found.contains("table contacts: "), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_in_use_is_neither_source_nor_target() {
    let (directory, database) = (Place::directory(), Place::database().await);
    let served = [directory.serve().await.unwrap(), database.serve().await.unwrap()];
    for served in &served {
        served.store().write.create_service("S".to_owned()).await.unwrap();
    }
    let why = directory.try_open().await.unwrap_err().to_string();
    assert!(why.contains("in use by another rollcall process"), "{why}");
    let why = database.try_open().await.unwrap_err().to_string();
    assert!(why.contains("stop every node first"), "{why}");
    for served in served {
        served.close().await;
    }

    let Side::Postgres(side) = database.open().await else { panic!("another kind") };
    let Err(refused) = database.serve().await else { panic!("a server starts") };
    assert!(refused.to_string().contains("is being copied"), "{refused}");
    assert!(database.try_open().await.unwrap_err().to_string().contains("another copy"));
    // One that was cut off holds no lock, and may come back.
    let node = "INSERT INTO nodes (node, name, version, seen_at) VALUES \
         ('00000000-0000-0000-0000-000000000001', 'north', '1', now() - interval '7 seconds')";
    side.sql(node).await;
    drop(side);
    let why = database.try_open_soon().await.unwrap_err().to_string();
    assert!(why.contains("north was alive"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_the_source_is_named_and_not_copied() {
    let (from, to) = (Place::directory().filled(6).await, Place::directory());
    from.open()
        .await
        .sql("UPDATE apps SET name = CAST(x'41ff42' AS TEXT) WHERE app = (SELECT max(app) FROM apps)")
        .await;

    let found = try_copy(&from, &to).await.unwrap_err().to_string();

    assert!(found.contains("apps.name is damaged, invalid utf-8"), "{found}");
    assert!(to.refusal().await.contains("has not ended"));
    let from = Place::directory().filled(7).await;
    from.open().await.sql("UPDATE events SET kind = 'x' WHERE sequence > 0").await;
    let found = try_copy(&from, &Place::database().await).await.unwrap_err().to_string();
    assert!(found.contains("events.kind holds what its column does not take"), "{found}");
    let from = Place::directory().filled(8).await;
    from.open().await.sql("UPDATE app_secrets SET key = NULL").await;
    let found = try_copy(&from, &to).await.unwrap_err().to_string();
    assert!(found.contains("not sealed yet: start this version's server"), "{found}");
}

async fn create(store: &Store, service: ServiceId, name: &str, extension: Option<u32>) -> u32 {
    let mut body =
        json!({"firstName": name, "lastName": "Ng", "email": format!("{name}@example.org")});
    if let Some(extension) = extension {
        body["extensionNumber"] = json!(extension);
    }
    let serde_json::Value::Object(body) = body else { unreachable!("made above") };
    let change = ContactChange::Create(ContactPatch::from_json(body).unwrap());
    match store.write.change_contact(service, change, None).await.unwrap() {
        ContactAnswer::Created(contact) => contact.fields.extension().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lowest_free_extension_is_the_same_on_every_side() {
    let from = Place::directory();
    let served = from.serve().await.unwrap();
    let chosen: [&[u32]; 6] = [
        &[],
        &[100, 101, 102],
        &[101, 102],
        &[100, 102, 103, 105, 900],
        &[999_999],
        &[100, 101, 103, 104, 105, 106, 107, 108, 109, 110, 112],
    ];
    let expected: [[u32; 3]; 6] = [
        [100, 101, 102],
        [103, 104, 105],
        [100, 103, 104],
        [101, 104, 106],
        [100, 101, 102],
        [102, 111, 113],
    ];
    let mut services = Vec::new();
    for numbers in chosen {
        let service = served.store().write.create_service("S".to_owned()).await.unwrap().id;
        for number in numbers {
            create(served.store(), service, &format!("a{number}"), Some(*number)).await;
        }
        services.push(service);
    }
    served.close().await;
    let places = [Place::database().await, Place::directory(), Place::database().await];
    let mut earlier = &from;

    for place in &places {
        copied(earlier, place).await;
        earlier = place;
    }

    let served = earlier.serve().await.unwrap();
    for (service, expected) in services.iter().zip(expected) {
        for (at, expected) in expected.into_iter().enumerate() {
            let got = create(served.store(), *service, &format!("n{at}"), None).await;
            assert_eq!(got, expected);
        }
    }
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_and_numbers_of_the_audit_log_go_on() {
    let from = Place::directory();
    let served = from.serve().await.unwrap();
    let service = served.store().write.create_service("S".to_owned()).await.unwrap().id;
    served.close().await;
    let zeros = "zeroblob(16)";
    from.open()
        .await
        .sql(&format!(
            "INSERT INTO subscriptions VALUES ({zeros}, {zeros}, 'https://a.example/', 1, '', 417, NULL, 1)"
        ))
        .await;
    let places = [Place::database().await, Place::directory(), Place::database().await];
    let mut earlier = &from;
    for place in &places {
        copied(earlier, place).await;
        earlier = place;
    }

    let served = earlier.serve().await.unwrap();

    assert!(served.store().write.take_ticket().await.unwrap() > 417);
    let query = crate::store::rows::AuditQuery { limit: 10, ..Default::default() };
    let numbers = async |of| {
        let page = served.store().read.list_audit(of, query).await.unwrap().unwrap();
        page.entries.iter().map(|entry| entry.number).collect::<Vec<_>>()
    };
    let server = ServiceId::from_bytes([0; 16]);
    let before = (numbers(server).await.len(), numbers(service).await.len());
    create(served.store(), service, "ana", None).await;
    served.store().write.create_service("T".to_owned()).await.unwrap();
    let after = (numbers(server).await, numbers(service).await);
    assert_eq!(after.0, (1..=before.0 as u64 + 1).collect::<Vec<_>>());
    assert_eq!(after.1, (1..=before.1 as u64 + 1).collect::<Vec<_>>());
    served.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_name_places_without_user_and_password() {
    let database = TestDatabase::new().await;
    let (scheme, address) = database.url.split_once("://").unwrap();
    let (_, host) = address.split_once('@').unwrap();
    let secret = format!("{scheme}://rollcall:s3cret@{host}");
    let target = crate::store::postgres::Target::parse(&secret).unwrap();
    let from = Place::directory();
    let mut source = from.open().await;
    let mut target = Side::Postgres(PostgresSide::open(&target).await.unwrap());

    copy(&mut source, &mut target, &mut |_| ()).await.unwrap();

    let (sealed, verified) = (source.mark().await.unwrap(), target.mark().await.unwrap());
    let (sealed, verified) = (sealed.unwrap(), verified.unwrap());
    assert_eq!((sealed.role, verified.role), (Role::Sealed, Role::Verified));
    assert_eq!(sealed.id, verified.id);
    assert_eq!(sealed.other, format!("postgres://{host}"));
    let Place::Directory(path) = &from else { panic!("another kind") };
    assert_eq!(Path::new(&verified.other), path.as_path());
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_grows_to_the_number_of_rows_in_each_phase() {
    let (from, to) = (Place::directory().filled(3).await, Place::directory());
    let (mut source, mut target) = (from.open().await, to.open().await);
    let mut told: Vec<Progress> = Vec::new();

    copy(&mut source, &mut target, &mut |progress| told.push(progress)).await.unwrap();

    let last = told.last().unwrap();
    assert_eq!((last.phase, last.done), (Phase::Comparing, last.rows));
    assert_eq!(told[0].phase, Phase::Copying);
    assert!(told.iter().all(|it| it.done <= it.rows));
}

#[test]
fn pages_come_to_about_the_same_bytes() {
    let mut size = PageSize::FIRST;
    for _ in 0..20 {
        size = size.after(size.0, size.0 * 100);
    }
    assert_eq!(size.0, PAGE_ROWS_MAX);
    // 64 KiB each: the next page is a small one, whatever came before.
    size = size.after(size.0, size.0 * 65_536);
    assert_eq!(size.0, PAGE_BYTES / 65_536);
    size = size.after(1, 10 * PAGE_BYTES);
    assert_eq!(size.0, 1);
    // It grows slowly, since the next rows may be wide again.
    assert_eq!(size.after(1, 100).0, 2);
}

#[test]
fn a_mark_says_who_may_serve() {
    let check = |role| {
        let mark = Mark { id: "copy_1".to_owned(), role, other: "/there".to_owned() };
        Mark::check(Some(&mark.write().unwrap())).map_err(|error| error.to_string())
    };
    assert_eq!(Mark::check(None).map_err(|error| error.to_string()), Ok(()));
    assert_eq!(check(Role::Source), Ok(()));
    assert_eq!(check(Role::Verified), Ok(()));
    assert!(check(Role::Sealed).unwrap_err().contains("copied to /there and is sealed"));
    assert!(check(Role::Target).unwrap_err().contains("the copy from /there"));
    assert!(Mark::check(Some("{}")).is_err());
}
