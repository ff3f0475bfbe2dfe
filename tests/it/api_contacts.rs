//! Staff contacts: create, read, edit, delete, list and batch, with their conditions and limits.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};

use crate::harness::client::Api;
use crate::harness::server::TestServer;

const LIST: &str = "/contacts/staffcontact-list";
const STAFF: &str = "/contacts/staff";
const BATCH: &str = "/contacts/staff-batch";

fn ana() -> Value {
    json!({"firstName": "Ana", "lastName": "Reyes", "email": "ana@example.com"})
}

fn with(mut contact: Value, field: &str, value: Value) -> Value {
    contact[field] = value;
    contact
}

async fn newest(app: &Api) -> u64 {
    app.subscription().await["newest"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn created_contact_has_defaults_and_is_read_back_the_same() {
    let server = TestServer::start().await;
    let app = server.app();

    let created = app.post(STAFF, ana()).await;

    assert_eq!(created.header("etag"), Some("\"1\""));
    let mut contact = created.expect(201);
    let id = contact["id"].as_str().unwrap().to_owned();
    let read = app.get(&format!("{STAFF}/{id}")).await;
    assert_eq!(read.header("etag"), Some("\"1\""));
    assert_eq!(read.expect(200), contact);
    assert_eq!(contact["createdAt"], contact["updatedAt"]);
    assert!(contact["createdAt"].as_str().unwrap().ends_with('Z'), "{contact}");
    let fields = contact.as_object_mut().unwrap();
    for made in ["id", "createdAt", "updatedAt"] {
        fields.remove(made);
    }
    let expected = json!({
        "firstName": "Ana", "lastName": "Reyes", "email": "ana@example.com",
        "status": "Activated", "extensionNumber": 100, "version": 1
    });
    assert_eq!(contact, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_is_stored_as_it_was_sent() {
    let server = TestServer::start().await;
    let app = server.app();
    let full = json!({
        "status": "Not activated", "firstName": " Zoë ", "lastName": "Нуньес",
        "displayName": "Zoë \"Z\" <N>", "email": "Zoe@Example.com", "role": "Night shift",
        "dataScope": "Restricted", "jobTitle": "Lead", "phone": 493_012_345,
        "extensionNumber": 4711, "timezone": "Europe/Berlin",
        "avatarUrl": "https://example.com/a.png", "directchatEnquiry": "a",
        "directCallEnquiry": "b", "directStaffEnquiry": true, "twoFactorAuthentication": false,
        "microsoftActiveDirectory": true
    });

    let created = app.post(STAFF, full.clone()).await.expect(201);

    for (field, value) in full.as_object().unwrap() {
        assert_eq!(&created[field], value, "{field}");
    }
}

/// Creates a contact with each value: the good ones are taken, the bad ones refused with the field's name.
async fn check(field: &str, good: Vec<Value>, bad: Vec<Value>) {
    let server = TestServer::start().await;
    let app = server.app();
    for value in good {
        let created = app.post(STAFF, with(ana(), field, value.clone())).await;
        assert_eq!(created.status, 201, "{field} {value}: {created:?}");
        let id = created.json()["result"]["id"].as_str().unwrap().to_owned();
        app.delete(&format!("{STAFF}/{id}")).await.expect(200);
    }
    for value in bad {
        let refused = app.post(STAFF, with(ana(), field, value.clone())).await;
        assert_eq!(refused.status, 400, "{field} {value}: {refused:?}");
        assert!(refused.refused(400, 6_451_000).contains(field), "{field} {value}");
    }
    assert_eq!(app.get(LIST).await.expect(200)["total"], 0);
}

fn texts(values: &[&str]) -> Vec<Value> {
    values.iter().map(|value| json!(value)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_have_1_to_100_characters_that_show_as_they_are() {
    let long = |count: usize| "ü".repeat(count);

    let bad = ["", " ", &long(101), "a\u{202e}b", "a\u{2066}b", "a\u{2028}b", "a\tb", "a\u{85}b"];
    check("firstName", texts(&["A", " A ", &long(100)]), texts(&bad)).await;
    check("lastName", texts(&["\u{202f}x", &long(100)]), vec![json!(null), json!(1), json!({})])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn email_has_two_parts_of_limited_length() {
    let local = |bytes: usize| format!("{}@e.com", "l".repeat(bytes));
    let whole = |bytes: usize| format!("a@{}", "d".repeat(bytes - 2));

    let good = ["a@b", &local(64), &whole(254)];
    let bad = ["", "a@", "@b", "ab", "a@b@c", "a b@c", &local(65), &whole(255)];
    check("email", texts(&good), texts(&bad)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_whole_and_within_their_range() {
    let most = 999_999_999_999_999_u64;

    let bad = ["493012345", "+0123", "+", "+49 301", "+1234567890123456"].map(|text| json!(text));
    let bad = [&bad[..], &[json!(most + 1), json!(0), json!(-1), json!(1.5), json!(true)]].concat();
    check("phone", vec![json!("+493012345"), json!(most), json!("+999999999999999")], bad).await;
    let bad = vec![json!(99), json!(1_000_000), json!("100"), json!(100.5), json!(-100)];
    check("extensionNumber", vec![json!(100), json!(999_999)], bad).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_fields_keep_their_types_and_limits() {
    let long = |count: usize| "ü".repeat(count);

    check("role", texts(&[&long(255), ""]), texts(&[&long(256)])).await;
    check("jobTitle", vec![json!(null)], vec![json!([]), json!(7)]).await;
    check("status", texts(&["Suspended"]), texts(&["suspended", ""])).await;
    let bad = ["Asia/Nowhere", "asia/hong_kong", "+08:00", ""];
    check("timezone", texts(&["Asia/Hong_Kong", "UTC"]), texts(&bad)).await;
    check("twoFactorAuthentication", vec![json!(true)], vec![json!("true"), json!(1)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_are_ours_or_unknown_are_refused() {
    let server = TestServer::start().await;

    for field in ["id", "version", "createdAt", "updatedAt", "nickname", "directChatEnquiry"] {
        let refused = server.app().post(STAFF, with(ana(), field, json!("x"))).await;
        assert!(refused.refused(400, 6_451_000).contains(field), "{field}");
    }
    server.app().post(STAFF, with(ana(), "directchatEnquiry", json!("x"))).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_scope_follows_the_role_unless_it_is_given() {
    let server = TestServer::start().await;
    let app = server.app();
    let id = app.create_contact("Ana", "Reyes").await;
    let path = format!("{STAFF}/{id}");

    for (patch, scope) in [
        (json!({"role": "Administrator"}), json!("Full")),
        (json!({"role": "Supervisor"}), json!("Department")),
        (json!({"role": "Agent"}), json!("Restricted")),
        (json!({"role": "Porter"}), json!(null)),
        (json!({"dataScope": "Own"}), json!("Own")),
        (json!({"role": "Administrator"}), json!("Own")),
        (json!({"dataScope": null}), json!("Full")),
    ] {
        let edited = app.patch(&path, patch.clone()).await.expect(200);
        assert_eq!(edited["dataScope"], scope, "{patch}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edit_is_a_merge_patch() {
    let server = TestServer::start().await;
    let app = server.app();
    let id =
        app.post(STAFF, with(ana(), "jobTitle", json!("Clerk"))).await.expect(201)["id"].clone();
    let path = format!("{STAFF}/{}", id.as_str().unwrap());

    let edited = app.patch(&path, json!({"jobTitle": "Lead", "phone": "+4930123"})).await;
    assert_eq!(edited.header("etag"), Some("\"2\""));
    let edited = edited.expect(200);
    assert_eq!((&edited["jobTitle"], &edited["phone"]), (&json!("Lead"), &json!(4_930_123)));
    assert_eq!((&edited["firstName"], &edited["version"]), (&json!("Ana"), &json!(2)));

    let removed = app.patch(&path, json!({"jobTitle": null})).await.expect(200);
    assert!(removed.get("jobTitle").is_none(), "{removed}");
    assert_eq!(removed["version"], 3);

    for required in ["firstName", "lastName", "email", "status"] {
        let refused = app.patch(&path, json!({required: null})).await;
        assert!(refused.refused(400, 6_451_000).contains(required));
    }
    app.patch(&path, json!({"email": "other@example.com"})).await.refused(400, 6_451_000);
    assert_eq!(app.get(&path).await.expect(200), removed);
}

#[tokio::test(flavor = "multi_thread")]
async fn edit_that_changes_nothing_makes_no_event() {
    let server = TestServer::start().await;
    let app = server.app();
    let id = app.create_contact("Ana", "Reyes").await;
    let path = format!("{STAFF}/{id}");
    let before = app.get(&path).await.expect(200);

    for nothing in [
        json!({}),
        json!({"firstName": "Ana"}),
        json!({"email": "reyes@example.com"}),
        json!({"jobTitle": null}),
    ] {
        assert_eq!(app.patch(&path, nothing).await.expect(200), before);
    }
    assert_eq!(newest(&app).await, 1);

    assert_eq!(app.patch(&path, json!({"firstName": "Eva"})).await.expect(200)["version"], 2);
    assert_eq!(newest(&app).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_contact_is_gone_and_frees_what_was_its_own() {
    let server = TestServer::start().await;
    let app = server.app();
    let id = app.create_contact("Ana", "Reyes").await;
    let path = format!("{STAFF}/{id}");

    assert_eq!(app.delete(&path).await.expect(200), json!({"id": id}));

    app.delete(&path).await.refused(404, 6_451_011);
    app.get(&path).await.refused(404, 6_451_011);
    let refused = app.patch(&path, json!({"firstName": "Eva"})).await;
    assert_eq!(refused.refused(404, 6_451_011), "No records found");
    let again = app.post(STAFF, with(ana(), "email", json!("reyes@example.com"))).await.expect(201);
    assert_eq!(again["extensionNumber"], 100);
    assert_ne!(again["id"], json!(id));
    app.get(&format!("{STAFF}/x")).await.refused(400, 6_451_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn if_match_lets_only_the_known_version_be_changed() {
    let server = TestServer::start().await;
    let app = server.app();
    let id = app.create_contact("Ana", "Reyes").await;
    let path = format!("{STAFF}/{id}");
    let on = |tag: &str| app.with_header("if-match", tag);

    on("\"1\"").patch(&path, json!({"jobTitle": "a"})).await.expect(200);
    let stale = on("\"1\"").patch(&path, json!({"jobTitle": "b"})).await;
    assert!(stale.refused(412, 6_451_000).contains('2'), "{stale:?}");
    on("\"1\"").delete(&path).await.refused(412, 6_451_000);
    on("W/\"2\"").delete(&path).await.refused(412, 6_451_000);
    on("2").delete(&path).await.refused(400, 6_451_000);
    assert_eq!(app.get(&path).await.expect(200)["jobTitle"], "a");
    on("\"1\", \"2\"").patch(&path, json!({"jobTitle": "c"})).await.expect(200);
    on("*").patch(&path, json!({"jobTitle": "d"})).await.expect(200);
    on("\"4\"").delete(&path).await.expect(200);
    on("\"4\"").delete(&path).await.refused(404, 6_451_011);
}

#[tokio::test(flavor = "multi_thread")]
async fn email_is_unique_without_regard_to_case() {
    let server = TestServer::start().await;
    let app = server.app();
    app.post(STAFF, ana()).await.expect(201);

    for taken in ["ana@example.com", "ANA@Example.COM"] {
        let refused = app.post(STAFF, with(ana(), "email", json!(taken))).await;
        assert!(refused.refused(409, 6_451_000).contains("email"));
    }
    app.post(STAFF, with(ana(), "email", json!("ana2@example.com"))).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn extension_is_unique_and_the_lowest_free_one_is_assigned() {
    let server = TestServer::start().await;
    let app = server.app();
    let create = async |n: u32, extension: Value| {
        let contact = with(ana(), "email", json!(format!("c{n}@example.com")));
        let contact = match extension {
            Value::Null => contact,
            number => with(contact, "extensionNumber", number),
        };
        app.post(STAFF, contact).await
    };

    create(1, json!(101)).await.expect(201);
    assert_eq!(create(2, Value::Null).await.expect(201)["extensionNumber"], 100);
    let third = create(3, Value::Null).await.expect(201);
    assert_eq!(third["extensionNumber"], 102);
    let taken = create(4, json!(101)).await;
    assert!(taken.refused(409, 6_451_000).contains("extensionNumber"));
    let path = format!("{STAFF}/{}", third["id"].as_str().unwrap());
    app.patch(&path, json!({"extensionNumber": 100})).await.refused(409, 6_451_000);
    app.patch(&path, json!({"extensionNumber": 102})).await.expect(200);
    app.patch(&path, json!({"extensionNumber": null})).await.expect(200);
    assert_eq!(create(5, Value::Null).await.expect(201)["extensionNumber"], 102);
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_key_gives_the_first_answer_again() {
    let server = TestServer::start().await;
    let app = server.app();
    let keyed = app.with_header("idempotency-key", "k-1");

    let first = keyed.post(STAFF, ana()).await;
    let again = keyed.post(STAFF, ana()).await;

    assert_eq!(first.expect(201), again.expect(201));
    assert_eq!(first.header("etag"), again.header("etag"));
    let other = keyed.post(STAFF, with(ana(), "firstName", json!("Eva"))).await;
    assert!(other.refused(422, 6_451_000).contains("Idempotency-Key"));
    app.with_header("idempotency-key", "k-2").post(STAFF, ana()).await.refused(409, 6_451_000);
    assert_eq!(app.get(LIST).await.expect(200)["total"], 1);
    for bad in ["", "a b", &"k".repeat(256)] {
        app.with_header("idempotency-key", bad).post(STAFF, ana()).await.refused(400, 6_451_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_with_one_key_create_one_contact() {
    let server = TestServer::start().await;
    let keyed = server.app().with_header("idempotency-key", &"k".repeat(255));

    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let keyed = keyed.clone();
        tasks.spawn(async move { keyed.post(STAFF, ana()).await.expect(201) });
    }
    let answers = tasks.join_all().await;

    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
    assert_eq!(server.app().get(LIST).await.expect(200)["total"], 1);
    assert_eq!(newest(&server.app()).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_key_survives_a_crash() {
    let mut server = TestServer::start().await;
    let keyed = |server: &TestServer| server.app().with_header("idempotency-key", "k");
    let first = keyed(&server).post(STAFF, ana()).await.expect(201);

    server.kill();
    server.restart().await;

    assert_eq!(keyed(&server).post(STAFF, ana()).await.expect(201), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn list_has_pages_a_total_and_the_sequence_it_was_read_at() {
    let server = TestServer::start().await;
    let app = server.app();
    for last in ["Adler", "Brandt", "Conrad", "Dietz", "Ernst"] {
        app.create_contact("Ana", last).await;
    }
    let names = async |query: &str| {
        let answer = app.get(&format!("{LIST}{query}")).await;
        assert_eq!(answer.header("rollcall-sequence"), Some("5"));
        let list = answer.expect(200);
        let items = list["items"].as_array().unwrap();
        let names: Vec<String> =
            items.iter().map(|item| item["lastName"].as_str().unwrap().to_owned()).collect();
        (list["total"].as_u64().unwrap(), names.join(" "))
    };

    assert_eq!(names("").await, (5, "Adler Brandt Conrad Dietz Ernst".to_owned()));
    assert_eq!(names("?limit=2").await, (5, "Adler Brandt".to_owned()));
    assert_eq!(names("?offset=3&limit=500").await, (5, "Dietz Ernst".to_owned()));
    assert_eq!(names("?offset=5").await, (5, String::new()));
    assert_eq!(names("?limit=0").await, (5, String::new()));
    assert_eq!(names("?fullName=ANA%20c").await, (1, "Conrad".to_owned()));
    assert_eq!(names("?fullName=r&limit=1&offset=1").await, (4, "Brandt".to_owned()));
    assert_eq!(names("?fullName=%25").await, (0, String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn list_refuses_in_the_words_of_the_reference() {
    let server = TestServer::start().await;
    let app = server.app();

    for (query, message) in [
        ("limit=501", "exceed maximum limit 500"),
        ("limit=-1", "negative limit"),
        ("offset=-1", "negative offset"),
    ] {
        let refused = app.get(&format!("{LIST}?{query}")).await;
        assert_eq!(refused.refused(400, 6_451_000), message);
    }
    app.get(&format!("{LIST}?limit=x")).await.refused(400, 6_451_000);
    app.get(&format!("{LIST}?limit=500")).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_applies_in_order_and_leaves_out_only_what_is_refused() {
    let server = TestServer::start().await;
    let app = server.app();
    let id = app.create_contact("Ana", "Reyes").await;
    let items = json!([
        {"op": "create", "contact": ana()},
        {"op": "create", "contact": ana()},
        {"op": "edit", "id": id, "contact": {"jobTitle": "Lead"}},
        {"op": "edit", "id": id, "contact": {"lastName": null}},
        {"op": "delete", "id": id},
        {"op": "edit", "id": id, "contact": {"jobTitle": "Late"}},
        {"op": "create", "contact": {"firstName": "Eva", "lastName": "Reyes", "email": "reyes@example.com"}},
        {"op": "move", "id": id},
        7
    ]);

    let answer = app.post(BATCH, json!({"items": items})).await.expect(200);

    let items = answer["items"].as_array().unwrap();
    let codes: Vec<u64> = items.iter().map(|item| item["code"].as_u64().unwrap()).collect();
    let taken_or_wrong = 6_451_000;
    let gone = 6_451_011;
    assert_eq!(
        codes,
        [201, taken_or_wrong, 200, taken_or_wrong, 200, gone, 201, taken_or_wrong, taken_or_wrong]
    );
    assert_eq!(items[2]["result"]["jobTitle"], "Lead");
    assert_eq!(items[4]["result"], json!({"id": id}));
    assert_eq!(app.get(LIST).await.expect(200)["total"], 2);
    assert_eq!(newest(&app).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_of_500_is_done_and_of_501_not_at_all() {
    let server = TestServer::start().await;
    let app = server.app();
    let items = |count: usize| -> Vec<Value> {
        let item = |n: usize| {
            let contact = json!({"firstName": "N", "lastName": n.to_string(), "email": format!("{n}@example.com")});
            json!({"op": "create", "contact": contact})
        };
        (0..count).map(item).collect()
    };

    let over = app.post(BATCH, json!({"items": items(501)})).await;
    assert!(over.refused(400, 6_451_000).contains("500"));
    assert_eq!(app.get(LIST).await.expect(200)["total"], 0);

    let answer = app.post(BATCH, json!({"items": items(500)})).await.expect(200);
    assert!(answer["items"].as_array().unwrap().iter().all(|item| item["code"] == 201));
    let page = app.get(&format!("{LIST}?limit=500")).await;
    assert_eq!(page.header("rollcall-sequence"), Some("500"));
    assert_eq!(page.expect(200)["items"].as_array().unwrap().len(), 500);
    app.post(BATCH, json!({"items": []})).await.refused(400, 6_451_000);
    app.send(Method::POST, BATCH, "").await.refused(400, 6_451_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_creates_share_no_email_and_no_extension() {
    let server = TestServer::start().await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..64 {
        let app = server.app();
        let email = format!("c{}@example.com", number / 2);
        tasks.spawn(async move { app.post(STAFF, with(ana(), "email", json!(email))).await });
    }

    let answers = tasks.join_all().await;

    let created: Vec<Value> = answers
        .iter()
        .filter(|answer| answer.status == 201)
        .map(|answer| answer.expect(201))
        .collect();
    assert_eq!(created.len(), 32);
    assert_eq!(answers.iter().filter(|answer| answer.status == 409).count(), 32);
    let extensions: BTreeSet<u64> =
        created.iter().map(|contact| contact["extensionNumber"].as_u64().unwrap()).collect();
    assert_eq!(extensions, (100..132).collect());
    assert_eq!(newest(&server.app()).await, 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_edits_on_the_same_version_wins() {
    let server = TestServer::start().await;
    let id = server.app().create_contact("Ana", "Reyes").await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..16 {
        let app = server.app().with_header("if-match", "\"1\"");
        let path = format!("{STAFF}/{id}");
        tasks.spawn(async move {
            app.patch(&path, json!({"jobTitle": number.to_string()})).await.status
        });
    }

    let mut statuses = tasks.join_all().await;

    statuses.sort_unstable();
    assert_eq!((statuses[0], statuses[1], statuses[15]), (200, 412, 412), "{statuses:?}");
    assert_eq!(newest(&server.app()).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_does_not_matter_outside_ascii_either() {
    let server = TestServer::start().await;
    let app = server.app();
    let zoe = json!({"firstName": "Zoë", "lastName": "Ñandú", "email": "zoë@example.com"});
    app.post(STAFF, zoe.clone()).await.expect(201);

    let found = app.get(&format!("{LIST}?fullName=ZO%C3%8B%20%C3%B1")).await.expect(200);
    let taken = app.post(STAFF, with(zoe, "email", json!("ZOË@example.com"))).await;

    assert_eq!(found["total"], 1);
    taken.refused(409, 6_451_000);
}
