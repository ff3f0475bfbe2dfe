//! What comes into the program from outside: where it comes from, why it is there, and that the rules of `deny.toml` are
//! not loosened in passing. Reads files, with the standard library alone; `make deny` looks into the crates themselves.

#![cfg(test)]

use std::fs;
use std::path::Path;

/// Where every crate comes from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The lines of a section of a TOML file, up to the next one.
fn section<'a>(text: &'a str, header: &str) -> impl Iterator<Item = &'a str> {
    let rest = text.split_once(&format!("\n{header}\n")).unwrap_or_else(|| panic!("no {header}")).1;
    rest.lines().take_while(|line| !line.starts_with('['))
}

/// Packages that do not come from the registry, or without the checksum of what was read.
fn foreign_packages(lock: &str) -> Vec<String> {
    let packages = lock.split("\n[[package]]\n").skip(1);
    let value = |package: &str, key: &str| {
        let line = package.lines().find(|line| line.starts_with(&format!("{key} = \"")))?;
        line.split('"').nth(1).map(str::to_owned)
    };
    let foreign = packages.filter(|package| {
        let checksum = value(package, "checksum").is_some_and(|hex| hex.len() == 64);
        value(package, "source").as_deref() != Some(REGISTRY) || !checksum
    });
    foreign.map(|package| value(package, "name").unwrap_or_default()).collect()
}

#[test]
fn every_crate_comes_from_the_registry_with_its_checksum() {
    let lock = read("Cargo.lock");

    assert!(lock.matches("[[package]]").count() > 100);
    assert_eq!(foreign_packages(&lock), ["rollcall"]);

    let from_git = lock.replacen(REGISTRY, "git+https://example.com/aho-corasick", 1);
    assert_eq!(foreign_packages(&from_git).len(), 2);
    let unchecked = lock.replacen("\nchecksum = ", "\nx = ", 1);
    assert_eq!(foreign_packages(&unchecked).len(), 2);
}

/// Dependencies without a reason behind them, with an open version, or in the long form, which has no line for one.
fn faults_of_dependencies(manifest: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for header in ["[dependencies]", "[dev-dependencies]"] {
        for line in section(manifest, header).filter(|line| line.contains(" = ")) {
            let reason = line.split_once("# ").map_or("", |(_, reason)| reason.trim());
            if reason.split_whitespace().count() < 2 {
                faults.push(format!("{line}: say what it is for, behind # on the same line"));
            }
            if line.contains("\"*\"") || line.contains("git =") || line.contains("path =") {
                faults.push(format!("{line}: name a version of the registry"));
            }
        }
    }
    for header in
        ["[dependencies.", "[dev-dependencies.", "[build-dependencies", "[patch", "[target."]
    {
        if manifest.contains(&format!("\n{header}")) {
            faults.push(format!("{header}: dependencies stand in the two lists, each in one line"));
        }
    }
    faults
}

#[test]
fn every_dependency_says_what_it_is_for() {
    let manifest = read("Cargo.toml");
    assert!(section(&manifest, "[dependencies]").filter(|line| line.contains(" = ")).count() > 20);
    let faults = faults_of_dependencies(&manifest);
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));

    for bad in [
        "x = \"1\"",
        "x = \"1\" # it",
        "x = \"*\" # for a test",
        "x = { git = \"y\" } # for a test",
    ] {
        let worse = manifest.replace("\n[dependencies]\n", &format!("\n[dependencies]\n{bad}\n"));
        assert_eq!(faults_of_dependencies(&worse).len(), 1, "{bad}");
    }
    assert_eq!(faults_of_dependencies(&format!("{manifest}\n[patch.crates-io]\n")).len(), 1);
}

#[test]
fn unsafe_code_is_forbidden() {
    let manifest = read("Cargo.toml");
    assert!(section(&manifest, "[lints.rust]").any(|line| line == "unsafe_code = \"forbid\""));
}

#[test]
fn rules_of_make_deny_are_strict() {
    let rules = read("deny.toml");
    for (header, rule) in [
        ("[bans]", "wildcards = \"deny\""),
        ("[sources]", "unknown-registry = \"deny\""),
        ("[sources]", "unknown-git = \"deny\""),
        ("[sources]", "allow-git = []"),
    ] {
        assert!(section(&rules, header).any(|line| line == rule), "{header} {rule}");
    }
    for banned in ["openssl", "openssl-sys", "native-tls"] {
        assert!(rules.contains(&format!("crate = \"{banned}\"")), "{banned}");
    }
    let allowed = section(&rules, "[licenses]").collect::<String>();
    assert!(!["GPL", "AGPL", "SSPL", "BUSL"].iter().any(|licence| allowed.contains(licence)));
}
