//! The table for readers: the commented default file, and `docs/configuration.md`.
//!
//! `rollcall config show` prints the first; `rollcall config docs` prints the second, and a test compares it with
//! the file that is checked in.

use super::table::{Kind, SETTINGS, Setting};

/// Width of comment lines in the default file, in characters.
const COMMENT_WIDTH: usize = 96;

/// The configuration file with every setting at its default, each commented out.
#[must_use]
pub fn default_file() -> String {
    let mut text = String::from(
        "# Rollcall's settings, each with its default. Take the # away from a line to change it.\n\
         # A flag wins over an environment variable, that over this file, that over the default.\n",
    );
    for setting in &SETTINGS {
        text.push('\n');
        for line in wrapped(&format!("{} Accepted: {}.", setting.doc, setting.rule)) {
            text.push_str(&format!("# {line}\n"));
        }
        text.push_str(&format!("#{} = {}\n", setting.name, in_file(setting, setting.default)));
    }
    text
}

/// The text of `docs/configuration.md`.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from(INTRODUCTION);
    for setting in &SETTINGS {
        text.push_str(&describe(setting));
    }
    text
}

const INTRODUCTION: &str = "\
# Configuration

Every setting can stand in a file, in the environment and on the command line. A flag wins over an environment
variable, that over the file, that over the built-in default.

* The file is TOML. Its path is given by `--config` or `ROLLCALL_CONFIG`; without them no file is read.
* Lists have commas between their entries; in the file they may be arrays. An empty value is an empty list. A list
  replaces the one of an earlier source, it is not added to it.
* Durations are a whole number and a unit: `500ms`, `5s`, `2m`, `1h`, `3d`.
* Relative paths start at the working directory.
* Unknown keys in the file, unknown variables that start with `ROLLCALL_`, and values that break their rule are
  reported together, and the server does not start (exit code 2). Exempt are `ROLLCALL_URL`, `ROLLCALL_TOKEN`,
  `ROLLCALL_APP` and `ROLLCALL_SERVICE`, which belong to the other commands, and the variables that Kubernetes
  sets for a Service named `rollcall` (`ROLLCALL_SERVICE_HOST`, `ROLLCALL_PORT` and the like).
* `rollcall config check` validates without starting, `rollcall config show` prints a commented file with all
  defaults, `rollcall config show --effective` prints every value and where it came from.
* `rollcall dev` has other defaults where a setting says so; file, environment and flags override them as well.

This page is made by `rollcall config docs`; a test compares the two.

## Settings
";

fn describe(setting: &Setting) -> String {
    let Setting { name, doc, rule, example, .. } = setting;
    let mut text = format!("\n### `{name}`\n\n{doc}\n\n* Accepted: {rule}.\n");
    text.push_str(&format!("* Default: {}.\n", quoted(setting.default)));
    if let Some(value) = setting.development {
        text.push_str(&format!("* Default of `rollcall dev`: {}.\n", quoted(value)));
    }
    // The example of a token or key is a description; nobody should copy one from a page.
    if !matches!(*name, "admin_token" | "secret_key") {
        text.push_str(&format!("* In the file: `{name} = {}`.\n", in_file(setting, example)));
    }
    let (variable, flag) = (setting.variable(), setting.flag());
    text.push_str(&format!("* In the environment: `{variable}`. As a flag: `{flag}`.\n"));
    text
}

fn quoted(value: &str) -> String {
    if value.is_empty() { "empty".to_owned() } else { format!("`{value}`") }
}

/// The value in TOML. Values of the table hold no character that TOML would have escaped.
fn in_file(setting: &Setting, value: &str) -> String {
    let numbers = setting.name == "deny_ports";
    match setting.kind {
        Kind::Number | Kind::Switch => value.to_owned(),
        Kind::List if value.is_empty() => "[]".to_owned(),
        Kind::List if numbers => format!("[{}]", value.replace(',', ", ")),
        Kind::List => format!("[\"{}\"]", value.replace(',', "\", \"")),
        Kind::Text | Kind::Path | Kind::Duration => format!("\"{value}\""),
    }
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= COMMENT_WIDTH {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}
