//! The documents against the tree: links lead somewhere, the map names every file, decisions are numbered and
//! whole, and every command that is named exists.

#![cfg(test)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Most lines of the map; longer ones are not read.
const MAP_LINES_MAX: usize = 250;
/// Commands that have commands below them.
const GROUPS: [&str; 8] =
    ["service", "app", "staff", "subscription", "audit", "key", "admin-token", "config"];
/// What every decision says.
const PARTS: [&str; 5] =
    ["Context.", "Options", "Choice.", "Consequences", "How we would notice that it was wrong."];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The names in a folder, sorted.
fn names_in(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(root().join(folder)).unwrap();
    let names: BTreeSet<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.into_iter().collect()
}

/// Every document, with its path from the root.
fn documents() -> Vec<(String, String)> {
    let mut names = Vec::new();
    for folder in ["", "docs/", "docs/decisions/"] {
        let found = names_in(folder)
            .into_iter()
            .filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "md"));
        names.extend(found.map(|name| format!("{folder}{name}")));
    }
    names.into_iter().map(|name| (name.clone(), read(&name))).collect()
}

fn fail_with(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn links_and_named_paths_lead_somewhere() {
    let mut faults = Vec::new();
    for (name, text) in documents() {
        let folder = root().join(&name).parent().unwrap().to_path_buf();
        for (_, rest) in text.match_indices("](").map(|(at, found)| text.split_at(at + found.len()))
        {
            let target = rest.split([')', '#']).next().unwrap();
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                faults.push(format!("{name}: the link to {target} is dead"));
            }
        }
        for path in text.split('`').skip(1).step_by(2) {
            let ours = ["src/", "docs/", "migrations/"].iter().any(|start| path.starts_with(start));
            // Behind `::` stands an item of the file.
            let file = path.split("::").next().unwrap();
            if ours && !root().join(file).exists() {
                faults.push(format!("{name}: {path} is not there"));
            }
        }
    }
    fail_with(&faults);
}

#[test]
fn map_is_short_and_names_every_file_of_the_source_in_its_folder() {
    let map = read("ARCHITECTURE.md");
    let mut faults = Vec::new();
    if map.lines().count() > MAP_LINES_MAX {
        faults.push(format!("ARCHITECTURE.md: more than {MAP_LINES_MAX} lines"));
    }
    let mut folders = vec!["src/".to_owned()];
    while let Some(folder) = folders.pop() {
        let row = format!("| `{folder}`");
        let rows: String = map.lines().filter(|line| line.starts_with(&row)).collect();
        for name in names_in(&folder) {
            if root().join(&folder).join(&name).is_dir() {
                folders.push(format!("{folder}{name}/"));
                continue;
            }
            let named = match folder.as_str() {
                "src/" => map.contains(&format!("`src/{name}`")),
                _ => rows.contains(&format!("`{name}`")),
            };
            let of_neighbour = name.contains("_test");
            if !named && !of_neighbour && name != "mod.rs" {
                faults.push(format!("ARCHITECTURE.md: name {name} in a row of `{folder}`"));
            }
        }
        for name in rows.split('`').skip(1).step_by(2) {
            let is_file = Path::new(name).extension().is_some_and(|extension| extension == "rs");
            if is_file && !root().join(&folder).join(name).exists() {
                faults.push(format!("ARCHITECTURE.md: {name} is not in `{folder}`"));
            }
        }
    }
    fail_with(&faults);
}

#[test]
fn decisions_are_numbered_without_gaps_and_say_everything() {
    let mut faults = Vec::new();
    for (number, name) in (1..).zip(names_in("docs/decisions")) {
        let text = read(&format!("docs/decisions/{name}"));
        if !name.starts_with(&format!("{number:04}-")) {
            faults.push(format!("{name}: the next number is {number:04}"));
        }
        if !text.starts_with(&format!("# {number:04}: ")) {
            faults.push(format!("{name}: the title must begin with its number"));
        }
        for part in PARTS.iter().filter(|part| !text.contains(&format!("**{part}"))) {
            faults.push(format!("{name}: has no part {part:?}"));
        }
    }
    fail_with(&faults);
}

/// Rows of tables without a test, and tests that are not there.
fn faults_of_threats(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for row in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Threat |"))
    {
        let named = row.split('`').skip(1).step_by(2).filter_map(|name| name.split_once(".rs::"));
        let mut count = 0;
        for (file, test) in named {
            count += 1;
            let path = root().join(format!("{file}.rs"));
            let head = format!("fn {test}(");
            let is_there = fs::read_to_string(path).is_ok_and(|code| {
                code.match_indices(&head).any(|(at, _)| {
                    // Its attributes stand right above it.
                    let above = code[..at].rsplit('\n').skip(1).take(3);
                    above
                        .take_while(|line| !line.is_empty())
                        .any(|line| line.contains("test]") || line.contains("::test("))
                })
            });
            if !is_there {
                faults.push(format!("there is no test {file}.rs::{test}"));
            }
        }
        if count == 0 {
            faults.push(format!("no test is named: {row}"));
        }
    }
    faults
}

#[test]
fn every_threat_has_tests_and_they_exist() {
    let text = read("SECURITY.md");
    // Behind it stand tables of other things.
    let (text, _) = text.split_once("\n## What is not defended\n").unwrap();
    assert!(text.matches("\n| ").count() > 25);
    fail_with(&faults_of_threats(text));

    for bad in [
        "| a | b | c |",
        "| a | b | `tests/docs.rs::nobody` |",
        "| a | b | `tests/nowhere.rs::every_threat_has_tests_and_they_exist` |",
        // A function, and no test.
        "| a | b | `tests/docs.rs::faults_of_threats` |",
    ] {
        assert_eq!(faults_of_threats(bad).len(), 1, "{bad}");
    }
}

#[test]
fn commands_that_are_named_exist() {
    let mut commands = BTreeSet::new();
    for (_, text) in documents() {
        for (at, _) in text.match_indices("rollcall ") {
            let rest = &text[at + "rollcall ".len()..];
            let called = ["`", "$ ", "\n"].iter().any(|before| text[..at].ends_with(before));
            let is_name = |word: &&str| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
            let mut words = rest.split([' ', '`', '\n']).take_while(is_name);
            let Some(first) = words.next().filter(|first| called && !first.is_empty()) else {
                continue;
            };
            let second = words.next().filter(|_| GROUPS.contains(&first)).unwrap_or_default();
            commands.insert((first.to_owned(), second.to_owned()));
        }
    }
    assert!(commands.len() > 8, "{commands:?}");
    let mut faults = Vec::new();
    for (first, second) in commands {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
        command.args([&first, &second].iter().filter(|word| !word.is_empty()));
        if first != "help" {
            command.arg("--help");
        }
        if !command.output().unwrap().status.success() {
            faults.push(format!("there is no command rollcall {first} {second}"));
        }
    }
    fail_with(&faults);
}
