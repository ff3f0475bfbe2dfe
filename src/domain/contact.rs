//! The staff contact: its fields, what a change to it is, and the decisions on create, edit and delete.
//!
//! The decisions are asked by the store's writer on the row as it is at that point of the transaction. What a
//! value may look like stands in [`super::contact_rules`].

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::clock::Timestamp;
use super::contact_rules;
use super::id::ContactId;

/// One field of a staff contact, in the order in which answers list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(
    missing_docs,
    reason = "the names are those of the reference; what each holds stands in contact_rules"
)]
pub enum Field {
    Status,
    FirstName,
    LastName,
    DisplayName,
    Email,
    Role,
    DataScope,
    JobTitle,
    Phone,
    ExtensionNumber,
    Timezone,
    AvatarUrl,
    DirectChatEnquiry,
    DirectCallEnquiry,
    DirectStaffEnquiry,
    TwoFactorAuthentication,
    MicrosoftActiveDirectory,
}

impl Field {
    /// Every field, in listing order.
    pub const ALL: [Self; 17] = [
        Self::Status,
        Self::FirstName,
        Self::LastName,
        Self::DisplayName,
        Self::Email,
        Self::Role,
        Self::DataScope,
        Self::JobTitle,
        Self::Phone,
        Self::ExtensionNumber,
        Self::Timezone,
        Self::AvatarUrl,
        Self::DirectChatEnquiry,
        Self::DirectCallEnquiry,
        Self::DirectStaffEnquiry,
        Self::TwoFactorAuthentication,
        Self::MicrosoftActiveDirectory,
    ];

    /// The name in JSON, as the reference spells it (`directchatEnquiry` included).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::FirstName => "firstName",
            Self::LastName => "lastName",
            Self::DisplayName => "displayName",
            Self::Email => "email",
            Self::Role => "role",
            Self::DataScope => "dataScope",
            Self::JobTitle => "jobTitle",
            Self::Phone => "phone",
            Self::ExtensionNumber => "extensionNumber",
            Self::Timezone => "timezone",
            Self::AvatarUrl => "avatarUrl",
            Self::DirectChatEnquiry => "directchatEnquiry",
            Self::DirectCallEnquiry => "directCallEnquiry",
            Self::DirectStaffEnquiry => "directStaffEnquiry",
            Self::TwoFactorAuthentication => "twoFactorAuthentication",
            Self::MicrosoftActiveDirectory => "microsoftActiveDirectory",
        }
    }

    /// The field of this JSON name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }

    /// Whether every contact has it.
    #[must_use]
    pub const fn required(self) -> bool {
        matches!(self, Self::Status | Self::FirstName | Self::LastName | Self::Email)
    }
}

/// The value of one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FieldValue {
    /// A true or false field.
    Flag(bool),
    /// A telephone or extension number.
    Number(u64),
    /// Everything else.
    Text(String),
}

/// A body that breaks a rule: which field and which rule, for the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct FieldError {
    /// The field's name in JSON.
    pub field: String,
    /// The rule and its limit, lower case, without a full stop.
    pub rule: String,
}

impl FieldError {
    /// An error on this field.
    #[must_use]
    pub fn new(field: impl Into<String>, rule: impl Into<String>) -> Self {
        Self { field: field.into(), rule: rule.into() }
    }
}

/// The set fields of a contact, in listing order, each valid by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContactFields(Vec<(Field, FieldValue)>);

impl ContactFields {
    /// The value of a field, when it is set.
    #[must_use]
    pub fn get(&self, field: Field) -> Option<&FieldValue> {
        self.0.iter().find(|(set, _)| *set == field).map(|(_, value)| value)
    }

    /// The text of a field; empty when it is not set or not a text.
    #[must_use]
    pub fn text(&self, field: Field) -> &str {
        match self.get(field) {
            Some(FieldValue::Text(text)) => text,
            _ => "",
        }
    }

    /// The set fields with their values, in listing order.
    pub fn iter(&self) -> impl Iterator<Item = (Field, &FieldValue)> {
        self.0.iter().map(|(field, value)| (*field, value))
    }

    /// Sets a field, or removes it.
    pub fn set(&mut self, field: Field, value: Option<FieldValue>) {
        let place = self.0.binary_search_by_key(&field, |(set, _)| *set);
        match (place, value) {
            (Ok(at), Some(value)) => self.0[at].1 = value,
            (Ok(at), None) => drop(self.0.remove(at)),
            (Err(at), Some(value)) => self.0.insert(at, (field, value)),
            (Err(_), None) => {}
        }
    }

    /// The extension number, when there is one.
    #[must_use]
    pub fn extension(&self) -> Option<u32> {
        match self.get(Field::ExtensionNumber) {
            Some(FieldValue::Number(number)) => u32::try_from(*number).ok(),
            _ => None,
        }
    }
}

impl Serialize for ContactFields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (field, value) in &self.0 {
            map.serialize_entry(field.name(), value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for ContactFields {
    /// Reads the stored form; a field that this version does not know is passed over.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = ContactFields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the fields of a staff contact")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<ContactFields, M::Error> {
                let mut fields = ContactFields::default();
                while let Some(name) = map.next_key::<std::borrow::Cow<'_, str>>()? {
                    let value = map.next_value::<FieldValue>()?;
                    if let Some(field) = Field::parse(&name) {
                        fields.set(field, Some(value));
                    }
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// What a caller wants changed: fields to set, and fields to remove (`None`), each at most once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContactPatch(Vec<(Field, Option<FieldValue>)>);

impl ContactPatch {
    /// Reads a JSON object of contact fields; `null` removes.
    ///
    /// # Errors
    ///
    /// An unknown or read-only field, or a value that breaks its field's rule.
    pub fn from_json(
        object: serde_json::Map<String, serde_json::Value>,
    ) -> Result<Self, FieldError> {
        let mut changes = Vec::with_capacity(object.len());
        for (name, value) in object {
            let Some(field) = Field::parse(&name) else {
                return Err(contact_rules::not_a_field(&name));
            };
            changes.push((field, contact_rules::parse_value(field, value)?));
        }
        Ok(Self(changes))
    }

    /// The change of one field, when it is named: `Some(None)` removes it.
    #[must_use]
    pub fn get(&self, field: Field) -> Option<Option<&FieldValue>> {
        self.0.iter().find(|(named, _)| *named == field).map(|(_, value)| value.as_ref())
    }

    /// Sets one field of the wish.
    pub fn put(&mut self, field: Field, value: Option<FieldValue>) {
        self.0.retain(|(named, _)| *named != field);
        self.0.push((field, value));
    }

    /// Bytes it occupies in memory, about.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0
            .iter()
            .map(|(_, value)| match value {
                Some(FieldValue::Text(text)) => 48 + text.len(),
                _ => 48,
            })
            .sum()
    }

    fn apply(self, fields: &mut ContactFields) {
        for (field, value) in self.0 {
            fields.set(field, value);
        }
    }
}

/// One member of staff on the roll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaffContact {
    /// Made by us, never used again.
    pub id: ContactId,
    /// 1 after the create, one more with every edit.
    pub version: u64,
    /// When it joined the roll.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Its set fields. `dataScope` only when it was given; [`Self::to_json`] adds the one that follows the role.
    pub fields: ContactFields,
}

impl StaffContact {
    /// First name, a space, last name.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{} {}", self.fields.text(Field::FirstName), self.fields.text(Field::LastName))
    }
}

/// Decides a create: the new contact, version 1.
///
/// `extension` is the one to assign when the wish names none; `None` when none is free.
///
/// # Errors
///
/// A required field is missing.
pub fn decide_create(
    wish: ContactPatch,
    id: ContactId,
    extension: Option<u32>,
    now: Timestamp,
) -> Result<StaffContact, FieldError> {
    let mut fields = ContactFields::default();
    fields.set(Field::Status, Some(FieldValue::Text(contact_rules::STATUS_DEFAULT.to_owned())));
    if let Some(number) = extension {
        fields.set(Field::ExtensionNumber, Some(FieldValue::Number(number.into())));
    }
    check_create(&wish)?;
    wish.apply(&mut fields);
    Ok(StaffContact { id, version: 1, created_at: now, updated_at: now, fields })
}

/// Whether the wish can create a contact: no required field is missing or removed.
///
/// # Errors
///
/// The first required field that is.
pub fn check_create(wish: &ContactPatch) -> Result<(), FieldError> {
    for field in Field::ALL.into_iter().filter(|field| field.required()) {
        match wish.get(field) {
            Some(Some(_)) => {}
            None if field == Field::Status => {}
            Some(None) | None => return Err(FieldError::new(field.name(), "is required")),
        }
    }
    Ok(())
}

/// Decides an edit: the contact after it, or `None` when the edit changes nothing.
///
/// # Errors
///
/// It would remove a required field, or change the e-mail address.
pub fn decide_edit(
    current: &StaffContact,
    wish: ContactPatch,
    now: Timestamp,
) -> Result<Option<StaffContact>, FieldError> {
    for (field, value) in &wish.0 {
        if value.is_none() && field.required() {
            return Err(FieldError::new(field.name(), "is required and cannot be removed"));
        }
    }
    if let Some(Some(email)) = wish.get(Field::Email)
        && Some(email) != current.fields.get(Field::Email)
    {
        return Err(FieldError::new(Field::Email.name(), "cannot be edited"));
    }
    let mut fields = current.fields.clone();
    wish.apply(&mut fields);
    if fields == current.fields {
        return Ok(None);
    }
    Ok(Some(StaffContact {
        id: current.id,
        version: current.version + 1,
        created_at: current.created_at,
        updated_at: now.max(current.updated_at),
        fields,
    }))
}

#[cfg(test)]
#[path = "contact_tests.rs"]
mod tests;
