//! A real roll with its real history, applied change by change: the receiver's copy ends as the server's.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use crate::harness::client::Api;
use crate::harness::receiver::{Receiver, Reply};
use crate::harness::server::TestServer;

const HISTORY: &str = include_str!("data/congress-excerpt.jsonl");

/// Applies one change to what a person's contact should look like.
fn merge(contact: &mut Map<String, Value>, change: &Map<String, Value>) {
    for (field, value) in change {
        let number = value
            .as_str()
            .filter(|_| field == "phone")
            .and_then(|text| text[1..].parse::<u64>().ok());
        match (value, number) {
            (Value::Null, _) => drop(contact.remove(field)),
            (_, Some(number)) => drop(contact.insert(field.clone(), number.into())),
            _ => drop(contact.insert(field.clone(), value.clone())),
        }
    }
}

/// Applies the history through the API. Gives the roll by e-mail address, and each contact's events.
pub(crate) async fn apply(
    app: &Api,
) -> (BTreeMap<String, Map<String, Value>>, HashMap<String, Vec<&'static str>>) {
    let mut ids: HashMap<String, String> = HashMap::new();
    let mut roll: HashMap<String, Map<String, Value>> = HashMap::new();
    let mut events: HashMap<String, Vec<&'static str>> = HashMap::new();
    for line in HISTORY.lines() {
        let change: Value = serde_json::from_str(line).unwrap();
        let key = change["key"].as_str().unwrap().to_owned();
        let contact = change["contact"].clone();
        let path = |ids: &HashMap<String, String>| format!("/contacts/staff/{}", ids[&key]);
        let kind = match change["op"].as_str().unwrap() {
            "create" => {
                let created = app.post("/contacts/staff", contact.clone()).await.expect(201);
                ids.insert(key.clone(), created["id"].as_str().unwrap().to_owned());
                merge(roll.entry(key.clone()).or_default(), contact.as_object().unwrap());
                "staffCreate"
            }
            "edit" => {
                app.patch(&path(&ids), contact.clone()).await.expect(200);
                merge(roll.entry(key.clone()).or_default(), contact.as_object().unwrap());
                "staffEdit"
            }
            _ => {
                app.delete(&path(&ids)).await.expect(200);
                roll.remove(&key);
                "staffDelete"
            }
        };
        events.entry(ids[&key].clone()).or_default().push(kind);
    }
    let by_email =
        |contact: Map<String, Value>| (contact["email"].as_str().unwrap().to_owned(), contact);
    (roll.into_values().map(by_email).collect(), events)
}

pub(crate) async fn list(app: &Api) -> BTreeMap<String, Map<String, Value>> {
    let mut listed = BTreeMap::new();
    loop {
        let path = format!("/contacts/staffcontact-list?limit=100&offset={}", listed.len());
        let page = app.get(&path).await.expect(200);
        let items = page["items"].as_array().unwrap();
        if items.is_empty() {
            assert_eq!(page["total"], listed.len());
            return listed;
        }
        for item in items {
            let mut contact = item.as_object().unwrap().clone();
            for made in ["id", "version", "createdAt", "updatedAt", "status", "extensionNumber"] {
                contact.remove(made);
            }
            listed.insert(contact["email"].as_str().unwrap().to_owned(), contact);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn history_of_a_congress_arrives_whole_and_in_order() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    receiver.answer(|seen| {
        let fails = seen.header("rollcall-attempt") == "1" && seen.sequence() % 40 == 0;
        Reply::status(if fails { 502 } else { 200 })
    });
    let app = server.app();
    app.subscribe(true, &receiver.url()).await.expect(200);

    let (roll, events) = apply(&app).await;

    let count: usize = events.values().map(Vec::len).sum();
    assert_eq!(count, HISTORY.lines().count());
    receiver.wait_for_delivered(count).await;
    app.wait_until_idle().await;
    assert_eq!(receiver.delivered().len(), count);
    let mut told: HashMap<String, Vec<String>> = HashMap::new();
    for seen in receiver.delivered() {
        told.entry(seen.contact()).or_default().push(seen.kind());
    }
    for (contact, kinds) in &events {
        assert_eq!(&told[contact], kinds, "{contact}");
    }
    assert_eq!(list(&app).await, roll);
}
