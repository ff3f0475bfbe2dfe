//! Who may call: every route of the table with no token, bad tokens, another app's, another service's, and one
//! without the scope.

use std::collections::{BTreeMap, BTreeSet};

use http::Method;
use serde_json::json;

use crate::harness::client::Answer;
use crate::harness::say;
use crate::harness::server::TestServer;

/// The table itself: no list of its own that could lack a route.
const ROUTER: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/router.rs"));

const SCOPES: [&str; 3] = ["events", "directory:read", "directory:write"];
const NO_CONTACT: &str = "sc_00000000000000000000000000000000";
const NO_APP: &str = "app_00000000000000000000000000000000";

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    App(&'static str),
    Admin,
    Everyone,
}

struct Route {
    method: Method,
    path: &'static str,
    who: For,
}

/// The rows of the table, as they stand in the source: `app(M::GET, NAME, S::Events, …)` and so on.
fn routes() -> Vec<Route> {
    let (_, table) = ROUTER.split_once("fn routes()").unwrap();
    let paths: BTreeMap<&str, &str> = ROUTER
        .split("\nconst ")
        .skip(1)
        .filter_map(|constant| {
            let (name, rest) = constant.split_once(": &str =")?;
            Some((name, rest.split('"').nth(1)?))
        })
        .collect();
    let row = |text: &'static str| {
        let (kind, rest) = text.trim_start().split_once("(M::")?;
        let mut arguments = rest.split([',', ')']).map(str::trim);
        let method = arguments.next()?.parse().ok()?;
        let name = arguments.next()?;
        let path = paths.get(name).copied().unwrap_or_else(|| name.trim_matches('"'));
        let who = match (kind, arguments.next()?) {
            ("app", "S::Events") => For::App("events"),
            ("app", "S::DirectoryRead") => For::App("directory:read"),
            ("app", "S::DirectoryWrite") => For::App("directory:write"),
            ("admin", _) => For::Admin,
            ("open", _) => For::Everyone,
            other => panic!("no such kind of row: {other:?}"),
        };
        Some(Route { method, path, who })
    };
    let routes: Vec<Route> = table.lines().filter_map(row).collect();
    let rows = ROUTER.split_whitespace().collect::<String>().matches("(M::").count();
    assert_eq!(routes.len(), rows, "a row of the table was not understood");
    assert!(routes.iter().all(|route| route.path.starts_with('/')), "a path was not understood");
    routes
}

fn app_routes() -> Vec<(Method, &'static str, &'static str)> {
    let of_app = |route: Route| match route.who {
        For::App(scope) => {
            let path = route.path.strip_prefix("/v1/api/apps/{appID}").unwrap();
            Some((route.method, path, scope))
        }
        For::Admin | For::Everyone => None,
    };
    routes().into_iter().filter_map(of_app).collect()
}

fn filled(server: &TestServer, path: &str) -> String {
    path.replace("{id}", NO_CONTACT)
        .replace("{sequence}", "1")
        .replace("{serviceId}", &server.service_id)
        .replace("{appID}", &server.app_id)
}

/// Makes an app in a service of its own; gives its token.
async fn token_of_other_service(server: &TestServer) -> String {
    let service = server.admin().post("/services", json!({"name": "Other"})).await.expect(201);
    let apps = format!("/services/{}/apps", service["serviceId"].as_str().unwrap());
    let app = server.admin().post(&apps, json!({"name": "App", "scopes": SCOPES})).await;
    app.expect(201)["appToken"].as_str().unwrap().to_owned()
}

fn check_refusal(answer: &Answer, what: &str, (status, code): (u16, u32), who: For) {
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    let message = answer.refused(status, code);
    match (code, who) {
        (6_452_002, For::App(needed)) => assert!(message.contains(needed), "{what}"),
        (6_452_001, _) => assert_eq!(message, "Invalid appID", "{what}"),
        _ => {
            assert_eq!(message, "Invalid token", "{what}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_refuses_whoever_may_not_call() {
    let server = TestServer::start().await;
    let (_, of_other_app) = server.create_app(&SCOPES).await;
    let of_other_service = token_of_other_service(&server).await;
    let mut of_scope = BTreeMap::new();
    for scope in SCOPES {
        of_scope.insert(scope, server.create_app(&[scope]).await);
    }
    let longer = |token: &str| format!("{token}0");
    let unknown = ["rct_", "rca_"].map(|prefix| format!("{prefix}{}", "0".repeat(64)));
    let no_token = (401, 6_452_000);
    let mut seen = BTreeSet::new();

    for Route { method, path, who } in routes() {
        // What is sent, to which path, and how it is refused.
        let own = filled(&server, path);
        let mut attempts = vec![
            ("no token", None, own.clone(), no_token),
            ("nonsense", Some("nonsense".to_owned()), own.clone(), no_token),
            ("unknown token", Some(unknown[0].clone()), own.clone(), no_token),
            ("unknown admin token", Some(unknown[1].clone()), own.clone(), no_token),
        ];
        match who {
            For::Everyone => {
                for (_, token, path, _) in attempts {
                    server.anyone(token.as_deref()).get(&path).await.expect(200);
                }
                continue;
            }
            For::Admin => attempts.extend([
                ("longer token", Some(longer(&server.admin_token)), own.clone(), no_token),
                ("AppToken", Some(server.app_token.clone()), own.clone(), no_token),
                ("AppToken of another app", Some(of_other_app.clone()), own.clone(), no_token),
                ("AppToken of another service", Some(of_other_service.clone()), own, no_token),
            ]),
            For::App(needed) => {
                let no_app = (403, 6_452_001);
                attempts.extend([
                    ("longer token", Some(longer(&server.app_token)), own.clone(), no_token),
                    ("admin token", Some(server.admin_token.clone()), own.clone(), no_token),
                    ("token of another app", Some(of_other_app.clone()), own.clone(), no_app),
                    ("token of another service", Some(of_other_service.clone()), own, no_app),
                ]);
                for (scope, (app, token)) in of_scope.iter().filter(|(scope, _)| **scope != needed)
                {
                    let path = filled(&server, &path.replace("{appID}", app));
                    attempts.push((*scope, Some(token.clone()), path, (403, 6_452_002)));
                }
            }
        }
        for (attempt, token, target, refusal) in attempts {
            let answer = server.anyone(token.as_deref()).send(method.clone(), &target, "{}").await;

            let what = format!("{method} {path} with {attempt}");
            check_refusal(&answer, &what, refusal, who);
            assert!(seen.insert(what));
        }
    }

    let count = |is: fn(&For) -> bool| routes().iter().filter(|route| is(&route.who)).count();
    let of_app = count(|who| matches!(who, For::App(_)));
    let of_admin = count(|who| *who == For::Admin);
    say(&format!(
        "{} refused pairs of route and attempt: {of_app} routes of apps, {of_admin} of the administrator",
        seen.len()
    ));
    assert_eq!(seen.len(), of_app * 10 + of_admin * 8);
    assert!(of_app >= 17 && of_admin >= 11, "{of_app} {of_admin}");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_authorization_is_no_token_and_the_scheme_has_no_case() {
    let server = TestServer::start().await;
    let path = format!("/v1/api/apps/{}/event-hooks", server.app_id);
    let token = &server.app_token;
    let ask = async |values: &[String]| {
        let mut anyone = server.anyone(None);
        for value in values {
            anyone = anyone.with_header("authorization", value);
        }
        anyone.get(&path).await.status
    };

    assert_eq!(ask(&[format!("Bearer {token}")]).await, 200);
    assert_eq!(ask(&[format!("bearer {token}")]).await, 200);
    assert_eq!(ask(std::slice::from_ref(token)).await, 401);
    assert_eq!(ask(&[format!("Basic {token}")]).await, 401);
    assert_eq!(ask(&[format!("Bearer {token} x")]).await, 401);
    assert_eq!(ask(&["Bearer".to_owned()]).await, 401);
    assert_eq!(ask(&[format!("Bearer {token}"), format!("Bearer {token}")]).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_and_app_tokens_do_not_open_each_others_routes() {
    let server = TestServer::start().await;

    let app_as_admin = server.admin().with_token(Some(&server.app_token)).get("/services").await;
    let admin_as_app = server.app().with_token(Some(&server.admin_token)).get("/event-hooks").await;

    app_as_admin.refused(401, 6_452_000);
    admin_as_app.refused(401, 6_452_000);
    server.admin().get("/services").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_app_and_an_app_that_does_not_exist_get_one_answer() {
    let server = TestServer::start().await;
    let (other, _) = server.create_app(&SCOPES).await;

    for (name, path, _) in app_routes() {
        for app in [other.as_str(), NO_APP, "x"] {
            let api = server.app_with(app, &server.app_token);
            let answer = api.send(name.clone(), &filled(&server, path), "{}").await;

            assert_eq!(answer.refused(403, 6_452_001), "Invalid appID", "{name} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scope_of_a_route_is_enough() {
    let server = TestServer::start().await;

    for scope in SCOPES {
        let (app, token) = server.create_app(&[scope]).await;
        let api = server.app_with(&app, &token);
        for (name, path, _) in app_routes().into_iter().filter(|(_, _, needed)| *needed == scope) {
            let answer = api.send(name.clone(), &filled(&server, path), "").await;

            assert_ne!(answer.status, 403, "{name} {path} {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_is_judged_before_app_scope_and_body_in_this_order() {
    let server = TestServer::start().await;
    let (app, token) = server.create_app(&["events"]).await;
    let of_app = server.app_with(&app, &token);

    of_app
        .with_token(None)
        .send(Method::POST, "/contacts/staff", "{")
        .await
        .refused(401, 6_452_000);
    let elsewhere = server.app_with(NO_APP, &token);
    elsewhere.send(Method::POST, "/contacts/staff", "{").await.refused(403, 6_452_001);
    of_app.send(Method::POST, "/contacts/staff", "{").await.refused(403, 6_452_002);
    let allowed = server.app();
    allowed.send(Method::POST, "/contacts/staff", "{").await.refused(400, 6_451_000);
    allowed
        .patch(&format!("/contacts/staff/{NO_CONTACT}"), json!({"x": 1}))
        .await
        .refused(400, 6_451_000);
    allowed
        .patch(&format!("/contacts/staff/{NO_CONTACT}"), json!({}))
        .await
        .refused(404, 6_451_011);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_path_is_named_with_its_method() {
    let server = TestServer::start().await;
    let app_path = format!("/v1/api/apps/{}/nothing", server.app_id);
    let deeper = format!("/v1/api/apps/{}/event-hooks/", server.app_id);

    for (method, path) in [
        (Method::GET, "/"),
        (Method::POST, "/v1"),
        (Method::PATCH, app_path.as_str()),
        (Method::GET, deeper.as_str()),
        (Method::DELETE, "/v1/admin/nothing"),
    ] {
        for token in [None, Some(server.app_token.as_str())] {
            let answer = server.anyone(token).send(method.clone(), path, "").await;

            let message = answer.refused(404, 6_450_001);
            assert_eq!(message, format!("method not found, method: {method} url: {path}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_method_is_answered_405_with_the_right_ones() {
    let server = TestServer::start().await;
    let app = format!("/v1/api/apps/{}", server.app_id);

    for (wrong, path, right) in [
        (Method::POST, format!("{app}/staff-contact-event-sub"), "PATCH, GET"),
        (Method::DELETE, format!("{app}/staff-contact-event-sub"), "PATCH, GET"),
        (Method::PUT, format!("{app}/contacts/staff/{NO_CONTACT}"), "GET, PATCH, DELETE"),
        (Method::GET, format!("{app}/contacts/staff"), "POST"),
        (Method::PATCH, "/v1/admin/services".to_owned(), "POST, GET"),
        (Method::POST, "/livez".to_owned(), "GET"),
    ] {
        let answer = server.anyone(None).send(wrong.clone(), &path, "").await;

        let message = answer.refused(405, 6_450_001);
        assert_eq!(message, format!("method not found, method: {wrong} url: {path}"));
        let allow: BTreeSet<&str> = answer.header("allow").unwrap().split(", ").collect();
        let right: BTreeSet<&str> = right.split(", ").collect();
        assert!(right.is_subset(&allow), "{wrong} {path}: {allow:?}");
        assert!(!allow.contains(wrong.as_str()), "{wrong} {path}: {allow:?}");
    }
}
