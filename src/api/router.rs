//! The whole route table, and what is judged before a handler runs.
//!
//! Each row names who may call it, so that no handler can forget to ask. The order of judgement is that of the
//! contract: limits of HTTP, path, method, token, appID, rate, scope; then the handler judges body and existence.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use ::http::Method;
use ::http::request::Parts;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State as Extract};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use crate::domain::id::ContactId;
use crate::domain::tenancy::Scope;
use crate::http::caller::Caller;
use crate::http::envelope::ApiError;
use crate::http::limits::{BATCH_BODY_BYTES_MAX, BODY_BYTES_MAX, read_body};
use crate::http::request_log;

use super::{State, admin, contact_batch, contacts, deliveries, feed, health, subscription};

/// What a handler gives.
pub(super) type Answer = Result<Response, ApiError>;

type Judged = Pin<Box<dyn Future<Output = Response> + Send>>;
type Endpoint = Arc<dyn Fn(Arc<State>, Request) -> Judged + Send + Sync>;

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
#[derive(Debug)]
pub(super) struct Call {
    /// Method, target and headers.
    pub(super) head: Parts,
    body: Body,
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
        read_body(std::mem::take(&mut self.body), BODY_BYTES_MAX).await
    }

    /// The body of a batch.
    pub(super) async fn batch_body(&mut self) -> Result<Bytes, ApiError> {
        read_body(std::mem::take(&mut self.body), BATCH_BODY_BYTES_MAX).await
    }
}

fn part(head: &Parts, place: usize) -> &str {
    head.uri.path().split('/').nth(place).unwrap_or_default()
}

/// The router of the JSON API, with everything that stands around each request.
pub fn router(state: Arc<State>) -> Router {
    let http = Arc::clone(&state.http);
    let mut paths: Vec<(&'static str, Vec<Route>)> = Vec::new();
    for route in routes() {
        match paths.iter_mut().find(|(path, _)| *path == route.path) {
            Some((_, of_path)) => of_path.push(route),
            None => paths.push((route.path, vec![route])),
        }
    }
    let mut router = Router::new();
    for (path, of_path) in paths {
        let of_path: Arc<[Route]> = of_path.into();
        let dispatch = move |Extract(state): Extract<Arc<State>>, request: Request| {
            dispatch(&of_path, state, request)
        };
        router = router.route(path, axum::routing::any(dispatch));
    }
    router
        .fallback(unknown_path)
        .layer(axum::middleware::from_fn_with_state(http, request_log::around))
        .with_state(state)
}

async fn unknown_path(request: Request) -> Response {
    ApiError::unknown_path(request.method().as_str(), request.uri().path()).into_response()
}

/// Finds the row of the method; `HEAD` is answered as `GET`, whose body the listener leaves out.
fn dispatch(of_path: &[Route], state: Arc<State>, request: Request) -> Judged {
    let wanted = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
    if let Some(route) = of_path.iter().find(|route| route.method == *wanted) {
        return (route.endpoint)(state, request);
    }
    let error =
        ApiError::unknown_method(request.method().as_str(), request.uri().path(), allow(of_path));
    Box::pin(std::future::ready(error.into_response()))
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
    let endpoint: Endpoint = Arc::new(move |state, request| {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let entered = state.http.enter(&head, part(&head, APP_ID_PART), scope).await;
            let (caller, answer) = match entered {
                Ok(caller) => {
                    let call = Call { head, body };
                    (Some(caller.clone()), handler(state, caller, call).await)
                }
                Err((caller, error)) => (caller, Err(error)),
            };
            let mut response = answer.into_response();
            if let Some(caller) = caller {
                response.extensions_mut().insert(caller);
            }
            response
        })
    });
    Route { method, path, endpoint }
}

/// A row for the administrator.
fn admin<F, A>(method: Method, path: &'static str, handler: F) -> Route
where
    F: Fn(Arc<State>, Call) -> A + Copy + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let endpoint: Endpoint = Arc::new(move |state, request| {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            match state.http.enter_admin(&head).await {
                Ok(()) => handler(state, Call { head, body }).await.into_response(),
                Err(error) => error.into_response(),
            }
        })
    });
    Route { method, path, endpoint }
}

/// A row for everyone.
fn open<F, A>(method: Method, path: &'static str, handler: F) -> Route
where
    F: Fn(Arc<State>) -> A + Copy + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let endpoint: Endpoint =
        Arc::new(move |state, _| Box::pin(async move { handler(state).await.into_response() }));
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
        open(M::GET, "/livez", health::get_livez),
        open(M::GET, "/readyz", health::get_readyz),
    ]
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
