//! Everybody locks in the same order: commands, what stands for groups, and upkeep at once on the same rows, and never
//! is one of them the victim of a deadlock.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use deadpool_postgres::ClientWrapper;

use super::change::{Stop, count};
use super::test_stage::{NOW, Stage, disable, enable};
use super::upkeep::Upkeep;
use super::{tenancy, why};
use crate::domain::audit::SERVER;
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ContactId, EventId, ServiceId};
use crate::domain::shard::shard_of;
use crate::domain::subscription::SigningSecret;
use crate::domain::tenancy::TokenHash;
use crate::store::Error;
use crate::store::command::Command;
use crate::store::retention::Retention;
use crate::store::rows::{LaterEvents, ReplayFrom};

/// Rounds of each participant: a wrong order is met within the first few dozen.
const ROUNDS: u64 = 150;

/// Numbers that look random and are the same in each run.
struct Numbers(Cell<u64>);

impl Numbers {
    fn below(&self, limit: u64) -> u64 {
        let next = self
            .0
            .get()
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0.set(next);
        (next >> 33) % limit
    }
}

struct Shared {
    stage: Stage,
    apps: Vec<(ServiceId, AppId)>,
    /// Tokens are made under numbers of their own.
    token: Cell<u64>,
    /// Who has not ended yet.
    working: Cell<u32>,
}

impl Shared {
    fn new_token(&self) -> TokenHash {
        self.token.set(self.token.get() + 1);
        let mut bytes = [0; 32];
        bytes[..8]
            .copy_from_slice(&self.token.get().wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        TokenHash(bytes)
    }

    fn command(&self, numbers: &Numbers) -> Command {
        let (service, app) = self.apps[usize::try_from(numbers.below(4)).unwrap()];
        let sequence = 1 + numbers.below(30);
        let until = Timestamp::from_millis(NOW.millis() + 1);
        match numbers.below(8) {
            0 | 1 => Command::SetSubscription {
                service,
                app,
                ticket: 1 << 40,
                wish: enable("https://one.example/"),
            },
            2 if numbers.below(4) == 0 => {
                Command::SetSubscription { service, app, ticket: 1 << 40, wish: disable() }
            }
            2 | 3 => Command::Replay { service, app, from: ReplayFrom::After(sequence - 1) },
            4 | 5 => {
                let later = LaterEvents::default();
                Command::Redeliver { service, app, sequence, later }
            }
            6 => {
                Command::RotateToken { service, app, token: self.new_token(), earlier_until: until }
            }
            _ => Command::RotateSecret {
                service,
                app,
                secret: SigningSecret(vec![1; 32]),
                earlier_until: until,
            },
        }
    }

    async fn commands(&self, client: &ClientWrapper, seed: u64) {
        let numbers = Numbers(Cell::new(seed));
        for _ in 0..ROUNDS {
            let command = self.command(&numbers);
            match self.stage.try_run_on(client, &command).await {
                Ok(_) | Err(Error::Refused(_) | Error::NotFound) => {}
                Err(error) => panic!("{command:?}: {error}"),
            }
        }
        self.working.set(self.working.get() - 1);
    }

    /// Appends events and records progress of all subscriptions, with the locks of the group commit.
    async fn groups(&self, client: &ClientWrapper, seed: u64) -> Result<(), tokio_postgres::Error> {
        let numbers = Numbers(Cell::new(seed));
        let shards = self.apps.iter().map(|(_, app)| shard_of(*app)).collect();
        let contact = ContactId::from_bytes([3; 16]).uuid();
        for _ in 0..ROUNDS {
            let mut sql = "BEGIN;".to_owned();
            if numbers.below(2) == 0 {
                sql.push_str("SELECT 1 FROM services ORDER BY service FOR NO KEY UPDATE;");
                for service in
                    self.apps.iter().map(|(service, _)| *service).collect::<BTreeSet<_>>()
                {
                    let event = EventId::make(&self.stage.ids, NOW).uuid();
                    sql.push_str(&format!(
                        "UPDATE rolls SET head = head + 1 WHERE service = '{0}'; \
                         INSERT INTO events SELECT '{0}', head, '{event}', '{contact}', 2, head, 'Ana', {1} + head * 1000 FROM rolls \
                         WHERE service = '{0}';",
                        service.uuid(),
                        NOW.millis()
                    ));
                }
            }
            sql.push_str(&format!(
                "SELECT 1 FROM progress ORDER BY service, app FOR UPDATE; \
                 INSERT INTO held SELECT p.service, p.app, e.sequence, '{contact}', 0, 0, 0 FROM progress p \
                 JOIN events e ON e.service = p.service WHERE e.sequence % 5 = 0 ON CONFLICT DO NOTHING; \
                 UPDATE progress p SET cursor = s.head FROM rolls s WHERE s.service = p.service;"
            ));
            client.batch_execute(&sql).await?;
            count(client, &shards, false).await?;
            client.batch_execute("COMMIT").await?;
        }
        self.working.set(self.working.get() - 1);
        Ok(())
    }

    async fn upkeep(&self, client: &ClientWrapper) -> Result<u64, Stop> {
        let mut upkeep = Upkeep::new(Retention { events: Duration::ZERO, ..Retention::FOREVER });
        let mut moved = 0;
        while self.working.get() > 0 {
            // Keeps about ten events of each log.
            let row = client.query_one("SELECT max(head) FROM rolls", &[]).await?;
            let now = Timestamp::from_millis(NOW.millis() + (row.get::<_, i64>(0) - 10) * 1000);
            let slice = upkeep.run_slice(client, now).await?;
            moved += u64::try_from(slice.subscriptions.len()).unwrap();
        }
        Ok(moved)
    }

    async fn uses(&self, client: &ClientWrapper) -> Result<(), tokio_postgres::Error> {
        let mut now = NOW;
        while self.working.get() > 0 {
            let rows = client.query("SELECT hash FROM app_tokens", &[]).await?;
            let tokens: Vec<TokenHash> = rows
                .iter()
                .map(|row| TokenHash(row.get::<_, Vec<u8>>(0).try_into().unwrap()))
                .collect();
            now = now.plus(Duration::from_hours(1));
            tenancy::note_token_uses(client, &tokens, now).await?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn commands_groups_and_upkeep_at_once_meet_no_deadlock() {
    let stage = Stage::new().await;
    let mut apps = Vec::new();
    for byte in [1, 3] {
        let service = stage.service().await;
        for app in [byte, byte + 1] {
            let app = stage.app(service, app).await;
            stage.set(service, app, 1, enable("https://one.example/")).await;
            apps.push((service, app));
        }
        stage.events(service, ContactId::from_bytes([3; 16]), 30).await;
    }
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(stage.database.target.connect(|_| {}).await.unwrap());
    }
    let shared = Shared { stage, apps, token: Cell::new(0), working: Cell::new(3) };

    let (_, _, groups, upkeep, uses) = tokio::join!(
        shared.commands(&clients[0], 1),
        shared.commands(&clients[1], 2),
        shared.groups(&clients[2], 3),
        shared.upkeep(&clients[3]),
        shared.uses(&clients[4]),
    );

    groups.map_err(|error| why(&error)).unwrap();
    uses.map_err(|error| why(&error)).unwrap();
    let moved = upkeep.map_err(Error::from).unwrap();
    assert!(moved > 0, "events were removed that were still owed");
    let services: BTreeSet<ServiceId> = shared.apps.iter().map(|(service, _)| *service).collect();
    let mut entries = 0;
    for service in services {
        entries += shared.stage.entries(service).await.len();
    }
    assert!(entries > 100, "{entries}");
    assert_eq!(shared.stage.entries(SERVER).await.len(), 2);
}
