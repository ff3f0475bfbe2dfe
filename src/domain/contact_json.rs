//! The JSON of a contact: as the API answers it, and its fields alone.
//!
//! Written straight into one text, because every create passes here. The bytes are those that `serde_json` gives, so
//! that stored and answered forms never depend on who wrote them; a test compares the two.

use std::fmt::Write;

use super::contact::{ContactFields, Field, FieldValue, StaffContact};
use super::contact_rules;

/// Room for a usual contact with all of its names, so that the text seldom grows. More costs memory in each answer.
const USUAL_BYTES: usize = 640;

impl ContactFields {
    /// The set fields as one JSON object, as they are stored.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut out = String::with_capacity(USUAL_BYTES);
        out.push('{');
        push_fields(&mut out, self.iter());
        out.push('}');
        out
    }
}

impl StaffContact {
    /// The whole contact as the API answers it.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut out = String::with_capacity(USUAL_BYTES);
        out.push_str(r#"{"id":""#);
        push_shown(&mut out, self.id);
        out.push_str(r#"","#);
        match self.scope_of_role() {
            None => push_fields(&mut out, self.fields.iter()),
            Some(scope) => {
                // Where it stands among the fields when it was given.
                push_fields(
                    &mut out,
                    self.fields.iter().filter(|(field, _)| *field < Field::DataScope),
                );
                out.push(',');
                push_name(&mut out, Field::DataScope);
                push_text(&mut out, scope);
                let mut behind =
                    self.fields.iter().filter(|(field, _)| *field > Field::DataScope).peekable();
                if behind.peek().is_some() {
                    out.push(',');
                }
                push_fields(&mut out, behind);
            }
        }
        out.push_str(r#","version":"#);
        push_shown(&mut out, self.version);
        out.push_str(r#","createdAt":""#);
        let at = out.len();
        push_shown(&mut out, self.created_at);
        let end = out.len();
        out.push_str(r#"","updatedAt":""#);
        if self.updated_at == self.created_at {
            // Writing a time is dear, and a contact that was never edited has only one.
            out.extend_from_within(at..end);
        } else {
            push_shown(&mut out, self.updated_at);
        }
        out.push_str(r#""}"#);
        out
    }

    /// The data scope that follows the role, when none was given.
    fn scope_of_role(&self) -> Option<&'static str> {
        match self.fields.get(Field::DataScope) {
            Some(_) => None,
            None => contact_rules::data_scope_of(self.fields.text(Field::Role)),
        }
    }
}

fn push_fields<'a>(out: &mut String, fields: impl Iterator<Item = (Field, &'a FieldValue)>) {
    for (at, (field, value)) in fields.enumerate() {
        if at > 0 {
            out.push(',');
        }
        push_name(out, field);
        match value {
            FieldValue::Flag(flag) => out.push_str(if *flag { "true" } else { "false" }),
            FieldValue::Number(number) => push_shown(out, number),
            FieldValue::Text(text) => push_text(out, text),
        }
    }
}

fn push_name(out: &mut String, field: Field) {
    out.push('"');
    out.push_str(field.name());
    out.push_str("\":");
}

fn push_shown(out: &mut String, value: impl std::fmt::Display) {
    write!(out, "{value}").expect("a text takes everything that is written to it");
}

/// A text with its quotes. Few hold a character that must be escaped, and those are left to `serde_json`.
fn push_text(out: &mut String, text: &str) {
    if text.bytes().any(|byte| byte < b' ' || matches!(byte, b'"' | b'\\')) {
        // A text is always valid JSON.
        out.push_str(&serde_json::to_string(text).unwrap_or_default());
    } else {
        out.push('"');
        out.push_str(text);
        out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};

    use super::{ContactFields, Field, FieldValue, StaffContact};
    use crate::domain::clock::Timestamp;
    use crate::domain::contact_rules::data_scope_of;
    use crate::domain::id::ContactId;

    fn value() -> impl Strategy<Value = FieldValue> {
        let texts = prop_oneof![
            any::<String>(),
            "[a-zA-Z0-9@. ]{0,40}",
            "[\\x00-\\x7f]{0,12}",
            proptest::sample::select(vec!["Agent", "Supervisor", "Administrator"])
                .prop_map(str::to_owned),
        ];
        prop_oneof![
            6 => texts.prop_map(FieldValue::Text),
            1 => any::<bool>().prop_map(FieldValue::Flag),
            1 => any::<u64>().prop_map(FieldValue::Number),
        ]
    }

    fn fields() -> impl Strategy<Value = ContactFields> {
        proptest::collection::vec((0..Field::ALL.len(), value()), 0..24).prop_map(|set| {
            let mut fields = ContactFields::default();
            fields.set(Field::Status, Some(FieldValue::Text("Activated".to_owned())));
            for (at, value) in set {
                fields.set(Field::ALL[at], Some(value));
            }
            fields
        })
    }

    /// The same by way of `serde_json`.
    fn reference(contact: &StaffContact) -> String {
        let mut fields = contact.fields.clone();
        if fields.get(Field::DataScope).is_none()
            && let Some(scope) = data_scope_of(fields.text(Field::Role))
        {
            fields.set(Field::DataScope, Some(FieldValue::Text(scope.to_owned())));
        }
        let fields = serde_json::to_string(&fields).unwrap();
        format!(
            r#"{{"id":"{}",{},"version":{},"createdAt":"{}","updatedAt":"{}"}}"#,
            contact.id,
            fields.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap(),
            contact.version,
            contact.created_at,
            contact.updated_at
        )
    }

    proptest! {
        #[test]
        fn bytes_are_those_of_serde_json(
            fields in fields(),
            id in any::<[u8; 16]>(),
            version in any::<u64>(),
            created in 0..4_000_000_000_000_i64,
            later in prop_oneof![0..1_i64, 0..4_000_000_000_i64],
        ) {
            let created_at = Timestamp::from_millis(created);
            let updated_at = Timestamp::from_millis(created + later);
            let id = ContactId::from_bytes(id);
            let contact = StaffContact { id, version, created_at, updated_at, fields };

            prop_assert_eq!(contact.to_json(), reference(&contact));
            prop_assert_eq!(contact.fields.to_json(), serde_json::to_string(&contact.fields).unwrap());
        }
    }
}
