//! The group commit by itself: callers that wait for a create each, on the store, without HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rollcall::domain::clock::SystemClock;
use rollcall::domain::contact::ContactPatch;
use rollcall::store::command::{ContactAnswer, ContactChange};
use rollcall::store::keyring::{Key, Keyring};
use rollcall::store::postgres::{Options, Postgres, Target};
use rollcall::store::sqlite::retention::Retention;
use serde_json::json;

/// Callers that wait at any moment.
pub(crate) const WRITERS: usize = 256;

/// What was measured.
pub(crate) struct Measured {
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// Creates per second.
pub(crate) async fn measure(url: &str, time: Duration) -> anyhow::Result<Measured> {
    let target = Target::parse(url).map_err(anyhow::Error::msg)?;
    let options = Options {
        clock: Arc::new(SystemClock::new()),
        retention: Retention::FOREVER,
        keys: Keyring::new(vec![Key::random()?])?,
        node_name: "bench".to_owned(),
    };
    let postgres = Postgres::open(&target, options).await?;
    let service = postgres.store.write.create_service("Bench".to_owned()).await?.id;
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let (write, next) = (postgres.store.write.clone(), Arc::clone(&next));
        writers.push(tokio::spawn(async move {
            let mut waits = Vec::new();
            while began.elapsed() < time {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let change = create(number)?;
                let asked = Instant::now();
                let done = write.change_contact(service, change, None).await?;
                anyhow::ensure!(matches!(done, ContactAnswer::Created(_)), "not created");
                waits.push(asked.elapsed().as_secs_f64() * 1000.0);
            }
            anyhow::Ok(waits)
        }));
    }
    let mut waits = Vec::new();
    for writer in writers {
        waits.extend(writer.await??);
    }
    let per_second = waits.len() as f64 / began.elapsed().as_secs_f64();
    let head = postgres.store.read.list_heads().await?.first().map_or(0, |(_, head)| *head);
    anyhow::ensure!(
        head == waits.len() as u64,
        "{} creates, but the log ends at {head}",
        waits.len()
    );
    postgres.close().await;
    waits.sort_by(f64::total_cmp);
    let quantile = crate::measure::quantile;
    Ok(Measured { per_second, p50_ms: quantile(&waits, 0.5), p99_ms: quantile(&waits, 0.99) })
}

fn create(number: u64) -> anyhow::Result<ContactChange> {
    let body = json!({
        "firstName": format!("First{number}"),
        "lastName": "Bench",
        "email": format!("bench{number}@example.org"),
        "jobTitle": "Porter",
    });
    let serde_json::Value::Object(object) = body else { anyhow::bail!("not an object") };
    Ok(ContactChange::Create(ContactPatch::from_json(object).map_err(anyhow::Error::msg)?))
}
