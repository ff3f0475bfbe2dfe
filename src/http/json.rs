//! Request bodies: JSON objects, whatever the `Content-Type` says, read by [`strict_json`] and judged once at the
//! border.

use serde_json::{Map, Value};

use super::envelope::ApiError;
use crate::domain::strict_json::{self, shown};

/// A JSON object from a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JsonObject(Map<String, Value>);

impl JsonObject {
    /// Reads a body.
    ///
    /// # Errors
    ///
    /// 400: it is empty, malformed, or not an object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Err(ApiError::invalid("a JSON object is required"));
        }
        let value = strict_json::parse(body)
            .map_err(|error| ApiError::invalid(format!("malformed JSON: {error}")))?;
        Self::from_value(value)
    }

    /// Takes a value that must be an object.
    ///
    /// # Errors
    ///
    /// 400: it is none.
    pub fn from_value(value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(object) => Ok(Self(object)),
            _ => Err(ApiError::invalid("a JSON object is required")),
        }
    }

    /// Takes a field out; absent and `null` are both `None`.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a required field out.
    ///
    /// # Errors
    ///
    /// 400: it is missing or null.
    pub fn take_required(&mut self, name: &str) -> Result<Value, ApiError> {
        self.take(name).ok_or_else(|| ApiError::invalid(format!("{name}: is required")))
    }

    /// Takes a required true or false out.
    ///
    /// # Errors
    ///
    /// 400: it is missing or something else.
    pub fn take_bool(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.take_required(name)? {
            Value::Bool(flag) => Ok(flag),
            _ => Err(ApiError::invalid(format!("{name}: must be true or false"))),
        }
    }

    /// Takes a required string out.
    ///
    /// # Errors
    ///
    /// 400: it is missing or something else.
    pub fn take_string(&mut self, name: &str) -> Result<String, ApiError> {
        match self.take_required(name)? {
            Value::String(text) => Ok(text),
            _ => Err(ApiError::invalid(format!("{name}: must be a string"))),
        }
    }

    /// Takes a required array out.
    ///
    /// # Errors
    ///
    /// 400: it is missing or something else.
    pub fn take_array(&mut self, name: &str) -> Result<Vec<Value>, ApiError> {
        match self.take_required(name)? {
            Value::Array(items) => Ok(items),
            _ => Err(ApiError::invalid(format!("{name}: must be an array"))),
        }
    }

    /// Refuses what was not taken out.
    ///
    /// # Errors
    ///
    /// 400: a field is left.
    pub fn refuse_unknown(self) -> Result<(), ApiError> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(ApiError::invalid(format!("{}: is not a known field", shown(name)))),
        }
    }

    /// The fields.
    #[must_use]
    pub fn into_map(self) -> Map<String, Value> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::JsonObject;

    fn check(body: &[u8], message: Option<&str>) {
        let result = JsonObject::parse(body);

        match message {
            None => assert!(result.is_ok(), "{result:?}"),
            Some(start) => {
                let error = result.expect_err("it must be refused");
                assert!(error.message.starts_with(start), "{error:?}");
            }
        }
    }

    #[test]
    fn only_one_strict_object_is_read() {
        check(br#"{"a":{"b":[1,-2,1.5,"x",null,true]}}"#, None);
        check(b" {} \r\n", None);
        check(b"", Some("a JSON object is required"));
        check(b" \n", Some("a JSON object is required"));
        check(b"[]", Some("a JSON object is required"));
        check(b"null", Some("a JSON object is required"));
        check(br#"{"a":1"#, Some("malformed JSON: "));
        check(br#"{"a":1} {}"#, Some("malformed JSON: trailing"));
        check(br#"{"a":1,}"#, Some("malformed JSON: "));
        check(b"\xEF\xBB\xBF{}", Some("malformed JSON: "));
    }

    #[test]
    fn duplicate_fields_are_refused_at_every_depth() {
        check(br#"{"a":1,"a":1}"#, Some("malformed JSON: duplicate field a"));
        check(br#"{"a":[{"b":1,"b":2}]}"#, Some("malformed JSON: duplicate field b"));
        check(br#"{"a":1,"\u0061":1}"#, Some("malformed JSON: duplicate field a"));
        check(br#"{"a":{"b":1},"b":2}"#, None);
    }

    #[test]
    fn texts_must_be_unicode_and_without_nul() {
        check(b"{\"a\":\"\xFF\"}", Some("malformed JSON: "));
        check(br#"{"a":"\ud800"}"#, Some("malformed JSON: "));
        check(br#"{"a":"\ud83d\ude00"}"#, None);
        check(br#"{"a":"\u0000"}"#, Some("malformed JSON: texts must not contain"));
        check(b"{\"a\":\"\0\"}", Some("malformed JSON: "));
        check(br#"{"\u0000":1}"#, Some("malformed JSON: texts must not contain"));
    }

    #[test]
    fn depth_is_limited() {
        let deep = |depth: usize| {
            format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth)).into_bytes()
        };
        check(&deep(100), None);
        check(&deep(100_000), Some("malformed JSON: recursion limit"));
    }

    #[test]
    fn fields_are_named_when_they_are_missing_wrong_or_unknown() {
        let parse = |body: &str| JsonObject::parse(body.as_bytes()).unwrap();

        assert_eq!(parse("{}").take_bool("enabled").unwrap_err().message, "enabled: is required");
        assert_eq!(
            parse(r#"{"enabled":null}"#).take_bool("enabled").unwrap_err().message,
            "enabled: is required"
        );
        assert_eq!(
            parse(r#"{"enabled":"true"}"#).take_bool("enabled").unwrap_err().message,
            "enabled: must be true or false"
        );
        assert_eq!(
            parse(r#"{"url":1}"#).take_string("url").unwrap_err().message,
            "url: must be a string"
        );
        assert_eq!(
            parse(r#"{"x":1}"#).refuse_unknown().unwrap_err().message,
            "x: is not a known field"
        );
    }
}
