//! The feed: the event log by number, with the bodies that receivers get.

use std::sync::Arc;

use ::http::StatusCode;

use crate::domain::event::Event;
use crate::feed::{FeedError, FeedPage};
use crate::http::caller::Caller;
use crate::http::envelope::{ApiError, success};

use super::State;
use super::query::Query;
use super::router::{Answer, Call};

impl From<FeedError> for ApiError {
    fn from(error: FeedError) -> Self {
        match error {
            // Not an empty list: whoever gets one asks again at once, and would do so in a circle.
            FeedError::TooManyWaiting => Self::unavailable(error.to_string()),
            FeedError::Store(error) => error.into(),
        }
    }
}

pub(super) async fn list_events(state: Arc<State>, caller: Caller, call: Call) -> Answer {
    let query = Query::parse(call.head.uri.query()).feed()?;
    let listed = state.feed.list(caller.service(), query).await;
    if !query.wait.is_zero() {
        // The token may have ended during the wait; then nothing that came since is for its owner.
        state.http.auth.find_app(&call.head.headers).await?;
    }
    Ok(success(StatusCode::OK, &page_json(&listed?)))
}

fn page_json(page: &FeedPage) -> String {
    let items: Vec<String> = page.items.iter().map(item_json).collect();
    let gap = serde_json::json!(page.gap);
    format!(
        r#"{{"items":[{}],"next":{},"newest":{},"gap":{gap}}}"#,
        items.join(","),
        page.next,
        page.newest
    )
}

fn item_json(event: &Event) -> String {
    let notification = event.notification();
    format!(
        r#"{{"sequence":{},"id":"{}","time":"{}","notification":{}}}"#,
        event.sequence,
        event.id,
        event.at,
        String::from_utf8_lossy(&notification)
    )
}

#[cfg(test)]
mod tests {
    use super::page_json;
    use crate::domain::clock::Timestamp;
    use crate::domain::event::{Event, EventKind, Gap};
    use crate::domain::id::{ContactId, EventId, ServiceId};
    use crate::feed::FeedPage;

    #[test]
    fn page_has_the_notification_as_it_is_sent_and_names_a_gap() {
        let event = Event {
            service: ServiceId::from_bytes([1; 16]),
            sequence: 7,
            id: EventId::from_bytes([2; 16]),
            contact: ContactId::from_bytes([3; 16]),
            kind: EventKind::Create,
            contact_version: 1,
            full_name: "Ana \"Q\" Ng".to_owned(),
            at: Timestamp::from_millis(1_763_900_000_000),
        };
        let notification = String::from_utf8(event.notification()).unwrap();
        let gap = Some(Gap { from: 3, to: 6 });

        let text = page_json(&FeedPage { items: vec![event], next: 7, newest: 9, gap });
        let empty = page_json(&FeedPage { items: Vec::new(), next: 9, newest: 9, gap: None });

        let head = r#"{"items":[{"sequence":7,"id":"evt_02020202020202020202020202020202","#;
        assert_eq!(
            text,
            format!(
                r#"{head}"time":"2025-11-23T12:13:20.000Z","notification":{notification}}}],"next":7,"newest":9,"gap":{{"from":3,"to":6}}}}"#
            )
        );
        assert_eq!(empty, r#"{"items":[],"next":9,"newest":9,"gap":null}"#);
    }
}
