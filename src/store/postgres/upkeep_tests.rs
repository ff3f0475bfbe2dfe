//! Upkeep: what is over goes in slices, and what was still owed becomes a gap that other nodes hear of.

use super::{Slice, Upkeep};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ContactId, ServiceId};
use crate::domain::shard::shard_of;
use crate::store::Read;
use crate::store::command::Command;
use crate::store::postgres::test_stage::{NOW, Stage, disable, enable};
use crate::store::retention::Retention;
use crate::store::rows::AuditQuery;

/// A service with ten events, one second apart, and a subscription to the first of which two events are finished, one of
/// them held, and above them 4, 5 and 7.
async fn log_of_ten(stage: &Stage) -> (ServiceId, AppId) {
    let service = stage.service().await;
    let app = stage.app(service, 1).await;
    let ana = ContactId::from_bytes([3; 16]);
    stage.set(service, app, 1, enable("https://one.example/")).await;
    stage.events(service, ana, 10).await;
    let key = format!("'{}', '{}'", service.uuid(), app.uuid());
    stage
        .sql(&format!(
            "UPDATE progress SET cursor = 2, bitmap = '\\x16'; \
             INSERT INTO held VALUES ({key}, 2, '{}', 1, 1, 5)",
            ana.uuid()
        ))
        .await;
    (service, app)
}

/// Runs slices until nothing is left.
async fn run(stage: &Stage, upkeep: &mut Upkeep, now: Timestamp) -> Vec<Slice> {
    let mut slices = Vec::new();
    for _ in 0..100 {
        let slice = upkeep.run_slice(&stage.client, now).await.unwrap();
        if !slice.removed {
            return slices;
        }
        slices.push(slice);
    }
    panic!("it never ends");
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(NOW.millis() + millis)
}

/// Cursor, bitmap and gap.
async fn progress(stage: &Stage) -> (i64, Vec<u8>, Option<i64>, Option<i64>) {
    let sql = "SELECT cursor, bitmap, gap_from, gap_to FROM progress";
    let row = stage.client.query_one(sql, &[]).await.unwrap();
    (row.get(0), row.get(1), row.get(2), row.get(3))
}

async fn rows(stage: &Stage, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    stage.client.query_one(&sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn pruning_moves_the_cursor_and_stores_what_was_never_delivered() {
    let stage = Stage::new().await;
    let (service, app) = log_of_ten(&stage).await;
    let events = std::time::Duration::from_secs(100);
    let mut upkeep = Upkeep::new(Retention { events, ..Retention::FOREVER });
    let shard = format!("shard/{}", shard_of(app));
    let before = stage.count(&shard).await;

    // Event 2 is held; 3 and 6 are owed.
    let slices = run(&stage, &mut upkeep, at(102_000)).await;
    assert_eq!((slices.len(), slices[0].subscriptions.len()), (1, 0));
    assert_eq!(progress(&stage).await, (2, vec![0x16], None, None));
    assert_eq!(stage.count(&shard).await, before);

    let slices = run(&stage, &mut upkeep, at(104_500)).await;
    assert_eq!(slices[0].subscriptions, [(service, app)]);
    assert_eq!(progress(&stage).await, (5, vec![0b10], Some(2), Some(3)));
    assert_eq!((rows(&stage, "held").await, rows(&stage, "events").await), (0, 6));
    assert_eq!(stage.count(&shard).await, before + 1);

    run(&stage, &mut upkeep, Timestamp::from_millis(i64::MAX)).await;
    assert_eq!(progress(&stage).await, (9, vec![], Some(2), Some(9)));
    assert_eq!(rows(&stage, "events").await, 1, "the newest stays");
    let log = stage.reader.list_log(service, 0, 5).await.unwrap().unwrap();
    assert_eq!((log.events[0].sequence, log.newest), (10, 10));
    let lane = stage.reader.find_lane(service, app).await.unwrap().unwrap();
    assert_eq!(lane.subscription.generation, 3);
}

#[tokio::test]
async fn an_app_that_unsubscribed_has_no_gap() {
    let stage = Stage::new().await;
    let (service, app) = log_of_ten(&stage).await;
    stage.set(service, app, 2, disable()).await;
    stage.sql("UPDATE progress SET cursor = 2, bitmap = '\\x16'").await;
    let mut upkeep =
        Upkeep::new(Retention { events: std::time::Duration::ZERO, ..Retention::FOREVER });

    let slices = run(&stage, &mut upkeep, at(1_000_000)).await;

    assert_eq!(slices[0].subscriptions, []);
    assert_eq!(progress(&stage).await, (2, vec![0x16], None, None));
}

#[tokio::test]
async fn many_events_go_in_slices_and_every_service_has_its_turn() {
    let stage = Stage::new().await;
    let mut services = Vec::new();
    for _ in 0..3 {
        services.push(stage.service().await);
    }
    let fill = format!(
        "INSERT INTO events SELECT service, n, service, service, 1, 1, 'Ana', n FROM services, generate_series(1, 1201) n; \
         UPDATE rolls SET head = 1201; UPDATE services SET hidden = false, floor = 0 WHERE service = '{}'",
        services[0].uuid()
    );
    stage.sql(&fill).await;
    let mut upkeep =
        Upkeep::new(Retention { events: std::time::Duration::ZERO, ..Retention::FOREVER });

    let slices = run(&stage, &mut upkeep, Timestamp::from_millis(1_000)).await;

    assert_eq!(slices.len(), 6, "{slices:?}");
    assert_eq!(rows(&stage, "events").await, 3 * (1201 - 999));
    let sql = "SELECT count(*) FROM services WHERE floor = 999";
    let moved: i64 = stage.client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(moved, 3);
}

#[tokio::test]
async fn a_hidden_service_goes_and_its_neighbour_stays() {
    let stage = Stage::new().await;
    let (service, _) = log_of_ten(&stage).await;
    let other = stage.service().await;
    stage.app(other, 2).await;
    let fill = format!(
        "INSERT INTO contacts SELECT '{0}', gen_random_uuid(), 1, 1, 1, n, n, 'ana', '{{}}' FROM generate_series(100, 1200) n; \
         INSERT INTO idempotency_keys SELECT '{0}', '{0}', n, '', '', {1} FROM generate_series(1, 10) n",
        service.uuid(),
        NOW.millis()
    );
    stage.sql(&fill).await;
    stage.run(Command::DeleteService(service)).await;
    let mut upkeep = Upkeep::new(Retention::FOREVER);

    let slices = run(&stage, &mut upkeep, NOW).await;

    assert_eq!(slices.len(), 3);
    for (table, left) in [
        ("services", 1),
        ("apps", 1),
        ("app_tokens", 1),
        ("app_secrets", 1),
        ("contacts", 0),
        ("idempotency_keys", 0),
        ("events", 0),
        ("subscriptions", 0),
        ("progress", 0),
        ("held", 0),
    ] {
        assert_eq!(rows(&stage, table).await, left, "{table}");
    }
    // What is known of it later is its log.
    assert_eq!(stage.entries(service).await.len(), 2);
}

#[tokio::test]
async fn what_is_over_goes_and_what_falls_due_all_the_time_holds_up_nothing() {
    let stage = Stage::new().await;
    let service = stage.service().await;
    let app = stage.app(service, 1).await;
    let later = Timestamp::from_millis(NOW.millis() + 1);
    let token = crate::domain::tenancy::TokenHash([9; 32]);
    stage.run(Command::RotateToken { service, app, token, earlier_until: later }).await;
    let day: i64 = 24 * 3_600_000;
    let fill = format!(
        "INSERT INTO idempotency_keys SELECT service, app, n, '', '', {now} + n FROM apps, generate_series(1, 700) n; \
         INSERT INTO groups SELECT gen_random_uuid(), extract(epoch FROM now()) * 1000 - 3600000 - n * 10000 \
         FROM generate_series(-5, 7) n; \
         INSERT INTO failed_attempts SELECT service, app, n, 1, 1, {now}, 500, '', '' FROM apps, generate_series(1, 3) n",
        now = NOW.millis()
    );
    stage.sql(&fill).await;
    let hour = std::time::Duration::from_hours(1);
    let mut upkeep = Upkeep::new(Retention { attempts: hour, audit: hour, ..Retention::FOREVER });

    let first = upkeep.run_slice(&stage.client, at(day + 600)).await.unwrap();
    assert!(first.removed);
    assert_eq!(rows(&stage, "idempotency_keys").await, 200);
    assert_eq!(rows(&stage, "failed_attempts").await, 0);
    run(&stage, &mut upkeep, at(day + 600)).await;

    assert_eq!(rows(&stage, "idempotency_keys").await, 100);
    assert_eq!(rows(&stage, "app_tokens").await, 1);
    assert_eq!(rows(&stage, "audit").await, 0);
    // By the database's clock, whatever this node's says.
    assert_eq!(rows(&stage, "groups").await, 5);
}

#[tokio::test]
async fn old_entries_of_all_services_go_and_numbers_go_on() {
    let stage = Stage::new().await;
    let mut stage = stage;
    let service = stage.service().await;
    for byte in 0..5 {
        stage.app(service, byte).await;
    }
    stage.now = at(10_000);
    stage.app(service, 9).await;
    let audit = std::time::Duration::from_secs(5);
    let mut upkeep = Upkeep::new(Retention { audit, ..Retention::FOREVER });

    run(&stage, &mut upkeep, at(6_000)).await;

    let query = AuditQuery { limit: 9, ..AuditQuery::default() };
    let page = stage.reader.list_audit(service, query).await.unwrap().unwrap();
    assert_eq!(page.entries.iter().map(|entry| entry.number).collect::<Vec<_>>(), [6]);
    assert_eq!(rows(&stage, "audit").await, 1);
    assert_eq!(stage.count("server_audit").await, 1);
}

#[tokio::test]
async fn upkeep_finds_what_is_over_without_looking_at_every_row() {
    let stage = Stage::new().await;
    // Whatever the planner thinks of empty tables.
    stage.sql("SET enable_seqscan = off").await;
    for query in [
        "SELECT service FROM services WHERE hidden LIMIT 1",
        "SELECT ctid FROM app_tokens WHERE expires_at <= 5 LIMIT 9 FOR UPDATE SKIP LOCKED",
        "SELECT ctid FROM app_secrets WHERE expires_at <= 5 LIMIT 9 FOR UPDATE SKIP LOCKED",
        "SELECT ctid FROM idempotency_keys WHERE at <= 5 LIMIT 9 FOR UPDATE SKIP LOCKED",
        "SELECT ctid FROM failed_attempts WHERE at < 5 ORDER BY at LIMIT 9 FOR UPDATE SKIP LOCKED",
        "SELECT ctid FROM groups WHERE at < (extract(epoch FROM now()) * 1000)::bigint - 5 LIMIT 9 FOR UPDATE SKIP LOCKED",
        "DELETE FROM groups WHERE ctid = ANY(ARRAY(SELECT ctid FROM groups WHERE at < 5 LIMIT 9))",
    ] {
        let rows = stage.client.query(&format!("EXPLAIN {query}"), &[]).await.unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let plan = plan.join("\n");
        assert!(plan.contains("Index") && !plan.contains("Seq Scan"), "{query}: {plan}");
    }
}

#[tokio::test]
async fn plans_that_were_made_for_an_empty_table_end_when_it_has_grown() {
    let stage = Stage::new().await;
    let service = stage.service().await;
    let look_up = "PREPARE look_up (uuid[], text[]) AS \
         SELECT c.contact FROM unnest($1, $2) AS k (service, email) \
         JOIN contacts c ON c.service = k.service AND c.email = k.email";
    stage.sql("SET plan_cache_mode = force_generic_plan").await;
    stage.sql(look_up).await;
    let plan = async || {
        let sql = format!("EXPLAIN EXECUTE look_up ('{{{}}}', '{{x}}')", service.uuid());
        let rows = stage.client.query(&sql, &[]).await.unwrap();
        rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join(" ")
    };
    assert!(!plan().await.contains("contacts_email"), "nothing is to be mended any more");
    let fill = async |from: i64| {
        let sql = "INSERT INTO contacts SELECT $1, gen_random_uuid(), 1, 1, 1, 'a' || n, NULL, 'a', '{}' \
             FROM generate_series($2::bigint, $2 + 2999) n";
        stage.client.execute(sql, &[&service.uuid(), &from]).await.unwrap();
        stage.sql("SELECT pg_stat_force_next_flush()").await;
    };
    let known = async || {
        let sql = "SELECT reltuples::bigint FROM pg_class WHERE oid = 'contacts'::regclass";
        stage.client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    let mut upkeep = Upkeep::new(Retention::FOREVER);

    fill(0).await;
    run(&stage, &mut upkeep, NOW).await;

    assert_eq!(known().await, 3000);
    assert!(plan().await.contains("contacts_email"), "{}", plan().await);
    // Not again and again: it would make every plan anew each time.
    fill(3000).await;
    run(&stage, &mut upkeep, NOW).await;
    assert_eq!(known().await, 3000);
    fill(6000).await;
    run(&stage, &mut upkeep, NOW).await;
    assert_eq!(known().await, 9000);
}
