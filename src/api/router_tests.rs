//! The route table against the documentation and against the places where handlers look for ids.

use super::{APP_ID_PART, CONTACT_ID_PART, allow, routes};
use ::http::Method;
use std::collections::BTreeSet;

#[test]
fn every_route_stands_in_the_documentation_and_no_other() {
    let table: BTreeSet<String> =
        routes().iter().map(|route| format!("{} {}", route.method, route.path)).collect();

    let documented: BTreeSet<String> = include_str!("../../docs/api.md")
        .lines()
        .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'))
        .map(str::to_owned)
        .collect();

    assert_eq!(table, documented);
}

#[test]
fn every_route_is_there_once() {
    let mut seen = BTreeSet::new();

    for route in routes() {
        assert!(seen.insert((route.path, route.method.to_string())), "{}", route.path);
    }
}

#[test]
fn ids_stand_where_handlers_look_for_them() {
    for route in routes() {
        let parts: Vec<&str> = route.path.split('/').collect();
        if route.path.starts_with("/v1/api/") {
            assert_eq!(parts[APP_ID_PART], "{appID}", "{}", route.path);
        }
        if route.path.ends_with("{id}") {
            assert_eq!(parts[CONTACT_ID_PART], "{id}", "{}", route.path);
        }
        if route.path.starts_with("/v1/admin/services/") {
            assert_eq!(parts[4], "{serviceId}", "{}", route.path);
            assert!(parts.get(6).is_none_or(|part| *part == "{appID}"), "{}", route.path);
        }
    }
}

#[test]
fn allow_names_head_beside_get() {
    let of_contact: Vec<_> =
        routes().into_iter().filter(|route| route.path.ends_with("/staff/{id}")).collect();

    assert!(of_contact.iter().any(|route| route.method == Method::PATCH));
    assert_eq!(allow(&of_contact), "GET, HEAD, PATCH, DELETE");
}
