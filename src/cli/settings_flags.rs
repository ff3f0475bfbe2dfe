//! The flags of all settings, made from the table in `config`; flattened into `serve`, `dev` and `config`.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, value_parser};

use crate::config::raw::Sources;
use crate::config::table::{CONFIG_VARIABLE, Kind, SETTINGS, Setting};

/// What the settings flags of a command line say.
#[derive(Clone, Default)]
pub(super) struct SettingsFlags {
    file: Option<PathBuf>,
    flags: Vec<(&'static str, String)>,
}

impl std::fmt::Debug for SettingsFlags {
    /// Names only: a value may be the admin token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.flags.iter().map(|(name, _)| name)).finish()
    }
}

impl SettingsFlags {
    /// All sources of this process, with the defaults of `serve` or of `dev`.
    pub(super) fn sources(self, development: bool) -> Sources {
        Sources { development, ..Sources::of_process(self.file, self.flags) }
    }
}

impl FromArgMatches for SettingsFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |setting: &'static Setting| {
            let text = matches.get_one::<String>(setting.name)?;
            Some((setting.name, text.clone()))
        };
        Ok(Self {
            file: matches.get_one::<PathBuf>("config").cloned(),
            flags: SETTINGS.iter().filter_map(given).collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for SettingsFlags {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("PATH")
            .value_parser(value_parser!(PathBuf))
            .help_heading(HEADING)
            .help(format!("The configuration file; also {CONFIG_VARIABLE}"));
        let flags = SETTINGS.iter().zip(NAMES.iter()).map(|(setting, name)| flag(setting, name));
        flags.fold(command.arg(file), Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

const HEADING: &str =
    "Settings (a flag wins over ROLLCALL_… in the environment, that over the file)";

/// The flags without their dashes in front, in the table's order; clap keeps references to them.
static NAMES: LazyLock<Vec<String>> =
    LazyLock::new(|| SETTINGS.iter().map(|setting| setting.name.replace('_', "-")).collect());

fn flag(setting: &'static Setting, name: &'static str) -> Arg {
    let default = if setting.default.is_empty() { "empty" } else { setting.default };
    let arg = Arg::new(setting.name)
        .long(name)
        .value_name(setting.kind.value_name())
        .help_heading(HEADING)
        .help(format!("{} [default: {default}]", first_sentence(setting.doc)))
        .long_help(format!("{}\nAccepted: {}. Default: {default}.", setting.doc, setting.rule));
    if setting.kind == Kind::Switch {
        return arg.num_args(0..=1).default_missing_value("true");
    }
    arg
}

fn first_sentence(doc: &str) -> &str {
    doc.split_once(". ").map_or(doc.trim_end_matches('.'), |(first, _)| first)
}
