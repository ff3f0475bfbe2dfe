//! Progress of subscriptions: recorded by the engine in every group, read back at start.
