//! What becomes of a subscription when its app wishes something, and what the audit log calls it.

use super::command::SubscriptionWish;
use crate::domain::audit::Action;
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::subscription::{Enabled, Subscription};

/// The subscription as it is to be stored.
pub(super) fn wished(
    now: Timestamp,
    service: ServiceId,
    app: AppId,
    before: Option<&Subscription>,
    wish: &SubscriptionWish,
) -> Subscription {
    let generation = before.map_or(0, |b| b.generation) + 1;
    let (enabled, url, verified_at) = match wish {
        SubscriptionWish::Enable { url, verified_at } => (Enabled::Yes, url, Some(*verified_at)),
        SubscriptionWish::Disable { url } => {
            let known = before.filter(|b| !b.url.is_empty());
            let verified_at = known.and_then(|b| b.verified_at);
            (Enabled::No, known.map_or(url, |b| &b.url), verified_at)
        }
    };
    let (url, reason) = (url.clone(), String::new());
    Subscription { service, app, url, enabled, reason, generation, verified_at, updated_at: now }
}

/// Whether progress is kept: by an app that is subscribed, and by one that Rollcall disabled.
pub(super) fn keeps_progress(before: Option<&Subscription>, wish: &SubscriptionWish) -> bool {
    matches!(
        (wish, before.map(|before| before.enabled)),
        (SubscriptionWish::Enable { .. }, Some(Enabled::Yes | Enabled::DisabledBySystem))
    )
}

/// What the audit log calls it; `None` for an app that unsubscribes once more.
pub(super) fn action_of(before: Option<&Subscription>, after: &Subscription) -> Option<Action> {
    let was = before.map(|before| before.enabled);
    let same_url = before.is_some_and(|before| before.url == after.url);
    match (was, after.enabled) {
        (Some(Enabled::No), Enabled::No) if same_url => None,
        (_, Enabled::No | Enabled::DisabledBySystem) => Some(Action::SubscriptionDisable),
        (Some(Enabled::Yes), Enabled::Yes) if !same_url => Some(Action::SubscriptionUrl),
        (_, Enabled::Yes) => Some(Action::SubscriptionEnable),
    }
}
