//! Subscriptions: what the app wishes, stored by ticket; and where each stands.
