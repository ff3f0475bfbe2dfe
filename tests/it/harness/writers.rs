//! Callers that change contacts all the time, and keep what they were told.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::chance::Chance;
use super::client::Api;
use super::eventually;

/// Callers at once that create, edit and delete.
const WRITERS: usize = 8;
/// Callers at once that only edit.
const EDITORS: usize = 4;

/// What callers were told: the contact and its version, a delete as its last one.
#[derive(Default)]
pub(crate) struct Acknowledged {
    pub(crate) changes: Mutex<BTreeSet<(String, u64)>>,
    pub(crate) deletes: Mutex<BTreeSet<String>>,
    count: AtomicUsize,
    stop: AtomicBool,
}

impl Acknowledged {
    fn note(&self, contact: &Value) {
        let id = contact["id"].as_str().unwrap().to_owned();
        if let Some(version) = contact["version"].as_u64() {
            self.changes.lock().unwrap().insert((id, version));
        } else {
            self.deletes.lock().unwrap().insert(id);
        }
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    pub(crate) async fn wait_for(&self, count: usize) {
        eventually("enough changes were acknowledged", || async {
            (self.count() >= count).then_some(())
        })
        .await;
    }
}

/// Starts callers that create, edit and delete contacts until there is no answer, or a 503, or they are told to
/// stop. Each pauses after each change. The name must be new, because e-mail addresses are made from it.
pub(crate) fn start_writers(
    app: &Api,
    name: &str,
    pause: Duration,
    acknowledged: &Arc<Acknowledged>,
) -> JoinSet<()> {
    let mut writers = JoinSet::new();
    for number in 0..WRITERS {
        let writer = Writer {
            app: app.clone(),
            name: format!("{name}.w{number}"),
            pause,
            acknowledged: Arc::clone(acknowledged),
        };
        writers.spawn(async move {
            // There is no answer any more.
            writer.write().await.unwrap_or_default();
        });
    }
    writers
}

/// Starts callers that edit these contacts, each time another one, until the same happens.
pub(crate) fn start_editors(
    app: &Api,
    ids: &Arc<Vec<String>>,
    chance: &mut Chance,
    pause: Duration,
    acknowledged: &Arc<Acknowledged>,
) -> JoinSet<()> {
    let mut editors = JoinSet::new();
    for _ in 0..EDITORS {
        let writer = Writer {
            app: app.clone(),
            name: String::new(),
            pause,
            acknowledged: Arc::clone(acknowledged),
        };
        let (ids, mut chance) = (Arc::clone(ids), Chance::new(chance.next()));
        editors.spawn(async move {
            loop {
                let path = format!("/contacts/staff/{}", ids[chance.index(ids.len())]);
                let edit = json!({"jobTitle": chance.next().to_string()});
                if writer.tell(Method::PATCH, &path, &edit).await.is_none() {
                    return;
                }
            }
        });
    }
    editors
}

struct Writer {
    app: Api,
    name: String,
    pause: Duration,
    acknowledged: Arc<Acknowledged>,
}

impl Writer {
    async fn write(&self) -> Option<()> {
        for number in 0.. {
            let email = format!("{}.{number}@example.com", self.name);
            let contact = json!({"firstName": "A", "lastName": "B", "email": email});
            let created = self.tell(Method::POST, "/contacts/staff", &contact).await?;
            let path = format!("/contacts/staff/{}", created["id"].as_str().unwrap());
            for edit in 0..3 {
                let edit = json!({"jobTitle": edit.to_string()});
                self.tell(Method::PATCH, &path, &edit).await?;
            }
            if number % 2 == 0 {
                self.tell(Method::DELETE, &path, &json!({})).await?;
            }
        }
        None
    }

    async fn tell(&self, method: Method, path: &str, body: &Value) -> Option<Value> {
        if self.acknowledged.stop.load(Ordering::SeqCst) {
            return None;
        }
        let answer = self.app.try_send(method, path, body.to_string()).await.ok()?;
        if answer.status == 503 {
            return None;
        }
        assert!([200, 201].contains(&answer.status), "{answer:?}");
        let result = answer.json()["result"].take();
        self.acknowledged.note(&result);
        if !self.pause.is_zero() {
            tokio::time::sleep(self.pause).await;
        }
        Some(result)
    }
}
