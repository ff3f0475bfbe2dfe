//! Looks into the database all the time while nodes fail: who has each shard, and that progress never goes back.
//!
//! What it saw says who may send for whom, which is compared with what came to the receivers.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_postgres::Client;
use uuid::Uuid;

use super::postgres::connect;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Longest wait for an answer before the connection is made anew.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A time in which a node had a shard. Both ends are wide: they lie between two looks.
#[derive(Clone, Debug)]
pub(crate) struct Tenure {
    pub(crate) node: Option<String>,
    pub(crate) epoch: i64,
    /// When the last look began that did not see it.
    pub(crate) from: Instant,
    /// When the first look was answered that saw it no more.
    pub(crate) until: Option<Instant>,
}

/// The progress of a subscription: what of the log is done.
#[derive(Clone, Debug, Default)]
struct Progress {
    generation: i64,
    cursor: i64,
    bitmap: Vec<u8>,
}

impl Progress {
    /// Whether everything that was done before is done here too.
    fn goes_on_from(&self, before: &Self) -> bool {
        if self.generation != before.generation {
            return self.generation > before.generation;
        }
        let kept = before.bitmap.iter().enumerate().all(|(at, byte)| {
            let now = self.bitmap.get(at).copied().unwrap_or_default();
            byte & !now == 0
        });
        self.cursor > before.cursor || (self.cursor == before.cursor && kept)
    }
}

#[derive(Debug, Default)]
struct Record {
    tenures: BTreeMap<i16, Vec<Tenure>>,
    progress: HashMap<Uuid, Progress>,
    /// What may not be.
    faults: Vec<String>,
    looks: usize,
    /// When the last look began.
    asked: Option<Instant>,
}

/// A task that looks; it ends with the value.
#[derive(Debug)]
pub(crate) struct Watcher {
    record: Arc<Mutex<Record>>,
    looking: JoinHandle<()>,
}

impl Watcher {
    /// Looks into the database at this URL from now on. It may go away and come back.
    pub(crate) fn start(url: &str) -> Self {
        let record = Arc::new(Mutex::new(Record::default()));
        let (url, noting) = (url.to_owned(), Arc::clone(&record));
        let looking = tokio::spawn(async move {
            loop {
                if let Ok(Ok(client)) = tokio::time::timeout(ANSWER_WITHIN, connect(&url)).await {
                    while look(&client, &noting).await {
                        tokio::time::sleep(LOOK_EVERY).await;
                    }
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        Self { record, looking }
    }

    /// Whether it knows what was so at this moment.
    pub(crate) fn has_looked_since(&self, since: Instant) -> bool {
        self.record.lock().unwrap().asked.is_some_and(|asked| asked > since)
    }

    /// Which node has each shard, as it was seen last.
    pub(crate) fn owners(&self) -> BTreeMap<i16, String> {
        let record = self.record.lock().unwrap();
        let owner =
            |(shard, tenures): (&i16, &Vec<Tenure>)| Some((*shard, tenures.last()?.node.clone()?));
        record.tenures.iter().filter_map(owner).collect()
    }

    /// How many shards each node has.
    pub(crate) fn shares(&self) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        for node in self.owners().into_values() {
            *shares.entry(node).or_default() += 1;
        }
        shares
    }

    /// Whether a node may have sent what came at this moment: it had the shard then, or not much longer before.
    pub(crate) fn had(&self, node: &str, shard: i16, at: Instant, grace: Duration) -> bool {
        let record = self.record.lock().unwrap();
        let tenures = record.tenures.get(&shard).map(Vec::as_slice).unwrap_or_default();
        tenures.iter().any(|tenure| {
            tenure.node.as_deref() == Some(node)
                && tenure.from <= at
                && tenure.until.is_none_or(|until| at <= until + grace)
        })
    }

    /// How a shard changed hands, for the message of a test that fails.
    pub(crate) fn tenures_of(&self, shard: i16) -> Vec<Tenure> {
        self.record.lock().unwrap().tenures.get(&shard).cloned().unwrap_or_default()
    }

    /// Fails when progress or an epoch ever went back.
    pub(crate) fn assert_nothing_went_back(&self) {
        let record = self.record.lock().unwrap();
        assert!(record.looks > 50, "only {} looks into the database", record.looks);
        assert!(record.faults.is_empty(), "{:#?}", record.faults);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

/// One look; whether the connection is good.
async fn look(client: &Client, record: &Mutex<Record>) -> bool {
    let asked = Instant::now();
    let shards =
        "SELECT shard, n.name, epoch, shards.node FROM shards LEFT JOIN nodes n USING (node)";
    let progress = "SELECT app, generation, cursor, bitmap FROM progress";
    let both = async { tokio::join!(client.query(shards, &[]), client.query(progress, &[])) };
    let Ok((shards, progress)) = tokio::time::timeout(ANSWER_WITHIN, both).await else {
        return false;
    };
    let (Ok(shards), Ok(progress)) = (shards, progress) else {
        // Before the first node has made the tables there are none.
        return !client.is_closed();
    };
    let got = Instant::now();
    let mut record = record.lock().unwrap();
    record.looks += 1;
    let before = record.asked.replace(asked);
    for row in shards {
        let (node, epoch) = (row.get(1), row.get(2));
        let tenure = Tenure { node, epoch, from: before.unwrap_or(asked), until: None };
        record.note_tenure(row.get(0), tenure, got);
    }
    for row in progress {
        let progress = Progress { generation: row.get(1), cursor: row.get(2), bitmap: row.get(3) };
        record.note_progress(row.get(0), progress);
    }
    true
}

impl Record {
    fn note_tenure(&mut self, shard: i16, tenure: Tenure, got: Instant) {
        let tenures = self.tenures.entry(shard).or_default();
        if let Some(last) = tenures.last_mut() {
            if last.epoch == tenure.epoch && last.node == tenure.node {
                return;
            }
            if tenure.epoch <= last.epoch {
                self.faults.push(format!("shard {shard}: {tenure:?} after {last:?}"));
            }
            last.until = Some(got);
        }
        tenures.push(tenure);
    }

    fn note_progress(&mut self, app: Uuid, now: Progress) {
        if let Some(before) = self.progress.get(&app)
            && !now.goes_on_from(before)
        {
            self.faults.push(format!("progress of {app}: {now:?} after {before:?}"));
        }
        self.progress.insert(app, now);
    }
}
