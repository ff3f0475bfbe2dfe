//! `rollcall config`: settings without a server.

use clap::Subcommand;

use super::settings_flags::SettingsFlags;
use super::{output, table};
use crate::config::{document, load};

/// The commands about settings.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Validate file, environment and flags without starting.
    Check {
        #[command(flatten)]
        settings: SettingsFlags,
    },
    /// Print a commented file with all defaults.
    Show {
        /// Print every value instead, and where it came from.
        #[arg(long)]
        effective: bool,
        #[command(flatten)]
        settings: SettingsFlags,
    },
    /// Print every setting as a page of Markdown: docs/configuration.md is made by this.
    Docs,
}

/// Runs the command.
pub(super) fn run(command: ConfigCommand) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Check { settings } => {
            let loaded = load(&settings.sources(false))?;
            output::print(&loaded.file.map_or_else(
                || "ok (no configuration file)".to_owned(),
                |file| format!("ok ({})", file.display()),
            ))
        }
        ConfigCommand::Show { effective: false, .. } => {
            output::print(document::default_file().trim_end())
        }
        ConfigCommand::Show { effective: true, settings } => {
            let loaded = load(&settings.sources(false))?;
            let row = |(name, value, source): (&'static str, String, _)| {
                vec![name.to_owned(), format!("\"{}\"", output::plain(&value)), format!("{source}")]
            };
            let rows: Vec<Vec<String>> = loaded.shown.into_iter().map(row).collect();
            output::print(&table::table(&["SETTING", "VALUE", "FROM"], &rows))
        }
        ConfigCommand::Docs => output::print(document::markdown().trim_end()),
    }
}
