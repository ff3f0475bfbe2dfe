//! Single deliveries of an app's subscription, redelivery and replay.

use std::sync::Arc;

use ::http::StatusCode;
use serde::Serialize;
use serde_json::Value;

use crate::domain::clock::Timestamp;
use crate::http::caller::Caller;
use crate::http::envelope::{ApiError, success};
use crate::http::json::JsonObject;
use crate::store::rows::{DeliveryQuery, DeliveryRow, DeliveryState, FailedAttempt, ReplayFrom};

use super::State;
use super::query::Query;
use super::router::{Answer, Call};

/// Most deliveries in one page: each may bring the starts of twelve answers, so this is about a megabyte.
const DELIVERIES_LIMIT_MAX: u32 = 100;
/// Place of `{sequence}` among the parts of a delivery's path.
const SEQUENCE_PART: usize = 7;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FailedBody<'a> {
    attempt: u32,
    time: String,
    status: Option<u16>,
    step: &'a str,
    answer: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeliveryBody<'a> {
    sequence: u64,
    id: String,
    contact: String,
    status: &'a str,
    full_name: &'a str,
    time: String,
    state: &'a str,
    attempts: u32,
    next_attempt_at: Option<String>,
    exhausted_at: Option<String>,
    failed_attempts: Vec<FailedBody<'a>>,
}

const fn state_name(state: DeliveryState) -> &'static str {
    match state {
        DeliveryState::Pending => "pending",
        DeliveryState::Held => "held",
        DeliveryState::Exhausted => "exhausted",
        DeliveryState::Delivered => "delivered",
        DeliveryState::NotOwed => "notOwed",
    }
}

fn failed_body(failed: &FailedAttempt) -> FailedBody<'_> {
    FailedBody {
        attempt: failed.attempt,
        time: failed.at.to_string(),
        status: failed.status,
        step: &failed.step,
        answer: String::from_utf8_lossy(&failed.answer).into_owned(),
    }
}

fn delivery_body(row: &DeliveryRow) -> DeliveryBody<'_> {
    let at = |state| row.at.filter(|_| row.state == state).map(|at: Timestamp| at.to_string());
    DeliveryBody {
        sequence: row.event.sequence,
        id: row.event.id.to_string(),
        contact: row.event.contact.to_string(),
        status: row.event.kind.status(),
        full_name: &row.event.full_name,
        time: row.event.at.to_string(),
        state: state_name(row.state),
        attempts: row.attempts,
        next_attempt_at: at(DeliveryState::Held),
        exhausted_at: at(DeliveryState::Exhausted),
        failed_attempts: row.failed.iter().map(failed_body).collect(),
    }
}

fn to_json(body: &impl Serialize) -> Result<String, ApiError> {
    serde_json::to_string(body)
        .map_err(|error| ApiError::internal(format!("delivery not written: {error}")))
}

pub(super) async fn list_deliveries(state: Arc<State>, caller: Caller, call: Call) -> Answer {
    let query = delivery_query(call.head.uri.query())?;
    let subscriptions = &state.subscriptions;
    let rows = subscriptions.list_deliveries(caller.service(), caller.app(), query).await?;
    let full = u32::try_from(rows.len()).is_ok_and(|len| len == query.limit);
    let next = rows.last().filter(|_| full).map(|row| row.event.sequence);
    let items: Vec<DeliveryBody<'_>> = rows.iter().map(delivery_body).collect();
    let items = to_json(&items)?;
    let next = to_json(&next)?;
    Ok(success(StatusCode::OK, &format!(r#"{{"items":{items},"next":{next}}}"#)))
}

pub(super) fn delivery_query(query: Option<&str>) -> Result<DeliveryQuery, ApiError> {
    let query = Query::parse(query);
    let state = match query.get("state")? {
        None => None,
        Some("held") => Some(DeliveryState::Held),
        Some("exhausted") => Some(DeliveryState::Exhausted),
        Some(_) => return Err(ApiError::invalid("state: must be held or exhausted")),
    };
    let after = query.number("after")?.unwrap_or(0).min(i64::MAX.unsigned_abs());
    let limit = query.limit_within(DELIVERIES_LIMIT_MAX)?;
    Ok(DeliveryQuery { state, after, limit })
}

fn sequence_of(call: &Call) -> Result<u64, ApiError> {
    parse_sequence(call.part(SEQUENCE_PART))
}

pub(super) fn parse_sequence(text: &str) -> Result<u64, ApiError> {
    let number = text.parse().ok().filter(|number: &u64| {
        // One spelling for one number: no signs, no leading zeros.
        *number > 0 && *number <= i64::MAX.unsigned_abs() && number.to_string() == text
    });
    number.ok_or_else(|| ApiError::invalid("sequence: must be a whole number from 1"))
}

pub(super) async fn get_delivery(state: Arc<State>, caller: Caller, call: Call) -> Answer {
    let sequence = sequence_of(&call)?;
    let subscriptions = &state.subscriptions;
    let row = subscriptions.find_delivery(caller.service(), caller.app(), sequence).await?;
    Ok(success(StatusCode::OK, &to_json(&delivery_body(&row))?))
}

pub(super) async fn redeliver(state: Arc<State>, caller: Caller, call: Call) -> Answer {
    let sequence = sequence_of(&call)?;
    let (origin, service, app) = (call.origin, caller.service(), caller.app());
    let row = state.subscriptions.redeliver(origin, service, app, sequence).await?;
    Ok(success(StatusCode::OK, &to_json(&delivery_body(&row))?))
}

pub(super) async fn replay(state: Arc<State>, caller: Caller, mut call: Call) -> Answer {
    let from = replay_from(JsonObject::parse(&call.body().await?)?)?;
    let (origin, service, app) = (call.origin, caller.service(), caller.app());
    let replayed = state.subscriptions.replay(origin, service, app, from).await?;
    let body = format!(r#"{{"after":{},"newest":{}}}"#, replayed.after, replayed.newest);
    Ok(success(StatusCode::OK, &body))
}

pub(super) fn replay_from(mut body: JsonObject) -> Result<ReplayFrom, ApiError> {
    let (since, after) = (body.take("since"), body.take("after"));
    body.refuse_unknown()?;
    match (since, after) {
        (Some(Value::String(text)), None) => {
            let time = Timestamp::parse(&text).ok_or_else(|| {
                ApiError::invalid("since: must be a time such as 2026-11-23T12:00:00Z")
            })?;
            Ok(ReplayFrom::Since(time))
        }
        (None, Some(after)) => {
            let after = after.as_u64().filter(|after| *after <= i64::MAX.unsigned_abs());
            let after =
                after.ok_or_else(|| ApiError::invalid("after: must be a whole number from 0"))?;
            Ok(ReplayFrom::After(after))
        }
        (Some(_), None) => Err(ApiError::invalid("since: must be a string")),
        _ => Err(ApiError::invalid("exactly one of since and after is required")),
    }
}

#[cfg(test)]
mod tests {
    use super::{JsonObject, ReplayFrom, delivery_query, replay_from};
    use crate::domain::clock::Timestamp;

    fn replayed(body: &str) -> Result<ReplayFrom, String> {
        replay_from(JsonObject::parse(body.as_bytes()).unwrap())
            .map_err(|error| error.message.into_owned())
    }

    #[test]
    fn a_replay_names_exactly_one_point() {
        let time = Timestamp::from_millis(1_000);
        assert_eq!(replayed(r#"{"after":0}"#), Ok(ReplayFrom::After(0)));
        assert_eq!(replayed(r#"{"since":"1970-01-01T00:00:01Z"}"#), Ok(ReplayFrom::Since(time)));
        for (body, message) in [
            ("{}", "exactly one of since and after is required"),
            (
                r#"{"after":1,"since":"1970-01-01T00:00:01Z"}"#,
                "exactly one of since and after is required",
            ),
            (r#"{"after":-1}"#, "after: must be a whole number from 0"),
            (r#"{"after":1.5}"#, "after: must be a whole number from 0"),
            (r#"{"after":"1"}"#, "after: must be a whole number from 0"),
            (r#"{"since":5}"#, "since: must be a string"),
            (r#"{"since":"today"}"#, "since: must be a time such as 2026-11-23T12:00:00Z"),
            (r#"{"after":1,"x":2}"#, "x: is not a known field"),
        ] {
            assert_eq!(replayed(body), Err(message.to_owned()), "{body}");
        }
    }

    #[test]
    fn a_list_of_deliveries_is_asked_for_strictly() {
        let judged =
            |query| delivery_query(Some(query)).map_err(|error| error.message.into_owned());
        let query = judged("state=held&after=7&limit=100").unwrap();
        assert_eq!((query.after, query.limit), (7, 100));
        for (query, message) in [
            ("state=delivered", "state: must be held or exhausted"),
            ("limit=101", "exceed maximum limit 100"),
            ("limit=0", "limit: must be from 1 to 100"),
            ("after=-1", "negative after"),
        ] {
            assert_eq!(judged(query), Err(message.to_owned()), "{query}");
        }
    }
}
