//! A store for tests of this back end, with what stands in for its writer: one command in one transaction.

use std::collections::BTreeSet;
use std::sync::Arc;

use deadpool_postgres::ClientWrapper;

use super::change::{Change, Stop, count_changes};
use super::connect::Readers;
use super::ownership::Ownership;
use super::reader::Reader;
use super::test_database::TestDatabase;
use super::{audit, commands};
use crate::domain::audit::{Entry, Origin};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ContactId, EventId, IdMaker, ServiceId};
use crate::domain::shard::Shard;
use crate::domain::subscription::SigningSecret;
use crate::domain::tenancy::{Scopes, Token, TokenHash};
use crate::store::audit_rows::Audit;
use crate::store::command::{Command, NewApp, Reply, SubscriptionWish};
use crate::store::keyring::{Key, Keyring};
use crate::store::rows::{AuditQuery, DeliveryState, LaneRow};
use crate::store::{Commit, Error, Read};

pub(super) const NOW: Timestamp = Timestamp::from_millis(1_763_900_000_000);
/// Under which the stage has every shard.
pub(super) const EPOCH: u64 = 7;

/// A store with all shards, its reader, and a connection that writes.
pub(super) struct Stage {
    pub(super) database: TestDatabase,
    pub(super) client: ClientWrapper,
    pub(super) reader: Reader,
    pub(super) ids: IdMaker,
    pub(super) keys: Keyring,
    pub(super) now: Timestamp,
}

impl Stage {
    pub(super) async fn new() -> Self {
        let database = TestDatabase::new().await;
        let client = database.target.connect(|_| {}).await.unwrap();
        let keys = Keyring::new(vec![Key::random().unwrap()]).unwrap();
        let ownership = Arc::new(Ownership::default());
        Shard::all().for_each(|shard| ownership.gain(shard, EPOCH));
        let readers = Readers::new(&database.target, &ownership).unwrap();
        let reader = Reader::new(readers, keys.clone(), ownership, Arc::default());
        Self { database, client, reader, ids: IdMaker::new(), keys, now: NOW }
    }

    pub(super) async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    pub(super) async fn count(&self, name: &str) -> i64 {
        let sql = "SELECT count FROM counts WHERE name = $1";
        self.client.query_one(sql, &[&name]).await.unwrap().get(0)
    }

    pub(super) async fn try_run(&self, command: &Command) -> Result<(Reply, Commit), Error> {
        self.try_run_on(&self.client, command).await
    }

    /// As the writer of another node.
    pub(super) async fn try_run_on(
        &self,
        client: &ClientWrapper,
        command: &Command,
    ) -> Result<(Reply, Commit), Error> {
        client.batch_execute("BEGIN").await.unwrap();
        let mut change = Change {
            client,
            ids: &self.ids,
            keys: &self.keys,
            now: self.now,
            origin: Origin::LOCAL,
            audit: Audit::default(),
            commit: Commit::default(),
            shards: BTreeSet::new(),
        };
        let done = async {
            let reply = commands::run(&mut change, command).await?;
            audit::write_all(&mut change).await?;
            count_changes(&mut change).await?;
            Ok::<_, Stop>(reply)
        }
        .await;
        let commit = change.commit;
        let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
        client.batch_execute(end).await.unwrap();
        Ok((done?, commit))
    }

    pub(super) async fn run(&self, command: Command) -> (Reply, Commit) {
        self.try_run(&command).await.unwrap()
    }

    pub(super) async fn refused(&self, command: Command) -> Error {
        self.try_run(&command).await.unwrap_err()
    }

    pub(super) async fn service(&self) -> ServiceId {
        match self.run(Command::CreateService("Service".to_owned())).await.0 {
            Reply::Service(service) => service.id,
            other => panic!("unexpected {other:?}"),
        }
    }

    pub(super) async fn app(&self, service: ServiceId, byte: u8) -> AppId {
        let (name, scopes) = ("App".to_owned(), Scopes::all());
        let secret = SigningSecret(vec![byte; 32]);
        let new = NewApp { service, name, scopes, token: hash(byte), secret };
        match self.run(Command::CreateApp(new)).await.0 {
            Reply::App(app) => app.id,
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Appends events of this contact, a second apart, as the writer of groups does.
    pub(super) async fn events(&self, service: ServiceId, contact: ContactId, count: u64) {
        let sql = "WITH s AS (UPDATE rolls SET head = head + 1 WHERE service = $1 RETURNING head) \
             INSERT INTO events SELECT $1, head, $2, $3, 2, head, 'Ana Ng', $4 + head * 1000 FROM s";
        for _ in 0..count {
            let event = EventId::make(&self.ids, NOW).uuid();
            let at = NOW.millis();
            let key = (service.uuid(), contact.uuid());
            self.client.execute(sql, &[&key.0, &event, &key.1, &at]).await.unwrap();
        }
    }

    pub(super) async fn set(
        &self,
        service: ServiceId,
        app: AppId,
        ticket: u64,
        wish: SubscriptionWish,
    ) {
        self.run(Command::SetSubscription { service, app, ticket, wish }).await;
    }

    pub(super) async fn lane(&self, service: ServiceId, app: AppId) -> LaneRow {
        self.reader.find_lane(service, app).await.unwrap().unwrap()
    }

    pub(super) async fn state(
        &self,
        service: ServiceId,
        app: AppId,
        sequence: u64,
    ) -> Option<DeliveryState> {
        let found = self.reader.find_delivery(service, app, sequence).await.unwrap();
        found.map(|row| row.state)
    }

    pub(super) async fn entries(&self, service: ServiceId) -> Vec<Entry> {
        let query = AuditQuery { limit: 500, ..AuditQuery::default() };
        let page = self.reader.list_audit(service, query).await.unwrap().unwrap();
        assert!(page.entries.iter().zip(1..).all(|(entry, number)| entry.number == number));
        page.entries
    }
}

pub(super) fn hash(byte: u8) -> TokenHash {
    Token::from_random(Token::APP_PREFIX, [byte; 32]).hash()
}

pub(super) fn enable(url: &str) -> SubscriptionWish {
    SubscriptionWish::Enable { url: url.to_owned(), verified_at: NOW }
}

pub(super) fn disable() -> SubscriptionWish {
    SubscriptionWish::Disable { url: "https://other.example/".to_owned() }
}

pub(super) fn held(lane: &LaneRow) -> Vec<u64> {
    lane.held.iter().map(|held| held.sequence).collect()
}
