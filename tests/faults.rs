//! The faults that `make simulate-faults` plants: each must still find its place, and name a check that exists.
//!
//! Whether the simulation catches them takes minutes; that they can be planted is known at once.

#![cfg(test)]

use std::fs;
use std::path::Path;

/// Fewer would not show that the simulation bites.
const FAULTS_MIN: usize = 12;

#[test]
fn every_fault_finds_its_place_and_names_a_check() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let checks = read("src/delivery/simulation/checks.rs");
    let mut found = 0;
    for entry in fs::read_dir(root.join("tests/faults")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "fault") {
            continue;
        }
        found += 1;
        let name = path.file_stem().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let (head, rest) = text.split_once("--- search\n").unwrap();
        let (search, replace) = rest.split_once("--- replace\n").unwrap();
        let line = |word: &str| head.lines().find_map(|line| line.strip_prefix(word)).unwrap();

        assert_eq!(read(line("file ")).matches(search).count(), 1, "{name}: place of the fault");
        assert_ne!(search, replace, "{name}");
        assert!(checks.contains(&format!("\"{}\"", line("check "))), "{name}: no such check");
    }
    assert!(found >= FAULTS_MIN, "only {found} faults");
}
