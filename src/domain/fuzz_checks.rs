//! What must hold of texts, JSON and contacts that the domain accepts from outside. Run by `src/fuzzing.rs` only.

use serde_json::{Map, Value};

use super::clock::Timestamp;
use super::contact::{ContactFields, ContactPatch, Field, FieldValue, StaffContact};
use super::contact::{check_create, decide_create, decide_edit};
use super::id::{AppId, ContactId, EventId, ServiceId};
use super::strict_json;

const NOW: Timestamp = Timestamp::from_millis(1_763_900_000_123);

/// Each line as every kind of identifier, and as a time: what is accepted is written as it was read.
pub(crate) fn check_texts(bytes: &[u8]) {
    for line in bytes.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok())
    {
        check_ids(line);
        if let Some(time) = Timestamp::parse(line) {
            let written = time.to_string();
            assert_eq!(Timestamp::parse(&written), Some(time), "{line:?} was written {written}");
        }
    }
}

fn check_ids(text: &str) {
    let read = [
        ServiceId::parse(text).map(|id| id.to_string()),
        AppId::parse(text).map(|id| id.to_string()),
        ContactId::parse(text).map(|id| id.to_string()),
        EventId::parse(text).map(|id| id.to_string()),
    ];
    assert!(read.iter().flatten().count() <= 1, "{text:?} names two kinds of things");
    for written in read.iter().flatten() {
        assert_eq!(written, text);
    }
}

/// The strict reader beside `serde_json`: the same values, and refused is exactly what its header says.
pub(crate) fn check_json(bytes: &[u8]) {
    let strict = strict_json::parse(bytes);
    let lenient = serde_json::from_slice::<Value>(bytes);
    match (&strict, &lenient) {
        (Ok(value), Ok(same)) => {
            assert_eq!(value, same);
            let (fields, nul) = count(value);
            assert!(!nul, "a text with U+0000 was accepted");
            assert_eq!(fields, colons(bytes), "a duplicate field was accepted");
            let text = value.to_string();
            let again = strict_json::parse(text.as_bytes());
            // The last digit of a fraction may change; no field takes fractions.
            assert!(holds_fraction(value) || again.ok().as_ref() == Some(value), "{text}");
        }
        (Ok(_), Err(error)) => panic!("accepted although serde_json refuses it: {error}"),
        (Err(error), Ok(value)) => {
            let (fields, nul) = count(value);
            // A duplicate field may take a U+0000 with it; the text then holds its escape or the character.
            let reason = nul || fields < colons(bytes) || holds_nul(bytes);
            assert!(reason, "refused without a reason: {error}");
        }
        (Err(_), Err(_)) => {}
    }
}

/// How many fields the objects within have together, and whether any text holds U+0000.
fn count(value: &Value) -> (usize, bool) {
    let add =
        |(fields, nul): (usize, bool), (more, also): (usize, bool)| (fields + more, nul || also);
    match value {
        Value::Array(items) => items.iter().map(count).fold((0, false), add),
        Value::Object(object) => object
            .iter()
            .map(|(name, value)| add(count(value), (1, name.contains('\0'))))
            .fold((0, false), add),
        Value::String(text) => (0, text.contains('\0')),
        Value::Null | Value::Bool(_) | Value::Number(_) => (0, false),
    }
}

fn holds_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(items) => items.iter().any(holds_fraction),
        Value::Object(object) => object.values().any(holds_fraction),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}

/// Colons outside texts: one for each field that was written.
fn colons(json: &[u8]) -> usize {
    let mut colons = 0;
    let (mut in_text, mut escaped) = (false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b':' if !in_text => colons += 1,
            _ => {}
        }
    }
    colons
}

fn holds_nul(json: &[u8]) -> bool {
    json.windows(6).any(|part| part == br"\u0000")
}

/// Two lines, a create and an edit: what is accepted keeps the limits, and is read back from each form it is written in.
pub(crate) fn check_contact(bytes: &[u8]) {
    let at = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (first, second) = bytes.split_at(at);
    let Some(wish) = read_patch(first) else { return };
    let complete = check_create(&wish).is_ok();
    let created = decide_create(wish, ContactId::from_bytes([7; 16]), Some(100), NOW);
    assert_eq!(created.is_ok(), complete);
    let Ok(created) = created else { return };
    check_stored(&created);
    let Some(edit) = read_patch(second) else { return };
    let later = Timestamp::from_millis(NOW.millis() + 1);
    if let Ok(Some(edited)) = decide_edit(&created, edit, later) {
        assert_eq!((edited.id, edited.version), (created.id, 2));
        assert_ne!(edited.fields, created.fields);
        assert_eq!(edited.fields.get(Field::Email), created.fields.get(Field::Email));
        check_stored(&edited);
    }
}

fn read_patch(json: &[u8]) -> Option<ContactPatch> {
    match strict_json::parse(json) {
        Ok(Value::Object(object)) => ContactPatch::from_json(object).ok(),
        _ => None,
    }
}

fn check_stored(contact: &StaffContact) {
    for field in Field::ALL {
        let value = contact.fields.get(field);
        assert!(value.is_some() || !field.required(), "{} is missing", field.name());
        if let Some(value) = value {
            check_value(field, value);
        }
    }
    let stored = contact.fields.to_json();
    let read: Option<ContactFields> = serde_json::from_str(&stored).ok();
    assert_eq!(read.as_ref(), Some(&contact.fields), "{stored}");
    let answer = strict_json::parse(contact.to_json().as_bytes());
    let Ok(Value::Object(mut answer)) = answer else {
        panic!("the answer is no object: {answer:?}")
    };
    for name in ["id", "version", "createdAt", "updatedAt"] {
        assert!(answer.remove(name).is_some(), "{name} is not answered");
    }
    check_sent_back(contact, answer);
}

/// Whoever creates a contact from an answer's fields gets the same one.
fn check_sent_back(contact: &StaffContact, mut answer: Map<String, Value>) {
    if contact.fields.get(Field::DataScope).is_none() {
        answer.remove(Field::DataScope.name());
    }
    if let Some(Value::Number(phone)) = answer.get("phone") {
        assert!(phone.as_u64().is_some());
    }
    let again = ContactPatch::from_json(answer).expect("an answer's fields can be sent again");
    let again = decide_create(again, contact.id, None, NOW).expect("they are complete");
    assert_eq!(again.fields, contact.fields);
}

/// The limits of the contract, in other words than the rules have them.
fn check_value(field: Field, value: &FieldValue) {
    let name = field.name();
    match (field, value) {
        (Field::Phone, FieldValue::Number(number)) => {
            assert!(
                (1..=15).contains(&number.to_string().len()) && *number > 0,
                "{name}: {number}"
            );
        }
        (Field::ExtensionNumber, FieldValue::Number(number)) => {
            assert!(*number >= 100 && number.to_string().len() <= 6, "{name}: {number}");
        }
        (
            Field::DirectStaffEnquiry
            | Field::TwoFactorAuthentication
            | Field::MicrosoftActiveDirectory,
            FieldValue::Flag(_),
        ) => {}
        (_, FieldValue::Text(text)) => {
            let refused = |c: char| {
                let code = u32::from(c);
                code < 0x20
                    || (0x7F..0xA0).contains(&code)
                    || (0x2028..=0x202E).contains(&code)
                    || (0x2066..=0x2069).contains(&code)
            };
            assert!(!text.chars().any(refused), "{name}: {text:?}");
            let chars = text.chars().count();
            match field {
                Field::FirstName | Field::LastName => {
                    assert!(
                        (1..=100).contains(&chars) && !text.trim().is_empty(),
                        "{name}: {text:?}"
                    );
                }
                Field::Email => {
                    let local = text.find('@').expect("an e-mail has an @");
                    assert_eq!(text.matches('@').count(), 1, "{text:?}");
                    assert!(
                        (1..=64).contains(&local) && text.len() <= 254 && local + 1 < text.len()
                    );
                }
                _ => assert!(chars <= 255, "{name}: {text:?}"),
            }
        }
        _ => panic!("{name} has a value of another kind: {value:?}"),
    }
}
