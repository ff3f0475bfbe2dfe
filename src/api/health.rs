//! Whether the process runs, and whether it can serve. Open to everyone; nothing is said about why.

use std::sync::Arc;

use ::http::StatusCode;

use crate::http::envelope::success;

use super::State;
use super::router::Answer;

pub(super) async fn get_livez(_state: Arc<State>) -> Answer {
    Ok(success(StatusCode::OK, r#"{"status":"live"}"#))
}

pub(super) async fn get_readyz(state: Arc<State>) -> Answer {
    state.read.check().await?;
    Ok(success(StatusCode::OK, r#"{"status":"ready"}"#))
}
