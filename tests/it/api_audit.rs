//! The audit log from outside: every route that changes something leaves an entry with its caller; what tokens show of
//! their use; and the admin token replaced while the server runs.

use std::path::Path;
use std::process::Command;

use http::Method;
use serde_json::{Value, json};

use crate::harness::client::Api;
use crate::harness::receiver::{Receiver, Reply};
use crate::harness::server::TestServer;
use crate::harness::{PATIENCE, eventually};

const ALL: [&str; 3] = ["events", "directory:read", "directory:write"];

async fn entries(admin: &Api, path: &str) -> Vec<Value> {
    let page = admin.get(path).await.expect(200);
    assert_eq!(page["next"], Value::Null, "{page}");
    page["items"].as_array().unwrap().clone()
}

fn actions(entries: &[Value]) -> Vec<&str> {
    let numbers: Vec<u64> = entries.iter().map(|it| it["number"].as_u64().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
    entries.iter().map(|entry| entry["action"].as_str().unwrap()).collect()
}

/// Calls every route of an app that changes something; gives the contact that it made and deleted.
async fn change_everything(app: &Api, target: &str) -> String {
    let ana = app.create_contact("Ana", "Reyes").await;
    let path = format!("/contacts/staff/{ana}");
    app.patch(&path, json!({"jobTitle": "Porter"})).await.expect(200);
    app.patch(&path, json!({"jobTitle": "Porter"})).await.expect(200);
    let items = json!([
        {"op": "create", "contact": {"firstName": "Bo", "lastName": "Li", "email": "bo@example.org"}},
        {"op": "delete", "id": "sc_00000000000000000000000000000000"},
    ]);
    app.post("/contacts/staff-batch", json!({"items": items})).await.expect(200);
    app.subscribe(true, &format!("{target}?key=s3cret")).await.expect(200);
    app.delete(&path).await.expect(200);
    app.wait_until_idle().await;
    let deliveries = "/staff-contact-event-sub/deliveries";
    app.post(&format!("{deliveries}/4/redeliver"), json!({})).await.expect(200);
    app.post("/staff-contact-event-sub/replay", json!({"after": 4})).await.expect(200);
    app.post("/staff-contact-event-sub/secret/rotate", json!({})).await.expect(200);
    app.get("/staff-contact-event-sub/secret").await.expect(200);
    app.subscribe(false, target).await.expect(200);
    ana
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_that_changes_something_leaves_an_entry_with_its_caller() {
    let server = TestServer::builder().flag("--trusted-proxies", "127.0.0.1/32").start().await;
    let receiver = Receiver::start().await;
    let target = receiver.url();
    let admin = server.admin().with_header("x-forwarded-for", "203.0.113.1");
    let made = admin.post("/services", json!({"name": "Secretive"})).await.expect(201);
    let service = made["serviceId"].as_str().unwrap();
    let of_service = format!("/services/{service}");
    let body = json!({"name": "Nameless", "scopes": ALL});
    let made = admin.post(&format!("{of_service}/apps"), body).await.expect(201);
    let text = |field: &str| made[field].as_str().unwrap();
    let (app_id, token) = (text("appID"), text("appToken"));
    let app = server.app_with(app_id, token).with_header("x-forwarded-for", "203.0.113.2");

    let ana = change_everything(&app, &target).await;
    let of_app = format!("{of_service}/apps/{app_id}");
    admin.post(&format!("{of_app}/token/rotate"), json!({})).await.expect(200);
    admin.delete(&of_app).await.expect(200);
    admin.delete(&of_service).await.expect(200);
    admin.delete(&of_service).await.refused(404, 6_451_011);

    let entries = entries(&admin, &format!("{of_service}/audit")).await;
    assert_eq!(
        actions(&entries),
        [
            "appCreate",
            "contactCreate",
            "contactEdit",
            "contactCreate",
            "subscriptionEnable",
            "contactDelete",
            "redeliver",
            "replay",
            "secretRotate",
            "subscriptionDisable",
            "tokenRotate",
            "appDelete",
        ]
    );
    for (at, entry) in entries.iter().enumerate() {
        let by_admin = [0, 10, 11].contains(&at);
        assert_eq!(entry["from"], ["203.0.113.2", "203.0.113.1"][usize::from(by_admin)], "{entry}");
        // The entry of the app's creation has the id of its token.
        assert_eq!(entry["by"] == entries[0]["token"], !by_admin, "{entry}");
        assert_eq!(entry["by"] == entries[0]["by"], by_admin, "{entry}");
    }
    assert_eq!((&entries[5]["contact"], &entries[5]["sequence"]), (&json!(ana), &json!(4)));
    let whole = receiver.url();
    let end = whole.match_indices('/').nth(2).map_or(whole.len(), |(at, _)| at);
    assert_eq!(entries[4]["target"], whole[..end]);
    let text = json!(entries).to_string();
    for kept_out in ["s3cret", "Ana", "Reyes", "example", "Nameless", token, "whsec_"] {
        assert!(!text.contains(kept_out), "{kept_out}: {text}");
    }
    let of_server = self::entries(&admin, "/audit?limit=500").await;
    let about: Vec<&Value> = of_server.iter().filter(|it| it["serviceId"] == service).collect();
    assert_eq!(about.len(), 2, "{of_server:?}");
    assert_eq!(
        (&about[0]["action"], &about[1]["action"]),
        (&json!("serviceCreate"), &json!("serviceDelete"))
    );
    assert!(about.iter().all(|entry| entry["by"] == entries[0]["by"]));
    admin.get("/services/srv_00000000000000000000000000000001/audit").await.refused(404, 6_451_011);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_ends_with_410_is_an_entry_of_the_system() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    receiver.answer(|_| Reply::status(410));
    server.app().create_contact("Ana", "Reyes").await;
    server.app().wait_for_state("disabled").await;

    let path = format!("/services/{}/audit?action=subscriptionDisable", server.service_id);
    let entries = entries(&server.admin(), &path).await;

    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!((&entries[0]["by"], &entries[0]["from"]), (&json!("system"), &Value::Null));
    assert_eq!(entries[0]["reason"], "the receiver answered 410 Gone");
    assert_eq!(entries[0]["appID"], json!(server.app_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_use_of_a_token_shows_its_hour() {
    let server = TestServer::start().await;
    let (unused, _) = server.create_app(&["events"]).await;
    server.app().get("/event-hooks").await.expect(200);
    let path = format!("/services/{}/apps", server.service_id);

    let used = eventually("the use is recorded", async || {
        let list = server.admin().get(&path).await.expect(200);
        let items = list["items"].as_array().unwrap();
        let of = |id: &str| {
            let item = items.iter().find(|item| item["appID"] == id).unwrap();
            item["tokens"][0]["lastUsedAt"].clone()
        };
        assert_eq!(of(&unused), Value::Null);
        of(&server.app_id).as_str().map(str::to_owned)
    })
    .await;

    assert!(used.ends_with(":00:00.000Z"), "{used}");
}

fn rollcall(arguments: &[&str], server: &TestServer, elsewhere: &Path) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .args(arguments)
        .env("ROLLCALL_URL", &server.base_url)
        .env("ROLLCALL_TOKEN", &server.admin_token)
        .current_dir(elsewhere)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A server whose admin token is the stored one.
async fn server_with_stored_token() -> TestServer {
    let mut first = TestServer::builder().serve().start().await;
    assert_eq!(first.terminate(PATIENCE).await.unwrap().code(), Some(0));
    let data_dir = first.data_dir();
    let reset = ["admin-token", "reset", "--data-dir", data_dir.to_str().unwrap()];
    let (code, token, err) = rollcall(&reset, &first, &data_dir);
    assert_eq!(code, 0, "{err}");
    // An empty setting is none, also over the variable that the harness sets.
    let mut server = first.builder_of().flag("--admin-token", "").start_as(&first.credentials());
    token.trim().clone_into(&mut server.admin_token);
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_admin_token_is_rotated_while_the_server_runs() {
    let server = server_with_stored_token().await;
    let works = async |token: &str| {
        server.admin().with_token(Some(token)).get("/services").await.status == 200
    };
    let rotate = async |token: &str, body: &str| {
        let admin = server.admin().with_token(Some(token));
        let answer = admin.send(Method::POST, "/token/rotate", body.to_owned()).await.expect(200);
        answer["adminToken"].as_str().unwrap().to_owned()
    };
    let first = server.admin_token.clone();

    let second = rotate(&first, "").await;
    assert!(works(&first).await && works(&second).await);
    assert_ne!(first, second);
    let listed = server.admin().get("/token").await.expect(200);
    let expires: Vec<bool> =
        listed["items"].as_array().unwrap().iter().map(|it| it["expiresAt"].is_string()).collect();
    assert_eq!(expires, [true, false], "{listed}");

    let data_dir = server.data_dir();
    let (code, out, err) =
        rollcall(&["admin-token", "rotate", "--overlap", "0", "--json"], &server, &data_dir);
    assert_eq!(code, 0, "{err}");
    let third: Value = serde_json::from_str(&out).unwrap();
    let third = third["adminToken"].as_str().unwrap();
    assert!(!works(&first).await && !works(&second).await && works(third).await);
    let admin = server.admin().with_token(Some(third));
    admin.post("/token/rotate", json!({"overlap": 86_401})).await.refused(400, 6_451_000);

    let entries = entries(&admin, "/audit").await;
    let actions = actions(&entries);
    assert_eq!(
        actions[actions.len() - 3..],
        ["adminTokenSet", "adminTokenRotate", "adminTokenRotate"]
    );
    let [set, .., last] = &entries[entries.len() - 3..] else { panic!("{entries:?}") };
    assert_eq!((&set["by"], &set["from"]), (&json!("local"), &Value::Null));
    assert_eq!((&last["by"], &last["from"]), (&set["token"], &json!("127.0.0.1")));
    let (code, out, err) = rollcall(
        &["audit", "list", "--token", third, "--action", "adminTokenSet"],
        &server,
        &data_dir,
    );
    assert!(code == 0 && out.starts_with("NUMBER") && out.contains("local"), "{out} {err}");
    let log = server.log();
    assert!(![first.as_str(), &second, third].iter().any(|token| log.contains(token)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_token_of_a_setting_is_not_rotated_and_the_message_names_it() {
    let server = TestServer::builder().serve().start().await;

    let message = server.admin().post("/token/rotate", json!({})).await.refused(409, 6_451_000);

    assert!(message.contains("setting admin_token: change it there"), "{message}");
    let listed = server.admin().get("/token").await.expect(200);
    assert_eq!(listed["items"][0]["setting"], "admin_token");
    server.admin().get("/services").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_reads_the_file_of_the_admin_token_again_and_ends_no_server() {
    let mut plain = TestServer::builder().serve().start().await;
    plain.hang_up();
    eventually("the signal is taken", async || {
        plain.log().contains("no file to read again").then_some(())
    })
    .await;
    plain.admin().get("/services").await.expect(200);
    assert_eq!(plain.terminate(PATIENCE).await.unwrap().code(), Some(0));

    let file = plain.data_dir().join("admin-token");
    let [first, second] = ["first", "second"].map(|text| format!("{text}-{}", "x".repeat(40)));
    std::fs::write(&file, format!("{first}\n")).unwrap();
    let mut server = plain
        .builder_of()
        .flag("--admin-token", "")
        .flag("--admin-token-file", file.to_str().unwrap())
        .start_as(&plain.credentials());
    server.admin_token.clone_from(&first);
    let works = async |token: &str| {
        server.admin().with_token(Some(token)).get("/services").await.status == 200
    };
    let message = server.admin().post("/token/rotate", json!({})).await.refused(409, 6_451_000);
    assert!(message.contains("admin_token_file") && message.contains("SIGHUP"), "{message}");

    std::fs::write(&file, "too-short").unwrap();
    server.hang_up();
    eventually("the fault is logged", async || {
        server.log().contains("admin token not read again, the earlier one stays").then_some(())
    })
    .await;
    assert!(works(&first).await);
    std::fs::write(&file, &second).unwrap();
    server.hang_up();
    eventually("the new token opens", async || works(&second).await.then_some(())).await;
    assert!(!works(&first).await);
    let log = server.log();
    assert!(!log.contains("too-short") && !log.contains(&first) && !log.contains(&second), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_and_an_unknown_contact_get_one_answer() {
    let server = TestServer::start().await;
    let foreign = server.app().create_contact("Ana", "Reyes").await;
    let made = server.admin().post("/services", json!({"name": "Other"})).await.expect(201);
    let apps = format!("/services/{}/apps", made["serviceId"].as_str().unwrap());
    let made = server.admin().post(&apps, json!({"name": "App", "scopes": ALL})).await.expect(201);
    let text = |field: &str| made[field].as_str().unwrap();
    let other = server.app_with(text("appID"), text("appToken"));
    let unknown = foreign.replace('0', "f");
    assert_ne!(unknown, foreign);

    for (method, body) in
        [(Method::GET, ""), (Method::PATCH, r#"{"jobTitle":"x"}"#), (Method::DELETE, "")]
    {
        let ask = async |id: &str| {
            let path = format!("/contacts/staff/{id}");
            let mut answer = other.send(method.clone(), &path, body).await;
            answer.refused(404, 6_451_011);
            for of_request in ["x-request-id", "date"] {
                assert!(answer.headers.remove(of_request).is_some() || of_request == "date");
            }
            (answer.status, answer.headers, answer.body)
        };

        assert_eq!(ask(&foreign).await, ask(&unknown).await, "{method}");
    }
    for action in ["contactEdit", "contactDelete"] {
        let path = format!("/services/{}/audit?action={action}", server.service_id);
        assert_eq!(entries(&server.admin(), &path).await.len(), 0);
    }
}
