//! Many changes of the roll in one request: each item has its own result, in order.

use std::sync::Arc;

use ::http::StatusCode;
use serde_json::Value;

use crate::directory::batch::BATCH_ITEMS_MAX;
use crate::domain::contact::ContactPatch;
use crate::domain::id::ContactId;
use crate::http::caller::Caller;
use crate::http::envelope::{ApiError, success, success_json};
use crate::http::json::JsonObject;
use crate::http::request_log::next_request_id;
use crate::store;
use crate::store::command::{ContactAnswer, ContactChange, IfMatch};

use super::State;
use super::contacts::{deleted_json, unexpected_answer};
use super::router::{Answer, Call};

pub(super) async fn apply_contact_batch(
    state: Arc<State>,
    caller: Caller,
    mut call: Call,
) -> Answer {
    let mut body = JsonObject::parse(&call.batch_body().await?)?;
    let items = body.take_array("items")?;
    body.refuse_unknown()?;
    if items.is_empty() || items.len() > BATCH_ITEMS_MAX {
        return Err(ApiError::invalid(format!(
            "items: must have 1 to {BATCH_ITEMS_MAX} entries, has {}",
            items.len()
        )));
    }
    // Items that cannot be read have their answer already; the others keep their order.
    let mut changes = Vec::with_capacity(items.len());
    let unread: Vec<Option<ApiError>> = items
        .into_iter()
        .map(|item| parse_item(item).map(|change| changes.push(change)).err())
        .collect();
    let answers = state.directory.change_contacts(call.origin, caller.service(), changes).await?;
    Ok(success(StatusCode::OK, &write_items(unread, answers)))
}

pub(super) fn parse_item(item: Value) -> Result<ContactChange, ApiError> {
    let mut item = JsonObject::from_value(item)?;
    let op = item.take_string("op")?;
    let change = match op.as_str() {
        "create" => ContactChange::Create(take_patch(&mut item)?),
        "edit" => ContactChange::Edit {
            id: take_id(&mut item)?,
            patch: take_patch(&mut item)?,
            if_match: IfMatch::Any,
        },
        "delete" => ContactChange::Delete { id: take_id(&mut item)?, if_match: IfMatch::Any },
        _ => return Err(ApiError::invalid("op: must be create, edit or delete")),
    };
    item.refuse_unknown()?;
    Ok(change)
}

fn take_id(item: &mut JsonObject) -> Result<ContactId, ApiError> {
    ContactId::parse(&item.take_string("id")?)
        .ok_or_else(|| ApiError::invalid("id: must be sc_ and 32 lower-case hexadecimal digits"))
}

fn take_patch(item: &mut JsonObject) -> Result<ContactPatch, ApiError> {
    match item.take_required("contact")? {
        Value::Object(contact) => Ok(ContactPatch::from_json(contact)?),
        _ => Err(ApiError::invalid("contact: must be a JSON object")),
    }
}

/// Puts the answers of the store between those of the items that never came there.
fn write_items(
    unread: Vec<Option<ApiError>>,
    answers: Vec<Result<ContactAnswer, store::Error>>,
) -> String {
    let mut answers = answers.into_iter();
    let mut text = String::from(r#"{"items":["#);
    for (at, error) in unread.into_iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        let written = match error {
            Some(error) => Err(error),
            None => match answers.next() {
                Some(answer) => answer.map_err(ApiError::from).and_then(write_answer),
                None => Err(unexpected_answer()),
            },
        };
        text.push_str(&written.unwrap_or_else(|error| write_error(&error)));
    }
    text.push_str("]}");
    text
}

fn write_answer(answer: ContactAnswer) -> Result<String, ApiError> {
    match answer {
        ContactAnswer::Created(contact) => {
            Ok(success_json(StatusCode::CREATED, &contact.to_json()))
        }
        ContactAnswer::Edited(contact) => Ok(success_json(StatusCode::OK, &contact.to_json())),
        ContactAnswer::Deleted(id) => Ok(success_json(StatusCode::OK, &deleted_json(id))),
        ContactAnswer::Repeated(_) => Err(unexpected_answer()),
    }
}

/// An item's error; one of ours gets an id of its own, under which the log has the cause.
fn write_error(error: &ApiError) -> String {
    let Some(cause) = &error.cause else {
        return error.to_json("");
    };
    let id = next_request_id();
    tracing::error!(request.id = id, cause, "batch item failed");
    error.to_json(&id)
}

#[cfg(test)]
mod tests {
    use super::{ApiError, parse_item, write_items};
    use crate::domain::id::ContactId;
    use crate::store;
    use crate::store::command::{ContactAnswer, ContactChange};
    use serde_json::json;

    #[test]
    fn items_are_read_strictly() {
        let id = ContactId::from_bytes([1; 16]).to_string();
        let message = |item| parse_item(item).unwrap_err().message;

        assert!(matches!(
            parse_item(json!({"op": "create", "contact": {"firstName": "Ana"}})),
            Ok(ContactChange::Create(_))
        ));
        assert!(parse_item(json!({"op": "delete", "id": id})).is_ok());
        assert_eq!(message(json!(1)), "a JSON object is required");
        assert_eq!(message(json!({})), "op: is required");
        assert_eq!(message(json!({"op": "copy"})), "op: must be create, edit or delete");
        assert_eq!(message(json!({"op": "edit", "id": id})), "contact: is required");
        assert_eq!(message(json!({"op": "delete", "id": id, "x": 1})), "x: is not a known field");
        assert_eq!(
            message(json!({"op": "delete", "id": "7"})),
            "id: must be sc_ and 32 lower-case hexadecimal digits"
        );
    }

    #[test]
    fn every_item_has_its_own_answer_in_its_own_place() {
        let id = ContactId::from_bytes([1; 16]);

        let text = write_items(
            vec![None, Some(ApiError::invalid("op: is required")), None],
            vec![Err(store::Error::NotFound), Ok(ContactAnswer::Deleted(id))],
        );

        assert_eq!(
            text,
            concat!(
                r#"{"items":[{"code":6451011,"message":"No records found"},"#,
                r#"{"code":6451000,"message":"op: is required"},"#,
                r#"{"code":200,"result":{"id":"sc_01010101010101010101010101010101"}}]}"#
            )
        );
    }
}
