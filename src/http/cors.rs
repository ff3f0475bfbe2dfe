//! Cross-origin requests: only below `/v1/api`, only for the configured origins, exact and with credentials.

use ::http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use ::http::request::Parts;
use ::http::{HeaderMap, HeaderValue, Method};

/// Paths below it may be called from other origins.
const PREFIX: &str = "/v1/api/";
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PATCH, DELETE");
const REQUEST_HEADERS: HeaderValue =
    HeaderValue::from_static("Authorization, Content-Type, If-Match, Idempotency-Key");
const ANSWER_HEADERS: HeaderValue =
    HeaderValue::from_static("ETag, rollcall-sequence, X-Request-Id, Retry-After");
/// Seconds that a browser may remember a preflight; a change of `cors_origins` takes that long to reach it.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// Which origins may call.
#[derive(Clone, Debug, Default)]
pub struct Cors {
    any: bool,
    origins: Vec<HeaderValue>,
}

/// What a request is, seen from its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsRequest {
    /// Nothing to add.
    None,
    /// An answer of this path depends on the origin, and this one is not allowed.
    Refused,
    /// The origin may read the answer.
    Allowed(HeaderValue),
    /// The browser asks first; the origin, when it may call.
    Preflight(Option<HeaderValue>),
}

impl Cors {
    /// Allows these origins; `*` allows all.
    #[must_use]
    pub fn new(origins: &[String]) -> Self {
        Self {
            any: origins.iter().any(|origin| origin == "*"),
            origins: origins.iter().filter_map(|origin| origin.parse().ok()).collect(),
        }
    }

    /// Judges a request.
    #[must_use]
    pub fn judge(&self, head: &Parts) -> CorsRequest {
        let off = !self.any && self.origins.is_empty();
        if off || !head.uri.path().starts_with(PREFIX) {
            return CorsRequest::None;
        }
        let origin = head
            .headers
            .get(ORIGIN)
            .filter(|origin| self.any || self.origins.contains(*origin))
            .cloned();
        let preflight = head.method == Method::OPTIONS
            && head.headers.contains_key(ORIGIN)
            && head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        match origin {
            origin if preflight => CorsRequest::Preflight(origin),
            Some(origin) => CorsRequest::Allowed(origin),
            None => CorsRequest::Refused,
        }
    }
}

impl CorsRequest {
    /// Adds what the answer must carry.
    pub fn add_headers(self, headers: &mut HeaderMap) {
        if self == Self::None {
            return;
        }
        headers.append(VARY, HeaderValue::from_static("Origin"));
        let (origin, preflight) = match self {
            Self::Allowed(origin) => (origin, false),
            Self::Preflight(Some(origin)) => (origin, true),
            Self::None | Self::Refused | Self::Preflight(None) => return,
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        if preflight {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
            headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        } else {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, ANSWER_HEADERS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Cors, CorsRequest};
    use ::http::{HeaderValue, Request};

    fn judge(origins: &[&str], method: &str, path: &str, origin: Option<&str>) -> CorsRequest {
        let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
        let mut request = Request::builder().method(method).uri(path);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        if method == "OPTIONS" {
            request = request.header("access-control-request-method", "PATCH");
        }
        Cors::new(&origins).judge(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn only_exact_origins_below_the_api_are_echoed() {
        let page = "https://a.example";
        let allowed = CorsRequest::Allowed(HeaderValue::from_static("https://a.example"));

        assert_eq!(judge(&[page], "GET", "/v1/api/x", Some(page)), allowed);
        assert_eq!(judge(&["*"], "GET", "/v1/api/x", Some(page)), allowed);
        assert_eq!(
            judge(&[page], "GET", "/v1/api/x", Some("https://a.example.org")),
            CorsRequest::Refused
        );
        assert_eq!(judge(&[page], "GET", "/v1/api/x", None), CorsRequest::Refused);
        assert_eq!(judge(&[page], "GET", "/v1/admin/services", Some(page)), CorsRequest::None);
        assert_eq!(judge(&[], "GET", "/v1/api/x", Some(page)), CorsRequest::None);
        assert_eq!(
            judge(&[page], "OPTIONS", "/v1/api/x", Some("https://b.example")),
            CorsRequest::Preflight(None)
        );
        assert!(matches!(
            judge(&[page], "OPTIONS", "/v1/api/x", Some(page)),
            CorsRequest::Preflight(Some(_))
        ));
    }
}
