//! What was written: every setting as text, with the source it came from.
//!
//! Collects default, file, environment and flags in this order; a later source replaces an earlier one. Knows
//! keys and forms, not meanings: those are judged in `load.rs`. The process environment comes in as an argument,
//! so that tests need not change it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::fault::Fault;
use super::table::{
    COMMAND_VARIABLES, CONFIG_VARIABLE, Kind, SETTINGS, Setting, VARIABLE_PREFIX, find,
};

/// Largest configuration file, in bytes. The commented default file is a hundredth of it; more is surely
/// another file.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where the texts come from. Has no debug form, because the texts may hold the admin token.
#[derive(Clone, Default)]
pub struct Sources {
    /// The file that a flag names; it wins over the one that the environment names.
    pub file: Option<PathBuf>,
    /// The environment; variables of other programs are ignored.
    pub environment: Vec<(OsString, OsString)>,
    /// Names of settings and what the flags say.
    pub flags: Vec<(&'static str, String)>,
    /// Whether the defaults are those of `rollcall dev`.
    pub development: bool,
}

impl Sources {
    /// The sources of this process: its environment and these flags.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>, flags: Vec<(&'static str, String)>) -> Self {
        Self { file, environment: std::env::vars_os().collect(), flags, development: false }
    }

    /// The configuration file, if one is named.
    #[must_use]
    pub fn config_file(&self) -> Option<PathBuf> {
        let named = |(name, _): &&(OsString, OsString)| name == CONFIG_VARIABLE;
        let variable = || self.environment.iter().find(named).map(|(_, path)| PathBuf::from(path));
        let path = self.file.clone().or_else(variable)?;
        (!path.as_os_str().is_empty()).then_some(path)
    }
}

/// Where one value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Built in.
    Default,
    /// Built in, for `rollcall dev`.
    Development,
    /// The configuration file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// A flag of the command line.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the defaults"),
            Self::Development => f.write_str("the defaults of rollcall dev"),
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Variable(name) => write!(f, "the environment variable {name}"),
            Self::Flag(name) => write!(f, "the flag {name}"),
        }
    }
}

/// One value as it was written.
#[derive(Clone, PartialEq, Eq)]
pub struct Written {
    /// The text; lists have commas.
    pub text: String,
    /// Its source.
    pub source: Source,
}

/// Every setting as it was written, and what could not be read.
pub struct Raw {
    /// By name of setting; complete.
    pub values: BTreeMap<&'static str, Written>,
    /// Unknown names, wrong forms, unreadable sources.
    pub faults: Vec<Fault>,
}

/// Collects the texts of all sources.
#[must_use]
pub fn collect(sources: &Sources) -> Raw {
    let mut raw = Raw { values: defaults(sources.development), faults: Vec::new() };
    if let Some(path) = sources.config_file() {
        raw.add_file(&path);
    }
    for (name, value) in &sources.environment {
        raw.add_variable(name, value);
    }
    for (name, text) in &sources.flags {
        if let Some(setting) = find(name) {
            raw.add(setting, text.clone(), Source::Flag(setting.flag()));
        }
    }
    raw
}

fn defaults(development: bool) -> BTreeMap<&'static str, Written> {
    let written = |setting: &'static Setting| match setting.development {
        Some(text) if development => Written { text: text.to_owned(), source: Source::Development },
        _ => Written { text: setting.default.to_owned(), source: Source::Default },
    };
    SETTINGS.iter().map(|setting| (setting.name, written(setting))).collect()
}

impl Raw {
    fn add(&mut self, setting: &'static Setting, text: String, source: Source) {
        self.values.insert(setting.name, Written { text, source });
    }

    fn add_file(&mut self, path: &Path) {
        let source = format!("the file {}", path.display());
        let table = match read_file(path).and_then(|text| parse_table(&text)) {
            Ok(table) => table,
            Err(why) => return self.faults.push(Fault::source(&source, &why)),
        };
        for (name, value) in table {
            let Some(setting) = find(&name) else {
                self.faults.push(Fault::unknown(&name, &source, near(&name).map(str::to_owned)));
                continue;
            };
            let from = Source::File(path.to_owned());
            match text_of(setting, &value) {
                Some(text) => self.add(setting, text, from),
                None => self.faults.push(Fault::value(
                    setting,
                    &from,
                    "",
                    &format!("the file has {} here", value.type_str()),
                )),
            }
        }
    }

    fn add_variable(&mut self, name: &OsStr, value: &OsStr) {
        let name = name.to_string_lossy();
        let Some(rest) = name.strip_prefix(VARIABLE_PREFIX) else {
            return;
        };
        if COMMAND_VARIABLES.contains(&&*name) || made_by_kubernetes(rest, value) {
            return;
        }
        let source = Source::Variable(name.to_string());
        let known = SETTINGS.iter().find(|setting| setting.variable() == name);
        match (known, value.to_str()) {
            (Some(setting), Some(text)) => self.add(setting, text.to_owned(), source),
            (Some(setting), None) => {
                self.faults.push(Fault::value(setting, &source, "", "the value is not UTF-8"));
            }
            (None, _) => {
                let near = near(&rest.to_ascii_lowercase()).and_then(find).map(Setting::variable);
                self.faults.push(Fault::unknown(&name, "the environment", near));
            }
        }
    }
}

/// Whether the variable is one of those that Kubernetes sets in every pod for a Service named `rollcall` or
/// `rollcall-…`. Nobody wrote them, and refusing them would keep the server from starting there.
fn made_by_kubernetes(rest: &str, value: &OsStr) -> bool {
    let address =
        value.to_str().is_some_and(|v| v.starts_with("tcp://") || v.starts_with("udp://"));
    let numbered =
        rest.split("PORT_").skip(1).any(|after| after.starts_with(|c: char| c.is_ascii_digit()));
    rest.ends_with("SERVICE_HOST")
        || rest.contains("SERVICE_PORT")
        || numbered
        || (rest.ends_with("PORT") && address)
}

fn read_file(path: &Path) -> Result<String, String> {
    let file = fs::File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| format!("cannot be read: {error}"))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes"));
    }
    Ok(text)
}

fn parse_table(text: &str) -> Result<toml::Table, String> {
    // The parser's own `Display` quotes the line, which may hold the admin token; only the position is shown.
    text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(0, |span| {
            text.as_bytes()[..span.start.min(text.len())].iter().filter(|b| **b == b'\n').count()
        });
        format!("is no valid TOML at line {}: {}", line + 1, error.message())
    })
}

/// The text of a value in the file, if its form suits the setting.
fn text_of(setting: &Setting, value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) if matches!(setting.kind, Kind::Number | Kind::List) => {
            Some(number.to_string())
        }
        toml::Value::Boolean(on) if setting.kind == Kind::Switch => Some(on.to_string()),
        toml::Value::Array(entries) if setting.kind == Kind::List => {
            let texts: Option<Vec<String>> = entries.iter().map(entry_text).collect();
            texts.map(|texts| texts.join(","))
        }
        _ => None,
    }
}

fn entry_text(entry: &toml::Value) -> Option<String> {
    match entry {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The setting that was probably meant: the same letters but for case and dashes, or at most two edits
/// in a name that is long enough to be recognised.
fn near(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    SETTINGS
        .iter()
        .map(|setting| (distance(setting.name, &name), setting.name))
        .min()
        .filter(|(edits, near)| *edits <= 2 && edits * 3 < near.len())
        .map(|(_, near)| near)
}

/// Levenshtein's distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
