//! JSON whose objects keep the order in which their fields were sent.
//!
//! `client.rs` reads the server's answers into it, so that people and scripts see fields as the API explains them.
//! `serde_json`'s own feature for this would change every map of the program, those of the server too.

use std::fmt;
use std::ops::Index;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use serde_json::Value;

/// One JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ordered {
    /// Null, true, false, a number or a text; never a list or an object.
    Plain(Value),
    /// The entries of a list.
    List(Vec<Ordered>),
    /// The fields of an object as they were sent.
    Object(Vec<(String, Ordered)>),
}

static NULL: Ordered = Ordered::Plain(Value::Null);

impl Ordered {
    /// The text, if it is one.
    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Plain(value) => value.as_str(),
            Self::List(_) | Self::Object(_) => None,
        }
    }

    /// The number, if it is a whole one from 0.
    pub(super) fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Plain(value) => value.as_u64(),
            Self::List(_) | Self::Object(_) => None,
        }
    }

    /// The entries, if it is a list.
    pub(super) fn as_list(&self) -> Option<&[Self]> {
        match self {
            Self::List(entries) => Some(entries),
            Self::Plain(_) | Self::Object(_) => None,
        }
    }

    /// The field of this name, if it is an object that has it.
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Object(fields) => fields.iter().find(|field| field.0 == name).map(|f| &f.1),
            Self::Plain(_) | Self::List(_) => None,
        }
    }
}

/// As with `serde_json`, a field that is not there is null.
impl Index<&str> for Ordered {
    type Output = Self;

    fn index(&self, name: &str) -> &Self {
        self.get(name).unwrap_or(&NULL)
    }
}

impl fmt::Display for Ordered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Ordered {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Plain(value) => value.serialize(serializer),
            Self::List(entries) => serializer.collect_seq(entries),
            Self::Object(fields) => {
                serializer.collect_map(fields.iter().map(|(name, value)| (name, value)))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Ordered;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Ordered, E> {
        Ok(Ordered::Plain(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Ordered, E> {
        Ok(Ordered::Plain(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Ordered, E> {
        Ok(Ordered::Plain(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Ordered, E> {
        Ok(Ordered::Plain(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Ordered, E> {
        Ok(Ordered::Plain(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Ordered, E> {
        Ok(Ordered::Plain(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Ordered, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Ordered::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Ordered, A::Error> {
        let mut object = Vec::new();
        while let Some(field) = fields.next_entry()? {
            object.push(field);
        }
        Ok(Ordered::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::Ordered;

    #[test]
    fn what_was_sent_is_written_again_in_its_order() {
        let text = r#"{"z":{"b":1,"a":[true,null,"x",-2,0.5]},"a":{},"m":[{"y":1,"x":2}]}"#;

        let value: Ordered = serde_json::from_str(text).unwrap();

        assert_eq!(value.to_string(), text);
        assert_eq!(value["z"]["b"].to_string(), "1");
        assert_eq!(value["z"]["no"]["such"].to_string(), "null");
        assert_eq!(value["m"].as_list().unwrap()[0]["x"].to_string(), "2");
    }
}
