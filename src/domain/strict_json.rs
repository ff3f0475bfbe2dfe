//! JSON from outside, read so that no two parsers can disagree about it.
//!
//! Refused are duplicate keys at every depth, trailing bytes, texts that are not UTF-8, lone surrogates and the
//! character U+0000, which not every store can keep. The depth is limited by the parser. Used for requests and for
//! a receiver's answer to a challenge.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Value};

/// Longest part of a caller's own name that an error shows, in Unicode scalar values.
const SHOWN_CHARS_MAX: usize = 64;

/// Reads one value and nothing after it.
///
/// # Errors
///
/// Anything that the header of this file names; the text says what and where.
pub fn parse(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let value = Strict.deserialize(&mut parser)?;
    parser.end()?;
    Ok(value)
}

/// A caller's own text, short and harmless enough for an error.
#[must_use]
pub fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS_MAX).collect()
}

fn refuse_nul<E: serde::de::Error>(text: &str) -> Result<(), E> {
    if text.contains('\0') {
        return Err(E::custom("texts must not contain the character U+0000"));
    }
    Ok(())
}

/// Builds a [`Value`] as `serde_json` does, but refuses duplicate keys and U+0000.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Value, E> {
        refuse_nul(&text)?;
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(Strict)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            refuse_nul(&name)?;
            match object.entry(name) {
                Entry::Vacant(place) => {
                    place.insert(fields.next_value_seed(Strict)?);
                }
                Entry::Occupied(place) => {
                    let name = shown(place.key());
                    return Err(A::Error::custom(format_args!("duplicate field {name}")));
                }
            }
        }
        Ok(Value::Object(object))
    }
}
