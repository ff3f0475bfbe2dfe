//! The whole route table, how a request finds its row, and what is judged before a handler runs.
//!
//! Each row names who may call it, so that no handler can forget to ask. The order of judgement is that of the
//! contract: limits of HTTP, path, method, token, appID, rate, scope; then the handler judges body and existence.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::http::request::Parts;
use ::http::{Method, Request};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use tower::Service;

use crate::domain::audit::Origin;
use crate::domain::id::ContactId;
use crate::domain::tenancy::Scope;
use crate::http::Http;
use crate::http::auth::JudgedToken;
use crate::http::caller::Caller;
use crate::http::envelope::ApiError;
use crate::http::limits::{BATCH_BODY_BYTES_MAX, BODY_BYTES_MAX, read_body};
use crate::http::request_log::{self, Answered};

use super::{
    State, admin, admin_audit, admin_nodes, admin_token, contact_batch, contacts, deliveries, feed,
    health, subscription,
};

/// What a handler gives.
pub(super) type Answer = Result<Response, ApiError>;

type Judged = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;
type Endpoint = Box<dyn Fn(Arc<State>, Request<Body>) -> Judged + Send + Sync>;

/// How the log names a path that is not in the table.
const NO_PATH: &str = "none";

/// Place of `{appID}` among the parts of an app's path; the part before the first slash is empty.
const APP_ID_PART: usize = 4;
/// Place of `{id}` among the parts of a contact's path.
const CONTACT_ID_PART: usize = 7;

/// One row of the table.
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    endpoint: Endpoint,
}

/// A request whose caller may make it.
pub(super) struct Call {
    /// Method, target and headers.
    pub(super) head: Parts,
    /// Who calls, and from where: for the audit log.
    pub(super) origin: Origin,
    body: Body,
    judged: JudgedToken,
    caller: Option<Caller>,
    http: Arc<Http>,
}

impl Call {
    /// The part of the path at this place.
    pub(super) fn part(&self, place: usize) -> &str {
        part(&self.head, place)
    }

    /// The contact that the path names.
    pub(super) fn contact_id(&self) -> Result<ContactId, ApiError> {
        ContactId::parse(self.part(CONTACT_ID_PART)).ok_or_else(|| {
            ApiError::invalid("id: must be sc_ and 32 lower-case hexadecimal digits")
        })
    }

    /// The body.
    pub(super) async fn body(&mut self) -> Result<Bytes, ApiError> {
        self.read(BODY_BYTES_MAX).await
    }

    /// The body of a batch.
    pub(super) async fn batch_body(&mut self) -> Result<Bytes, ApiError> {
        self.read(BATCH_BODY_BYTES_MAX).await
    }

    /// The body, and the token once more behind it.
    async fn read(&mut self, bytes_max: usize) -> Result<Bytes, ApiError> {
        let service = self.caller.as_ref().map(Caller::service);
        let body = read_body(std::mem::take(&mut self.body), bytes_max, service).await?;
        self.judge_again().await?;
        Ok(body)
    }

    /// Judges the token once more, after something that may have taken long and before something is changed.
    pub(super) async fn judge_again(&mut self) -> Result<(), ApiError> {
        let app = self.caller.as_ref().map(Caller::app);
        self.http.judge_again(&self.head, self.judged, app).await
    }
}

fn part(head: &Parts, place: usize) -> &str {
    let path = head.uri.path();
    let mut slashes = path.bytes().enumerate().filter(|(_, byte)| *byte == b'/').map(|(at, _)| at);
    let start = match place {
        0 => Some(0),
        _ => slashes.nth(place - 1).map(|at| at + 1),
    };
    let end = slashes.next().unwrap_or(path.len());
    start.and_then(|start| path.get(start..end)).unwrap_or_default()
}

/// The JSON API with everything that stands around each request: one look-up and one boxed future.
#[derive(Clone)]
pub struct Api {
    state: Arc<State>,
    table: Arc<matchit::Router<OfPath>>,
}

/// The rows of one path.
struct OfPath {
    path: &'static str,
    rows: Vec<Route>,
}

impl Api {
    /// The whole table.
    ///
    /// # Panics
    ///
    /// Two of its paths match the same, which the tests rule out.
    #[must_use]
    pub fn new(state: Arc<State>) -> Self {
        let mut paths: Vec<OfPath> = Vec::new();
        for route in routes() {
            match paths.iter_mut().find(|of_path| of_path.path == route.path) {
                Some(of_path) => of_path.rows.push(route),
                None => paths.push(OfPath { path: route.path, rows: vec![route] }),
            }
        }
        let mut table = matchit::Router::new();
        for of_path in paths {
            table.insert(of_path.path, of_path).expect("no two paths of the table match the same");
        }
        Self { state, table: Arc::new(table) }
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Api")
    }
}

impl Service<Request<Body>> for Api {
    type Response = Response;
    type Error = Infallible;
    type Future = Judged;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Judged {
        let state = Arc::clone(&self.state);
        let Ok(found) = self.table.at(request.uri().path()) else {
            return refuse(state, NO_PATH, request, None);
        };
        let OfPath { path, rows } = found.value;
        // `HEAD` is answered as `GET`, without its body.
        let wanted = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
        match rows.iter().find(|route| route.method == *wanted) {
            Some(route) => (route.endpoint)(state, request),
            None => refuse(state, path, request, Some(allow(rows))),
        }
    }
}

/// Answers a request without a row: 405 with the methods that the path has, or 404.
fn refuse(
    state: Arc<State>,
    path: &'static str,
    request: Request<Body>,
    allow: Option<String>,
) -> Judged {
    Box::pin(async move {
        let judge = |head: Parts, _| {
            let (method, target) = (head.method.as_str(), head.uri.path());
            let error = match allow {
                Some(allow) => ApiError::unknown_method(method, target, allow),
                None => ApiError::unknown_path(method, target),
            };
            std::future::ready(Answered::from(Err(error)))
        };
        Ok(request_log::around(&state.http, path, request, judge).await)
    })
}

fn allow(of_path: &[Route]) -> String {
    let mut methods: Vec<&str> = Vec::new();
    for route in of_path {
        methods.push(route.method.as_str());
        if route.method == Method::GET {
            methods.push("HEAD");
        }
    }
    methods.join(", ")
}

/// A row for apps whose token has this scope.
fn app<F, A>(method: Method, path: &'static str, scope: Scope, handler: F) -> Route
where
    F: Fn(Arc<State>, Caller, Call) -> A + Copy + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let judge = move |state: Arc<State>, head: Parts, body: Body| async move {
        let (http, judged) = (Arc::clone(&state.http), state.http.auth.judging());
        match state.http.enter(&head, part(&head, APP_ID_PART), scope).await {
            Ok(caller) => {
                let (origin, by) = (caller.origin(), Some(caller.clone()));
                let call = Call { head, origin, body, judged, caller: by, http };
                let answer = handler(state, caller.clone(), call).await;
                Answered { answer, caller: Some(caller) }
            }
            Err((caller, error)) => Answered { answer: Err(error), caller },
        }
    };
    row(method, path, judge)
}

/// A row for the administrator.
fn admin<F, A>(method: Method, path: &'static str, handler: F) -> Route
where
    F: Fn(Arc<State>, Call) -> A + Copy + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let judge = move |state: Arc<State>, head: Parts, body: Body| async move {
        let (http, judged) = (Arc::clone(&state.http), state.http.auth.judging());
        Answered::from(match state.http.enter_admin(&head).await {
            Ok(origin) => {
                let call = Call { head, origin, body, judged, caller: None, http };
                handler(state, call).await
            }
            Err(error) => Err(error),
        })
    };
    row(method, path, judge)
}

/// A row for everyone.
fn open<F, A>(method: Method, path: &'static str, handler: F) -> Route
where
    F: Fn(Arc<State>) -> A + Copy + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    row(method, path, move |state, _, _| async move { Answered::from(handler(state).await) })
}

/// A row with what stands around each request, in one future.
fn row<J, A>(method: Method, path: &'static str, judge: J) -> Route
where
    J: Fn(Arc<State>, Parts, Body) -> A + Copy + Send + Sync + 'static,
    A: Future<Output = Answered> + Send + 'static,
{
    let endpoint: Endpoint = Box::new(move |state, request| {
        Box::pin(async move {
            let http = Arc::clone(&state.http);
            let next = move |head, body| judge(state, head, body);
            Ok(request_log::around(&http, path, request, next).await)
        })
    });
    Route { method, path, endpoint }
}

const SUBSCRIPTION: &str = "/v1/api/apps/{appID}/staff-contact-event-sub";
const VERIFY: &str = "/v1/api/apps/{appID}/staff-contact-event-sub/verify";
const DELIVERIES: &str = "/v1/api/apps/{appID}/staff-contact-event-sub/deliveries";
const DELIVERY: &str = "/v1/api/apps/{appID}/staff-contact-event-sub/deliveries/{sequence}";
const REDELIVER: &str =
    "/v1/api/apps/{appID}/staff-contact-event-sub/deliveries/{sequence}/redeliver";
const REPLAY: &str = "/v1/api/apps/{appID}/staff-contact-event-sub/replay";
const SECRET: &str = "/v1/api/apps/{appID}/staff-contact-event-sub/secret";
const SECRET_ROTATE: &str = "/v1/api/apps/{appID}/staff-contact-event-sub/secret/rotate";
const EVENTS: &str = "/v1/api/apps/{appID}/staff-contact-events";
const EVENT_HOOKS: &str = "/v1/api/apps/{appID}/event-hooks";
const CONTACT_LIST: &str = "/v1/api/apps/{appID}/contacts/staffcontact-list";
const CONTACTS: &str = "/v1/api/apps/{appID}/contacts/staff";
const CONTACT: &str = "/v1/api/apps/{appID}/contacts/staff/{id}";
const CONTACT_BATCH: &str = "/v1/api/apps/{appID}/contacts/staff-batch";
const SERVICES: &str = "/v1/admin/services";
const SERVICE: &str = "/v1/admin/services/{serviceId}";
const APPS: &str = "/v1/admin/services/{serviceId}/apps";
const APP: &str = "/v1/admin/services/{serviceId}/apps/{appID}";
const TOKEN_ROTATE: &str = "/v1/admin/services/{serviceId}/apps/{appID}/token/rotate";
const SERVICE_AUDIT: &str = "/v1/admin/services/{serviceId}/audit";
const AUDIT: &str = "/v1/admin/audit";
const NODES: &str = "/v1/admin/nodes";
const ADMIN_TOKEN: &str = "/v1/admin/token";
const ADMIN_TOKEN_ROTATE: &str = "/v1/admin/token/rotate";

/// The table.
pub(super) fn routes() -> Vec<Route> {
    use Method as M;
    use Scope as S;
    vec![
        app(M::PATCH, SUBSCRIPTION, S::Events, subscription::update_subscription),
        app(M::GET, SUBSCRIPTION, S::Events, subscription::get_subscription),
        app(M::POST, VERIFY, S::Events, subscription::verify_subscription),
        app(M::GET, DELIVERIES, S::Events, deliveries::list_deliveries),
        app(M::GET, DELIVERY, S::Events, deliveries::get_delivery),
        app(M::POST, REDELIVER, S::Events, deliveries::redeliver),
        app(M::POST, REPLAY, S::Events, deliveries::replay),
        app(M::GET, SECRET, S::Events, subscription::get_secret),
        app(M::POST, SECRET_ROTATE, S::Events, subscription::rotate_secret),
        app(M::GET, EVENTS, S::Events, feed::list_events),
        app(M::GET, EVENT_HOOKS, S::Events, subscription::list_event_hooks),
        app(M::GET, CONTACT_LIST, S::DirectoryRead, contacts::list_contacts),
        app(M::POST, CONTACTS, S::DirectoryWrite, contacts::create_contact),
        app(M::GET, CONTACT, S::DirectoryRead, contacts::get_contact),
        app(M::PATCH, CONTACT, S::DirectoryWrite, contacts::update_contact),
        app(M::DELETE, CONTACT, S::DirectoryWrite, contacts::delete_contact),
        app(M::POST, CONTACT_BATCH, S::DirectoryWrite, contact_batch::apply_contact_batch),
        admin(M::POST, SERVICES, admin::create_service),
        admin(M::GET, SERVICES, admin::list_services),
        admin(M::DELETE, SERVICE, admin::delete_service),
        admin(M::POST, APPS, admin::create_app),
        admin(M::GET, APPS, admin::list_apps),
        admin(M::DELETE, APP, admin::delete_app),
        admin(M::POST, TOKEN_ROTATE, admin::rotate_token),
        admin(M::GET, SERVICE_AUDIT, admin_audit::list_audit_of_service),
        admin(M::GET, AUDIT, admin_audit::list_audit_of_server),
        admin(M::GET, NODES, admin_nodes::list_nodes),
        admin(M::GET, ADMIN_TOKEN, admin_token::list_admin_tokens),
        admin(M::POST, ADMIN_TOKEN_ROTATE, admin_token::rotate_admin_token),
        open(M::GET, "/livez", health::get_livez),
        open(M::GET, "/readyz", health::get_readyz),
    ]
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
