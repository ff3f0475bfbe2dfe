//! Rules of contact fields, and the decisions on create and edit.

use serde_json::{Value, json};

use super::{ContactPatch, Field, FieldError, StaffContact, decide_create, decide_edit};
use crate::domain::clock::Timestamp;
use crate::domain::id::ContactId;

const NOW: Timestamp = Timestamp::from_millis(1_763_900_000_000);

fn patch(body: Value) -> Result<ContactPatch, FieldError> {
    match body {
        Value::Object(object) => ContactPatch::from_json(object),
        _ => unreachable!("tests give objects"),
    }
}

fn create(body: Value) -> Result<StaffContact, FieldError> {
    decide_create(patch(body)?, ContactId::from_bytes([7; 16]), Some(100), NOW)
}

fn ana() -> StaffContact {
    create(json!({"firstName": "Ana", "lastName": "Ng", "email": "Ana@example.org"})).unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "callers read better without a borrow")]
fn check(field: &str, value: Value, accepted: bool) {
    let mut body = json!({"firstName": "Ana", "lastName": "Ng", "email": "a@b"});
    body[field] = value.clone();
    let result = create(body);
    assert_eq!(result.is_ok(), accepted, "{field} = {value}: {result:?}");
    if let Err(error) = result {
        assert_eq!(error.field, field);
    }
}

#[test]
fn every_limit_accepts_its_value_and_refuses_the_next() {
    check("firstName", json!("é".repeat(100)), true);
    check("firstName", json!("é".repeat(101)), false);
    check("firstName", json!(""), false);
    check("lastName", json!(" \u{3000}"), false);
    check("lastName", json!("O'Neil"), true);
    check("jobTitle", json!("x".repeat(255)), true);
    check("jobTitle", json!("x".repeat(256)), false);
    check("email", json!("a@b"), true);
    check("email", json!("a@"), false);
    check("email", json!("@b"), false);
    check("email", json!("a b@c"), false);
    check("email", json!("a@b@c"), false);
    check("email", json!(format!("{}@b", "l".repeat(64))), true);
    check("email", json!(format!("{}@b", "l".repeat(65))), false);
    check("email", json!(format!("a@{}", "d".repeat(252))), true);
    check("email", json!(format!("a@{}", "d".repeat(253))), false);
    check("extensionNumber", json!(100), true);
    check("extensionNumber", json!(99), false);
    check("extensionNumber", json!(999_999), true);
    check("extensionNumber", json!(1_000_000), false);
    check("extensionNumber", json!(100.5), false);
    check("extensionNumber", json!("100"), false);
    check("phone", json!("+999999999999999"), true);
    check("phone", json!("+9999999999999999"), false);
    check("phone", json!(999_999_999_999_999_u64), true);
    check("phone", json!(1_000_000_000_000_000_u64), false);
    check("phone", json!("12022252601"), false);
    check("phone", json!("+02022252601"), false);
    check("phone", json!(-1), false);
    check("timezone", json!("Europe/Berlin"), true);
    check("timezone", json!("europe/berlin"), false);
    check("timezone", json!("Mars/Olympus"), false);
    check("status", json!("Suspended"), true);
    check("status", json!("suspended"), false);
    check("twoFactorAuthentication", json!(true), true);
    check("twoFactorAuthentication", json!("true"), false);
    check("id", json!("sc_1"), false);
    check("nickName", json!("A"), false);
}

#[test]
fn characters_that_deceive_are_refused_everywhere() {
    for c in ["\u{0}", "\n", "\u{7f}", "\u{85}", "\u{2028}", "\u{2029}", "\u{202e}", "\u{2066}"] {
        for field in ["firstName", "email", "role", "displayName", "avatarUrl"] {
            check(field, json!(format!("a{c}@b")), false);
        }
    }
    check("firstName", json!("a\u{202f}b"), true);
}

#[test]
fn create_fills_defaults_and_asks_for_required_fields() {
    let made = ana();

    assert_eq!(made.fields.text(Field::Status), "Activated");
    assert_eq!(made.fields.extension(), Some(100));
    assert_eq!(made.full_name(), "Ana Ng");
    let missing = create(json!({"firstName": "Ana", "email": "a@b"})).unwrap_err();
    assert_eq!(missing.to_string(), "lastName: is required");
    let removed =
        create(json!({"firstName": "Ana", "lastName": null, "email": "a@b"})).unwrap_err();
    assert_eq!(removed.field, "lastName");
}

#[test]
fn data_scope_follows_the_role_unless_given() {
    let follow = |contact: &StaffContact| -> Value {
        serde_json::from_str::<Value>(&contact.to_json()).unwrap()["dataScope"].clone()
    };
    let made = ana();
    let edited =
        |from: &StaffContact, body| decide_edit(from, patch(body).unwrap(), NOW).unwrap().unwrap();

    let agent = edited(&made, json!({"role": "Agent"}));
    let supervisor = edited(&agent, json!({"role": "Supervisor"}));
    let given = edited(&supervisor, json!({"dataScope": "Full"}));
    let custom = edited(&agent, json!({"role": "Night porter"}));

    assert_eq!(follow(&made), Value::Null);
    assert_eq!(follow(&agent), "Restricted");
    assert_eq!(follow(&supervisor), "Department");
    assert_eq!(follow(&given), "Full");
    assert_eq!(follow(&custom), Value::Null);
}

#[test]
fn edit_merges_and_an_edit_that_changes_nothing_is_none() {
    let made = ana();
    let edit = |body| decide_edit(&made, patch(body).unwrap(), NOW);

    let after = edit(json!({"jobTitle": "Porter", "extensionNumber": null})).unwrap().unwrap();

    assert_eq!(after.version, 2);
    assert_eq!(after.fields.text(Field::JobTitle), "Porter");
    assert_eq!(after.fields.extension(), None);
    assert_eq!(edit(json!({})).unwrap(), None);
    assert_eq!(edit(json!({"email": "Ana@example.org", "lastName": "Ng"})).unwrap(), None);
    assert_eq!(edit(json!({"email": "ana@example.org"})).unwrap_err().rule, "cannot be edited");
    assert_eq!(edit(json!({"firstName": null})).unwrap_err().field, "firstName");
    assert_eq!(edit(json!({"status": null})).unwrap_err().field, "status");
}

#[test]
fn answer_lists_the_whole_contact_and_leaves_unset_fields_out() {
    let text = ana().to_json();

    assert_eq!(
        text,
        concat!(
            r#"{"id":"sc_07070707070707070707070707070707","status":"Activated","firstName":"Ana","#,
            r#""lastName":"Ng","email":"Ana@example.org","extensionNumber":100,"version":1,"#,
            r#""createdAt":"2025-11-23T12:13:20.000Z","updatedAt":"2025-11-23T12:13:20.000Z"}"#
        )
    );
}

#[test]
fn stored_form_is_read_back() {
    let made = ana();

    let stored = serde_json::to_string(&made.fields).unwrap();

    assert_eq!(serde_json::from_str::<super::ContactFields>(&stored).unwrap(), made.fields);
}
