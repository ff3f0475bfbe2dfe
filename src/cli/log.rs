//! Sends log lines to standard error, in the form and at the levels that the settings ask for.

use std::io;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Settings};

/// Installs the subscriber of this process. A subscriber that is there already stays.
pub(super) fn install(settings: &Settings) {
    let filter = EnvFilter::new(&settings.log);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // An error only says that there is a subscriber already.
    drop(match settings.log_format {
        LogFormat::Text => lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => lines.json().try_init(),
    });
}
