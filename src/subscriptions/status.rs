//! Where the subscription of an app stands.

use crate::delivery::lane::LaneState;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::subscription::Enabled;
use crate::store::Error;
use crate::store::rows::{LaneCondition, SubscriptionStatus};

use super::Subscriptions;

/// How a subscription is doing, in the words of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Never subscribed, or unsubscribed by the app.
    None,
    /// Sending, or nothing to send.
    Active,
    /// The receiver asked for a pause.
    Paused,
    /// The receiver fails.
    Failing,
    /// Disabled by Rollcall.
    Disabled,
}

impl State {
    /// The word in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Failing => "failing",
            Self::Disabled => "disabled",
        }
    }
}

impl Subscriptions {
    /// The status of an app's subscription, and its state in one word.
    ///
    /// # Errors
    ///
    /// Unavailable.
    pub async fn status(
        &self,
        service: ServiceId,
        app: AppId,
    ) -> Result<(SubscriptionStatus, State), Error> {
        let status = self.read.get_subscription_status(service, app).await?;
        let enabled = status.subscription.as_ref().map(|subscription| subscription.enabled);
        // Where another node has the lane, what that one has told of it.
        let lane = self.engine.lane_state(service, app).or(match status.condition {
            None => None,
            Some(LaneCondition::Paused) => Some(LaneState::Paused),
            Some(LaneCondition::Failing) => Some(LaneState::Failing),
        });
        let state = judge_state(enabled, lane);
        Ok((status, state))
    }
}

fn judge_state(enabled: Option<Enabled>, lane: Option<LaneState>) -> State {
    match (enabled, lane) {
        (None | Some(Enabled::No), _) => State::None,
        (Some(Enabled::DisabledBySystem), _) => State::Disabled,
        // A lane that is not loaded yet has no fault that is known of.
        (Some(Enabled::Yes), None | Some(LaneState::Active)) => State::Active,
        (Some(Enabled::Yes), Some(LaneState::Paused)) => State::Paused,
        (Some(Enabled::Yes), Some(LaneState::Failing)) => State::Failing,
    }
}

#[cfg(test)]
mod tests {
    use super::{State, judge_state};
    use crate::delivery::lane::LaneState;
    use crate::domain::subscription::Enabled;

    #[test]
    fn the_wish_comes_before_the_lane() {
        assert_eq!(judge_state(None, None), State::None);
        assert_eq!(judge_state(Some(Enabled::No), Some(LaneState::Active)), State::None);
        assert_eq!(
            judge_state(Some(Enabled::DisabledBySystem), Some(LaneState::Failing)),
            State::Disabled
        );
        assert_eq!(judge_state(Some(Enabled::Yes), None), State::Active);
        assert_eq!(judge_state(Some(Enabled::Yes), Some(LaneState::Paused)), State::Paused);
        assert_eq!(judge_state(Some(Enabled::Yes), Some(LaneState::Failing)), State::Failing);
    }
}
