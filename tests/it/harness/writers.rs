//! Callers that change contacts all the time, and keep what they were told.

use std::collections::BTreeMap;
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

/// One answer to a change.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// The position of whoever keeps one, right after the answer.
    pub(crate) position: u64,
    /// The field that every edit changes; nothing for a contact that has none.
    pub(crate) job_title: Option<String>,
}

/// What callers were told: the contact and its version, a delete as its last one.
pub(crate) struct Acknowledged {
    pub(crate) changes: Mutex<BTreeMap<(String, u64), Told>>,
    pub(crate) deletes: Mutex<BTreeMap<String, Told>>,
    position: Box<dyn Fn() -> u64 + Send + Sync>,
    count: AtomicUsize,
    unavailable: AtomicUsize,
    stop: AtomicBool,
}

impl Default for Acknowledged {
    fn default() -> Self {
        Self::at(|| 0)
    }
}

impl Acknowledged {
    /// Notes for each answer a position at which it was there.
    pub(crate) fn at(position: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self {
            changes: Mutex::default(),
            deletes: Mutex::default(),
            position: Box::new(position),
            count: AtomicUsize::new(0),
            unavailable: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        }
    }

    /// Notes an answer to a change of a contact.
    pub(crate) fn note(&self, contact: &Value) {
        let id = contact["id"].as_str().unwrap().to_owned();
        let job_title = contact["jobTitle"].as_str().map(str::to_owned);
        let told = Told { position: (self.position)(), job_title };
        if let Some(version) = contact["version"].as_u64() {
            self.changes.lock().unwrap().insert((id, version), told);
        } else {
            self.deletes.lock().unwrap().insert(id, told);
        }
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    /// Where whoever keeps a position is now.
    pub(crate) fn position(&self) -> u64 {
        (self.position)()
    }

    /// Also what other callers were told.
    pub(crate) fn take_over(&self, other: &Self) {
        self.changes.lock().unwrap().append(&mut other.changes.lock().unwrap());
        self.deletes.lock().unwrap().append(&mut other.deletes.lock().unwrap());
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// How often the answer was 503.
    pub(crate) fn unavailable(&self) -> usize {
        self.unavailable.load(Ordering::SeqCst)
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
    start(app, name, pause, acknowledged, Manner::Brief)
}

/// The same, but after a 503 they go on with the next contact; and there must always be an answer.
pub(crate) fn start_stubborn_writers(
    app: &Api,
    name: &str,
    pause: Duration,
    acknowledged: &Arc<Acknowledged>,
) -> JoinSet<()> {
    start(app, name, pause, acknowledged, Manner::Stubborn)
}

/// The same, and they also go on when a contact is not there any more that they were told of.
pub(crate) fn start_forgiving_writers(
    app: &Api,
    name: &str,
    pause: Duration,
    acknowledged: &Arc<Acknowledged>,
) -> JoinSet<()> {
    start(app, name, pause, acknowledged, Manner::Forgiving)
}

fn start(
    app: &Api,
    name: &str,
    pause: Duration,
    acknowledged: &Arc<Acknowledged>,
    manner: Manner,
) -> JoinSet<()> {
    let mut writers = JoinSet::new();
    for number in 0..WRITERS {
        let writer = Writer {
            app: app.clone(),
            name: format!("{name}.w{number}"),
            pause,
            manner,
            acknowledged: Arc::clone(acknowledged),
        };
        writers.spawn(async move {
            for number in 0.. {
                match writer.write_contact(number).await {
                    Ok(()) => {}
                    Err(End::Forgotten) => {}
                    Err(End::Unavailable) if manner != Manner::Brief => {
                        tokio::time::sleep(pause).await;
                    }
                    Err(End::Unavailable | End::Stopped | End::NoAnswer) => return,
                }
            }
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
            manner: Manner::Brief,
            acknowledged: Arc::clone(acknowledged),
        };
        let (ids, mut chance) = (Arc::clone(ids), Chance::new(chance.next()));
        editors.spawn(async move {
            loop {
                let path = format!("/contacts/staff/{}", ids[chance.index(ids.len())]);
                let edit = json!({"jobTitle": chance.next().to_string()});
                if writer.tell(Method::PATCH, &path, &edit).await.is_err() {
                    return;
                }
            }
        });
    }
    editors
}

/// When a caller goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Only after a good answer.
    Brief,
    /// Also after a 503.
    Stubborn,
    /// Also after a 404.
    Forgiving,
}

/// Why a caller goes no further.
enum End {
    Stopped,
    Forgotten,
    NoAnswer,
    Unavailable,
}

struct Writer {
    app: Api,
    name: String,
    pause: Duration,
    manner: Manner,
    acknowledged: Arc<Acknowledged>,
}

impl Writer {
    async fn write_contact(&self, number: usize) -> Result<(), End> {
        let email = format!("{}.{number}@example.com", self.name);
        let contact = json!({"firstName": "A", "lastName": "B", "email": email});
        let created = self.tell(Method::POST, "/contacts/staff", &contact).await?;
        let path = format!("/contacts/staff/{}", created["id"].as_str().unwrap());
        for edit in 0..3 {
            let edit = json!({"jobTitle": edit.to_string()});
            self.tell(Method::PATCH, &path, &edit).await?;
        }
        if number.is_multiple_of(2) {
            self.tell(Method::DELETE, &path, &json!({})).await?;
        }
        Ok(())
    }

    async fn tell(&self, method: Method, path: &str, body: &Value) -> Result<Value, End> {
        if self.acknowledged.stop.load(Ordering::SeqCst) {
            return Err(End::Stopped);
        }
        let answer = match self.app.try_send(method, path, body.to_string()).await {
            Ok(answer) => answer,
            Err(error) if self.manner != Manner::Brief => panic!("no answer: {error}"),
            Err(_) => return Err(End::NoAnswer),
        };
        if answer.status == 503 {
            let message = answer.refused(503, 6_451_001);
            assert!(message.starts_with("Bad response from the service"), "{message}");
            assert!(answer.header("retry-after").is_some(), "{answer:?}");
            self.acknowledged.unavailable.fetch_add(1, Ordering::SeqCst);
            return Err(End::Unavailable);
        }
        if answer.status == 404 && self.manner == Manner::Forgiving {
            return Err(End::Forgotten);
        }
        assert!([200, 201].contains(&answer.status), "{answer:?}");
        let result = answer.json()["result"].take();
        self.acknowledged.note(&result);
        if !self.pause.is_zero() {
            tokio::time::sleep(self.pause).await;
        }
        Ok(result)
    }
}
