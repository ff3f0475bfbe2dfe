//! Faults: everything that is wrong with the configuration, reported at once.
//!
//! A line names the key, where it came from, the value, the rule and an accepted example. Values of secrets and of
//! unknown keys (which may be misspelt secrets) are never shown.

use std::fmt;

use super::raw::Source;
use super::table::Setting;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(String);

impl Fault {
    /// A value that breaks the setting's rule; `why` names the part that does, and may be empty.
    #[must_use]
    pub fn value(setting: &Setting, source: &Source, value: &str, why: &str) -> Self {
        let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
        Self(format!(
            "{} from {source}: \"{}\" is refused{why}; accepted: {}; for example: {}",
            setting.name,
            setting.shown(value).escape_debug(),
            setting.rule,
            setting.example
        ))
    }

    /// A key or variable that is no setting.
    #[must_use]
    pub fn unknown(name: &str, source: &str, near: Option<String>) -> Self {
        let near = near.map_or_else(
            || "`rollcall config show` lists all settings".to_owned(),
            |near| format!("for example: {near}"),
        );
        Self(format!(
            "{} from {source}: there is no such setting; accepted: the names in docs/configuration.md; {near}",
            name.escape_debug()
        ))
    }

    /// A source that cannot be read at all.
    #[must_use]
    pub fn source(source: &str, why: &str) -> Self {
        Self(format!("{source}: {why}"))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// All faults of one configuration; never empty when it is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.0.len() == 1 { "fault" } else { "faults" };
        write!(f, "{} {word} in the configuration", self.0.len())?;
        for fault in &self.0 {
            write!(f, "\n  {fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
