//! Query parameters: those that are known are judged strictly, others are passed over.

use std::borrow::Cow;
use std::time::Duration;

use crate::domain::page::{PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX};
use crate::feed::{FeedQuery, WAIT_MAX};
use crate::http::envelope::ApiError;
use crate::store::rows::ContactQuery;

/// The parameters of a request.
#[derive(Debug)]
pub(super) struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    /// Reads what stands behind the question mark.
    pub(super) fn parse(query: Option<&'a str>) -> Self {
        Self(url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()).collect())
    }

    /// The value of a parameter that is given at most once.
    pub(super) fn get(&self, name: &str) -> Result<Option<&str>, ApiError> {
        let mut values = self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value);
        let value = values.next().map(AsRef::as_ref);
        if values.next().is_some() {
            return Err(ApiError::invalid(format!("{name}: is given more than once")));
        }
        Ok(value)
    }

    /// A number from 0; the reference's words for negative ones.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.get(name)? else {
            return Ok(None);
        };
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ApiError::invalid(format!("{name}: must be a whole number")));
        }
        if negative && digits.bytes().any(|b| b != b'0') {
            return Err(ApiError::invalid(format!("negative {name}")));
        }
        // What does not fit is beyond every end.
        Ok(Some(digits.parse().unwrap_or(u64::MAX)))
    }

    /// The page size.
    pub(super) fn limit(&self) -> Result<u32, ApiError> {
        self.at_most(PAGE_LIMIT_MAX)
    }

    fn at_most(&self, most: u32) -> Result<u32, ApiError> {
        match self.number("limit")? {
            None => Ok(PAGE_LIMIT_DEFAULT),
            Some(limit) => u32::try_from(limit)
                .ok()
                .filter(|limit| *limit <= most)
                .ok_or_else(|| ApiError::invalid(format!("exceed maximum limit {most}"))),
        }
    }

    /// The page size of a list by cursor, which must advance.
    pub(super) fn cursor_limit(&self) -> Result<u32, ApiError> {
        self.limit_within(PAGE_LIMIT_MAX)
    }

    /// The page size of a list by cursor whose entries are large.
    pub(super) fn limit_within(&self, most: u32) -> Result<u32, ApiError> {
        match self.at_most(most)? {
            0 => Err(ApiError::invalid(format!("limit: must be from 1 to {most}"))),
            limit => Ok(limit),
        }
    }

    /// Which part of the event log is wanted, and for how long to wait for it.
    pub(super) fn feed(&self) -> Result<FeedQuery, ApiError> {
        let after = self.number("after")?.unwrap_or(0).min(i64::MAX.unsigned_abs());
        let limit = self.cursor_limit()?;
        let wait = Duration::from_secs(self.number("wait")?.unwrap_or(0));
        if wait > WAIT_MAX {
            return Err(ApiError::invalid(format!("exceed maximum wait {}", WAIT_MAX.as_secs())));
        }
        Ok(FeedQuery { after, limit, wait })
    }

    /// Which slice of the roll is wanted.
    pub(super) fn contacts(&self) -> Result<ContactQuery, ApiError> {
        let offset = self.number("offset")?.unwrap_or(0).min(i64::MAX.unsigned_abs());
        let limit = self.limit()?;
        let full_name = self.get("fullName")?.filter(|name| !name.is_empty()).map(str::to_owned);
        Ok(ContactQuery { offset, limit, full_name })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Query;
    use crate::feed::FeedQuery;
    use crate::store::rows::ContactQuery;

    fn check(query: &str, expected: Result<(u64, u32, Option<&str>), &str>) {
        let judged = Query::parse(Some(query)).contacts();

        match expected {
            Ok((offset, limit, full_name)) => {
                let full_name = full_name.map(str::to_owned);
                assert_eq!(judged, Ok(ContactQuery { offset, limit, full_name }), "{query}");
            }
            Err(message) => assert_eq!(judged.unwrap_err().message, message, "{query}"),
        }
    }

    #[test]
    fn known_parameters_are_judged_and_others_passed_over() {
        check("", Ok((0, 50, None)));
        check("offset=7&limit=500&fullName=Ana+N%C3%BA&x=1", Ok((7, 500, Some("Ana Nú"))));
        check("limit=501", Err("exceed maximum limit 500"));
        check("limit=99999999999999999999", Err("exceed maximum limit 500"));
        check("limit=0", Ok((0, 0, None)));
        check("limit=-1", Err("negative limit"));
        check("offset=-1", Err("negative offset"));
        check("offset=-0", Ok((0, 50, None)));
        check("offset=99999999999999999999", Ok((i64::MAX.unsigned_abs(), 50, None)));
        check("offset=", Err("offset: must be a whole number"));
        check("offset=1.5", Err("offset: must be a whole number"));
        check("limit=ten", Err("limit: must be a whole number"));
        check("limit=1&limit=2", Err("limit: is given more than once"));
        check("fullName=", Ok((0, 50, None)));
    }

    #[test]
    fn the_feed_is_asked_within_its_limits() {
        let judge = |query: &str| Query::parse(Some(query)).feed().map_err(|error| error.message);
        let feed = |after, limit, seconds| {
            Ok(FeedQuery { after, limit, wait: Duration::from_secs(seconds) })
        };
        let refused = |message: &'static str| Err(message.into());

        assert_eq!(judge(""), feed(0, 50, 0));
        assert_eq!(judge("after=7&limit=500&wait=30&x=1"), feed(7, 500, 30));
        assert_eq!(judge("after=99999999999999999999"), feed(i64::MAX.unsigned_abs(), 50, 0));
        assert_eq!(judge("limit=501"), refused("exceed maximum limit 500"));
        assert_eq!(judge("limit=0"), refused("limit: must be from 1 to 500"));
        assert_eq!(judge("limit=-1"), refused("negative limit"));
        assert_eq!(judge("after=-1"), refused("negative after"));
        assert_eq!(judge("after=x"), refused("after: must be a whole number"));
        assert_eq!(judge("wait=31"), refused("exceed maximum wait 30"));
        assert_eq!(judge("wait=99999999999999999999"), refused("exceed maximum wait 30"));
        assert_eq!(judge("wait=-1"), refused("negative wait"));
        assert_eq!(judge("wait=1.5"), refused("wait: must be a whole number"));
        assert_eq!(judge("wait=1&wait=1"), refused("wait: is given more than once"));
    }
}
