//! Administration: services, apps and tokens, and that nothing crosses from one service to another.

use serde_json::json;

use crate::harness::receiver::Receiver;
use crate::harness::server::TestServer;

const ALL: [&str; 3] = ["events", "directory:read", "directory:write"];
const NOBODY: &str = "srv_00000000000000000000000000000000";

#[tokio::test(flavor = "multi_thread")]
async fn service_is_created_listed_and_deleted() {
    let server = TestServer::start().await;
    let admin = server.admin();

    let created = admin.post("/services", json!({"name": "Acme"})).await.expect(201);
    let id = created["serviceId"].as_str().unwrap();
    assert_eq!(created, json!({"serviceId": id, "name": "Acme"}));
    let list = admin.get("/services").await.expect(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 2, "{list}");
    assert_eq!(list["next"], json!(null));

    admin.delete(&format!("/services/{id}")).await.expect(200);

    let list = admin.get("/services").await.expect(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
    admin.delete(&format!("/services/{id}")).await.refused(404, 6_451_011);
    admin.get(&format!("/services/{id}/apps")).await.refused(404, 6_451_011);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_read_page_by_page() {
    let server = TestServer::start().await;
    let admin = server.admin();
    for name in ["A", "B", "C", "D"] {
        admin.post("/services", json!({"name": name})).await.expect(201);
    }

    let mut names = Vec::new();
    let mut path = "/services?limit=2".to_owned();
    loop {
        let page = admin.get(&path).await.expect(200);
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 2, "{page}");
        names.extend(items.iter().map(|item| item["name"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/services?limit=2&after={next}");
    }

    assert_eq!(names, ["Demo", "A", "B", "C", "D"]);
    admin.get("/services?limit=501").await.refused(400, 6_451_000);
    admin.get("/services?after=x").await.refused(400, 6_451_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_have_1_to_50_characters() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let apps = format!("/services/{}/apps", server.service_id);

    for name in ["A".to_owned(), "ü".repeat(50)] {
        admin.post("/services", json!({"name": name})).await.expect(201);
        admin.post(&apps, json!({"name": name, "scopes": ALL})).await.expect(201);
    }
    for name in [String::new(), " ".to_owned(), "ü".repeat(51), "a\nb".to_owned()] {
        let refused = admin.post("/services", json!({"name": name})).await;
        assert!(refused.refused(400, 6_451_000).contains("name"));
        let refused = admin.post(&apps, json!({"name": name, "scopes": ALL})).await;
        assert!(refused.refused(400, 6_451_000).contains("name"));
    }
    admin.post("/services", json!({"name": "A", "x": 1})).await.refused(400, 6_451_000);
    admin.post("/services", json!({})).await.refused(400, 6_451_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn app_has_known_scopes_and_its_token_is_shown_once() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let apps = format!("/services/{}/apps", server.service_id);

    let app = admin.post(&apps, json!({"name": "CRM", "scopes": ALL})).await.expect(201);

    let id = app["appID"].as_str().unwrap();
    let token = app["appToken"].as_str().unwrap();
    assert_eq!(app, json!({"appID": id, "appToken": token, "name": "CRM", "scopes": ALL}));
    let list = admin.get(&apps).await;
    assert!(!String::from_utf8_lossy(&list.body).contains(token));
    let list = list.expect(200);
    let item = &list["items"][1];
    let tokens = json!([{
        "id": item["tokens"][0]["id"],
        "createdAt": item["tokens"][0]["createdAt"],
        "lastUsedAt": null,
        "expiresAt": null,
    }]);
    assert_eq!(*item, json!({"appID": id, "name": "CRM", "scopes": ALL, "tokens": tokens}));
    assert!(tokens[0]["createdAt"].is_string());
    let id_of_token = tokens[0]["id"].as_str().unwrap();
    assert!(id_of_token.starts_with("tok_") && id_of_token.len() == 16, "{id_of_token}");
    for scopes in [json!([]), json!(["events", "events"]), json!(["all"]), json!("events")] {
        admin.post(&apps, json!({"name": "X", "scopes": scopes})).await.refused(400, 6_451_000);
    }
    let nowhere = format!("/services/{NOBODY}/apps");
    admin.post(&nowhere, json!({"name": "X", "scopes": ALL})).await.refused(404, 6_451_011);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_app_is_out_at_once_and_gets_no_more_events() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let (app, token) = server.create_app(&ALL).await;
    let doomed = server.app_with(&app, &token);
    doomed.subscribe(true, &receiver.url()).await.expect(200);
    server.app().create_contact("Ana", "Before").await;
    receiver.wait_for_delivered(1).await;

    let path = format!("/services/{}/apps/{app}", server.service_id);
    server.admin().delete(&path).await.expect(200);

    doomed.get("/event-hooks").await.refused(401, 6_452_000);
    server.admin().delete(&path).await.refused(404, 6_451_011);
    let witness = Receiver::start().await;
    server.app().subscribe(true, &witness.url()).await.expect(200);
    server.app().create_contact("Ana", "After").await;
    witness.wait_for_delivered(1).await;
    assert_eq!(receiver.notifications().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn rotated_token_works_beside_the_old_one_unless_told_otherwise() {
    let server = TestServer::start().await;
    let path = format!("/services/{}/apps/{}/token/rotate", server.service_id, server.app_id);
    let rotate = async |body: &str| {
        let answer = server.admin().send(http::Method::POST, &path, body.to_owned()).await;
        answer.expect(200)["appToken"].as_str().unwrap().to_owned()
    };
    let works = async |token: &str| {
        server.app_with(&server.app_id, token).get("/event-hooks").await.status == 200
    };

    let second = rotate("").await;
    assert!(works(&server.app_token).await && works(&second).await);

    let third = rotate(r#"{"overlap":0}"#).await;
    assert!(!works(&server.app_token).await && !works(&second).await);
    assert!(works(&third).await);

    server.admin().post(&path, json!({"overlap": 86_401})).await.refused(400, 6_451_000);
    assert!(works(&third).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_crosses_from_one_service_to_another() {
    let server = TestServer::start().await;
    let ours = Receiver::start().await;
    server.app().subscribe(true, &ours.url()).await.expect(200);
    let contact = server.app().create_contact("Ana", "Ours").await;
    let service = server.admin().post("/services", json!({"name": "Other"})).await.expect(201);
    let apps = format!("/services/{}/apps", service["serviceId"].as_str().unwrap());
    let app = server.admin().post(&apps, json!({"name": "App", "scopes": ALL})).await.expect(201);
    let text = |field: &str| app[field].as_str().unwrap();
    let other = server.app_with(text("appID"), text("appToken"));

    let path = format!("/contacts/staff/{contact}");
    other.get(&path).await.refused(404, 6_451_011);
    other.patch(&path, json!({"jobTitle": "x"})).await.refused(404, 6_451_011);
    other.delete(&path).await.refused(404, 6_451_011);
    assert_eq!(other.get("/contacts/staffcontact-list").await.expect(200)["total"], 0);
    // The same e-mail address is free there, and its event is no event here.
    other.create_contact("Ben", "Ours").await;
    server.app().create_contact("Ana", "Last").await;

    let names: Vec<String> =
        ours.wait_for_delivered(2).await.iter().map(|n| n.full_name()).collect();
    assert_eq!(names, ["Ana Ours", "Ana Last"]);
    assert_eq!(server.app().wait_until_idle().await["newest"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_service_closes_its_apps_and_tells_nobody() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    app.subscribe(true, &receiver.url()).await.expect(200);
    app.create_contact("Ana", "Reyes").await;
    receiver.wait_for_delivered(1).await;

    server.admin().delete(&format!("/services/{}", server.service_id)).await.expect(200);

    app.get("/event-hooks").await.refused(401, 6_452_000);
    let service = server.admin().post("/services", json!({"name": "Other"})).await.expect(201);
    let apps = format!("/services/{}/apps", service["serviceId"].as_str().unwrap());
    let other = server.admin().post(&apps, json!({"name": "App", "scopes": ALL})).await.expect(201);
    let text = |field: &str| other[field].as_str().unwrap();
    let other = server.app_with(text("appID"), text("appToken"));
    let witness = Receiver::start().await;
    other.subscribe(true, &witness.url()).await.expect(200);
    other.create_contact("Ben", "Reyes").await;
    witness.wait_for_delivered(1).await;
    assert_eq!(receiver.notifications().len(), 1);
}
