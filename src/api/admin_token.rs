//! Administration: the admin token itself, listed by its id and rotated while the server runs.

use std::sync::Arc;

use ::http::StatusCode;
use serde_json::{Value, json};

use crate::http::auth::AdminSetting;
use crate::http::envelope::{ApiError, CODE_INVALID, success};

use super::State;
use super::admin::{parse_overlap, token_json};
use super::router::{Answer, Call};

pub(super) async fn list_admin_tokens(state: Arc<State>, _call: Call) -> Answer {
    let items: Vec<Value> = match state.http.auth.admin_setting() {
        Some(setting) => vec![json!({
            "id": setting.token.hash().id().to_string(),
            "setting": setting.name,
            "createdAt": null,
            "lastUsedAt": null,
            "expiresAt": null,
        })],
        None => {
            let stored = state.read.list_admin_tokens(state.clock.now()).await?;
            stored.iter().map(token_json).collect()
        }
    };
    Ok(success(StatusCode::OK, &json!({"items": items, "next": null}).to_string()))
}

pub(super) async fn rotate_admin_token(state: Arc<State>, mut call: Call) -> Answer {
    let overlap = parse_overlap(&call.body().await?)?;
    if let Some(setting) = state.http.auth.admin_setting() {
        return Err(not_stored(&setting));
    }
    let earlier_until = state.clock.now().plus(overlap);
    let token = state.directory.rotate_admin_token(call.origin, earlier_until).await?;
    let id = token.hash().id();
    let result = format!(r#"{{"id":"{id}","adminToken":"{}"}}"#, token.reveal());
    Ok(success(StatusCode::OK, &result))
}

/// 409: a stored token would not be looked at.
fn not_stored(setting: &AdminSetting) -> ApiError {
    let remedy = if setting.name == AdminSetting::FILE {
        "write a new one to that file and send the server SIGHUP"
    } else {
        "change it there and start the server again"
    };
    let message = format!("the admin token is the one of the setting {}: {remedy}", setting.name);
    ApiError::new(StatusCode::CONFLICT, CODE_INVALID, message)
}
