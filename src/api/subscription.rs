//! The subscription of an app: subscribe, unsubscribe, verify, where it stands, its secret, and the list of one.

use std::sync::Arc;

use ::http::StatusCode;
use serde::Serialize;

use crate::domain::clock::Timestamp;
use crate::domain::event::Gap;
use crate::domain::subscription::{Enabled, Subscription};
use crate::http::caller::Caller;
use crate::http::envelope::{ApiError, json_text, success};
use crate::http::json::JsonObject;
use crate::store::rows::SubscriptionStatus;
use crate::subscriptions::status::State as SubscriptionState;
use crate::subscriptions::subscribe::SubscribeError;

use super::State;
use super::router::{Answer, Call};

/// Names this kind of subscription in lists; the last part of its path.
const HOOK_TYPE: &str = "staff-contact-event-sub";

impl From<SubscribeError> for ApiError {
    fn from(error: SubscribeError) -> Self {
        match error {
            SubscribeError::Refused(message) => Self::invalid(message),
            SubscribeError::TooMany { retry_after } => {
                let whole = u64::from(retry_after.subsec_nanos() > 0);
                Self::too_many_requests(retry_after.as_secs() + whole)
            }
            SubscribeError::Store(error) => error.into(),
        }
    }
}

pub(super) async fn update_subscription(
    state: Arc<State>,
    caller: Caller,
    mut call: Call,
) -> Answer {
    // Before the body is read: the order of arrival decides, not the order of sending bodies.
    let ticket = state.subscriptions.take_ticket().await?;
    // Further fields are ignored, as the reference's server would.
    let mut body = JsonObject::parse(&call.body().await?)?;
    let enabled = body.take_bool("enabled")?;
    let url = body.take_string("url")?;
    let result = format!(r#"{{"enabled":{enabled},"url":{}}}"#, json_text(&url));
    let (origin, service, app) = (call.origin, caller.service(), caller.app());
    if enabled {
        // On the heap: the future of a challenge is large, and few requests have one.
        let consent = Box::pin(state.subscriptions.ask_consent(service, app, url)).await?;
        // A challenge takes up to 10 s, and the token may have ended meanwhile.
        call.judge_again().await?;
        state.subscriptions.subscribe(origin, ticket, consent).await?;
    } else {
        state.subscriptions.unsubscribe(origin, service, app, ticket, url).await?;
    }
    Ok(success(StatusCode::OK, &result))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusBody<'a> {
    enabled: bool,
    url: &'a str,
    state: &'static str,
    reason: Option<&'a str>,
    verified_at: Option<String>,
    updated_at: Option<String>,
    cursor: u64,
    newest: u64,
    held: u64,
    exhausted: u64,
    oldest_undelivered: Option<String>,
    gap: Option<Gap>,
}

pub(super) async fn get_subscription(state: Arc<State>, caller: Caller, _call: Call) -> Answer {
    let (status, word) = state.subscriptions.status(caller.service(), caller.app()).await?;
    let body = status_body(&status, word);
    let text = serde_json::to_string(&body)
        .map_err(|error| ApiError::internal(format!("status not written: {error}")))?;
    Ok(success(StatusCode::OK, &text))
}

fn status_body(status: &SubscriptionStatus, state: SubscriptionState) -> StatusBody<'_> {
    let stored = status.subscription.as_ref();
    let text = |time: Timestamp| time.to_string();
    StatusBody {
        enabled: is_enabled(stored),
        url: stored.map_or("", |subscription| &subscription.url),
        state: state.name(),
        reason: stored.map(|s| s.reason.as_str()).filter(|reason| !reason.is_empty()),
        verified_at: stored.and_then(|subscription| subscription.verified_at).map(text),
        updated_at: stored.map(|subscription| subscription.updated_at).map(text),
        cursor: status.cursor,
        newest: status.newest,
        held: status.held,
        exhausted: status.exhausted,
        oldest_undelivered: status.oldest_undelivered.map(text),
        gap: status.gap,
    }
}

fn is_enabled(stored: Option<&Subscription>) -> bool {
    stored.is_some_and(|subscription| subscription.enabled == Enabled::Yes)
}

pub(super) async fn verify_subscription(state: Arc<State>, caller: Caller, _call: Call) -> Answer {
    // On the heap: the future of a challenge is large, and few requests have one.
    let verified = Box::pin(state.subscriptions.verify(caller.service(), caller.app())).await?;
    Ok(success(StatusCode::OK, &format!(r#"{{"verified":true,"url":{}}}"#, json_text(&verified))))
}

pub(super) async fn get_secret(state: Arc<State>, caller: Caller, _call: Call) -> Answer {
    let secret = state.subscriptions.secret(caller.service(), caller.app()).await?;
    Ok(success(StatusCode::OK, &format!(r#"{{"secret":{}}}"#, json_text(&secret))))
}

pub(super) async fn rotate_secret(state: Arc<State>, caller: Caller, call: Call) -> Answer {
    let subscriptions = &state.subscriptions;
    let secret = subscriptions.rotate_secret(call.origin, caller.service(), caller.app()).await?;
    Ok(success(StatusCode::OK, &format!(r#"{{"secret":{}}}"#, json_text(&secret))))
}

pub(super) async fn list_event_hooks(state: Arc<State>, caller: Caller, _call: Call) -> Answer {
    let hook = state.subscriptions.find_hook(caller.service(), caller.app()).await?;
    let items = hook.map_or_else(String::new, |subscription| {
        format!(
            r#"{{"type":"{HOOK_TYPE}","enabled":{},"url":{}}}"#,
            is_enabled(Some(&subscription)),
            json_text(&subscription.url)
        )
    });
    Ok(success(StatusCode::OK, &format!(r#"{{"items":[{items}]}}"#)))
}

#[cfg(test)]
mod tests {
    use super::{SubscriptionState, SubscriptionStatus, status_body};

    #[test]
    fn an_app_that_never_subscribed_has_every_field() {
        let status = SubscriptionStatus::default();

        let body = status_body(&status, SubscriptionState::None);

        assert_eq!(
            serde_json::to_string(&body).unwrap(),
            concat!(
                r#"{"enabled":false,"url":"","state":"none","reason":null,"verifiedAt":null,"#,
                r#""updatedAt":null,"cursor":0,"newest":0,"held":0,"exhausted":0,"#,
                r#""oldestUndelivered":null,"gap":null}"#
            )
        );
    }
}
