//! Staff contacts: list, create, read, edit, delete.
//!
//! Creating is the hot path: the contact's JSON is written once and put into the envelope as it is.

use std::sync::Arc;

use ::http::header::ETAG;
use ::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;

use crate::domain::contact::{ContactPatch, StaffContact};
use crate::domain::id::ContactId;
use crate::http::caller::Caller;
use crate::http::envelope::{ApiError, success};
use crate::http::json::JsonObject;
use crate::store;
use crate::store::command::ContactAnswer;

use super::State;
use super::conditions::{etag, parse_idempotency_key, parse_if_match};
use super::query::Query;
use super::router::{Answer, Call};

/// The head of the service's log at the instant of the answer.
const ROLLCALL_SEQUENCE: HeaderName = HeaderName::from_static("rollcall-sequence");

pub(super) async fn list_contacts(state: Arc<State>, caller: Caller, call: Call) -> Answer {
    let query = Query::parse(call.head.uri.query()).contacts()?;
    let list = state.read.list_contacts(caller.service(), query).await?;
    let mut result = format!(r#"{{"total":{},"items":["#, list.total);
    for (at, contact) in list.items.iter().enumerate() {
        if at > 0 {
            result.push(',');
        }
        result.push_str(&contact.to_json());
    }
    result.push_str("]}");
    let mut response = success(StatusCode::OK, &result);
    response.headers_mut().insert(ROLLCALL_SEQUENCE, HeaderValue::from(list.sequence));
    Ok(response)
}

pub(super) async fn create_contact(state: Arc<State>, caller: Caller, mut call: Call) -> Answer {
    let body = call.body().await?;
    let key = parse_idempotency_key(&call.head, caller.app(), &body)?;
    let wish = ContactPatch::from_json(JsonObject::parse(&body)?.into_map())?;
    let answer = state.directory.create_contact(call.origin, caller.service(), wish, key).await?;
    Ok(match answer {
        ContactAnswer::Repeated(json) => repeated(&json),
        ContactAnswer::Created(contact) | ContactAnswer::Edited(contact) => {
            with_tag(&contact, StatusCode::CREATED)
        }
        ContactAnswer::Deleted(_) => return Err(unexpected_answer()),
    })
}

pub(super) async fn get_contact(state: Arc<State>, caller: Caller, call: Call) -> Answer {
    let found = state.read.find_contact(caller.service(), call.contact_id()?).await?;
    let contact = found.ok_or(store::Error::NotFound)?;
    Ok(with_tag(&contact, StatusCode::OK))
}

pub(super) async fn update_contact(state: Arc<State>, caller: Caller, mut call: Call) -> Answer {
    let id = call.contact_id()?;
    let if_match = parse_if_match(&call.head.headers)?;
    let body = JsonObject::parse(&call.body().await?)?;
    let patch = ContactPatch::from_json(body.into_map())?;
    let (origin, service) = (call.origin, caller.service());
    match state.directory.edit_contact(origin, service, id, patch, if_match).await? {
        ContactAnswer::Edited(contact) | ContactAnswer::Created(contact) => {
            Ok(with_tag(&contact, StatusCode::OK))
        }
        ContactAnswer::Deleted(_) | ContactAnswer::Repeated(_) => Err(unexpected_answer()),
    }
}

pub(super) async fn delete_contact(state: Arc<State>, caller: Caller, call: Call) -> Answer {
    let id = call.contact_id()?;
    let if_match = parse_if_match(&call.head.headers)?;
    state.directory.delete_contact(call.origin, caller.service(), id, if_match).await?;
    Ok(success(StatusCode::OK, &deleted_json(id)))
}

/// What a delete is answered with.
pub(super) fn deleted_json(id: ContactId) -> String {
    format!(r#"{{"id":"{id}"}}"#)
}

/// An answer of the store that does not belong to the command: a fault of ours.
pub(super) fn unexpected_answer() -> ApiError {
    ApiError::internal("the store answered another command")
}

fn with_tag(contact: &StaffContact, status: StatusCode) -> Response {
    let mut response = success(status, &contact.to_json());
    response.headers_mut().insert(ETAG, etag(contact.version));
    response
}

/// The first answer again, byte for byte. A created contact has version 1.
fn repeated(json: &str) -> Response {
    let mut response = success(StatusCode::CREATED, json);
    response.headers_mut().insert(ETAG, etag(1));
    response
}
