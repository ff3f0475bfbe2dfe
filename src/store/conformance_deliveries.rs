//! Cases of the suite about single deliveries: where they stand, sending again, replaying.

use std::time::Duration;

use serde_json::json;

use super::{
    NOW, app, create, edit, empty_record, enable, held_of, record, service as make_service,
};
use crate::domain::contact::StaffContact;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::subscription::Subscription;
use crate::store::rows::{
    DeliveryQuery, DeliveryRow, DeliveryState, ExhaustedRow, FailedAttempt, LaneRow, Record,
    ReplayFrom, done_of,
};
use crate::store::{Error, Store};

/// A service with a contact that has five events, and an app that is subscribed since before the second.
struct Stage {
    store: Store,
    service: ServiceId,
    app: AppId,
    subscription: Subscription,
    ana: StaffContact,
}

impl Stage {
    async fn new(store: Store) -> Self {
        let service = make_service(&store).await;
        let app = app(&store, service, 1).await;
        let ana = create(&store, service, "ana@example.org").await;
        let ticket = store.write.take_ticket().await.unwrap();
        let wish = enable("https://one.example/");
        let subscription = store.write.set_subscription(service, app, ticket, wish).await.unwrap();
        for name in ["Li", "Ng", "Po", "Wu"] {
            edit(&store, service, ana.id, json!({"lastName": name})).await.unwrap();
        }
        Self { store, service, app, subscription, ana }
    }

    async fn record(&self, record_: Record) {
        record(&self.store, record_).await.unwrap();
    }

    /// A record in the generation that the subscription is in.
    async fn base(&self, cursor: u64) -> Record {
        let generation = self.lane().await.subscription.generation;
        Record { generation, cursor, ..empty_record(&self.subscription) }
    }

    async fn lane(&self) -> LaneRow {
        self.store.read.find_lane(self.service, self.app).await.unwrap().unwrap()
    }

    async fn find(&self, sequence: u64) -> Option<DeliveryRow> {
        self.store.read.find_delivery(self.service, self.app, sequence).await.unwrap()
    }

    async fn state(&self, sequence: u64) -> Option<DeliveryState> {
        self.find(sequence).await.map(|row| row.state)
    }

    async fn list(&self, state: Option<DeliveryState>, after: u64) -> Vec<u64> {
        let query = DeliveryQuery { state, after, limit: 10 };
        let rows = self.store.read.list_deliveries(self.service, self.app, query).await.unwrap();
        rows.iter().map(|row| row.event.sequence).collect()
    }

    async fn redeliver(&self, sequence: u64) -> Result<(), Error> {
        let later = self.store.read.list_later_events(self.service, sequence).await.unwrap();
        self.store.write.redeliver(self.service, self.app, sequence, later).await
    }

    fn failed(sequence: u64, attempt: u32) -> FailedAttempt {
        FailedAttempt {
            sequence,
            attempt,
            at: NOW,
            status: Some(500),
            step: "status".to_owned(),
            answer: b"no".to_vec(),
        }
    }
}

fn held_numbers(lane: &LaneRow) -> Vec<u64> {
    lane.held.iter().map(|held| held.sequence).collect()
}

pub(super) async fn run(open: impl AsyncFn() -> Store) {
    deliveries_tell_where_they_stand(Stage::new(open().await).await).await;
    failed_attempts_are_kept_within_their_limits(Stage::new(open().await).await).await;
    a_redelivery_is_followed_by_the_newest_finished_event(Stage::new(open().await).await).await;
    redelivering_what_waits_makes_the_first_of_its_contact_due(Stage::new(open().await).await)
        .await;
    a_replay_sets_progress_back(Stage::new(open().await).await).await;
    only_an_enabled_subscription_sends_again(Stage::new(open().await).await).await;
}

async fn deliveries_tell_where_they_stand(stage: Stage) {
    let exhausted = ExhaustedRow { sequence: 3, contact: stage.ana.id, attempts: 13, at: NOW };
    stage
        .record(Record {
            bitmap: vec![0b1],
            hold: vec![held_of(stage.ana.id, 2, NOW)],
            exhaust: vec![exhausted],
            failed: vec![Stage::failed(2, 1), Stage::failed(2, 2)],
            ..stage.base(3).await
        })
        .await;

    use DeliveryState as S;
    let states = [stage.state(1).await, stage.state(2).await, stage.state(3).await];
    assert_eq!(states, [Some(S::NotOwed), Some(S::Held), Some(S::Exhausted)]);
    let states = [stage.state(4).await, stage.state(5).await, stage.state(6).await];
    assert_eq!(states, [Some(S::Delivered), Some(S::Pending), None]);
    assert_eq!(stage.list(None, 0).await, [2, 3]);
    assert_eq!(stage.list(None, 2).await, [3]);
    assert_eq!(stage.list(Some(S::Held), 0).await, [2]);
    assert_eq!(stage.list(Some(S::Exhausted), 0).await, [3]);
    let held = stage.find(2).await.unwrap();
    assert_eq!((held.attempts, held.at, held.failed.len()), (2, Some(NOW), 2));
    assert_eq!(held.failed[1], Stage::failed(2, 2));
    assert_eq!(stage.find(3).await.unwrap().attempts, 13);
}

async fn failed_attempts_are_kept_within_their_limits(stage: Stage) {
    let many = |sequence: u64| (1..=20).map(move |attempt| Stage::failed(sequence, attempt));
    stage.record(Record { failed: many(2).collect(), ..stage.base(1).await }).await;

    let kept: Vec<u32> =
        stage.find(2).await.unwrap().failed.iter().map(|failed| failed.attempt).collect();
    assert_eq!(kept, (9..=20).collect::<Vec<u32>>());

    // Numbers that are not in the log do as well: only the count matters.
    for block in 0..10 {
        let failed = (0..110).map(|at| Stage::failed(100 + block * 110 + at, 1)).collect();
        stage.record(Record { failed, ..stage.base(1).await }).await;
    }
    assert_eq!(stage.find(2).await.unwrap().failed, []);
}

async fn a_redelivery_is_followed_by_the_newest_finished_event(stage: Stage) {
    stage.record(Record { bitmap: vec![0b1], ..stage.base(3).await }).await;
    let before = stage.lane().await;

    stage.redeliver(2).await.unwrap();

    let after = stage.lane().await;
    assert_eq!(held_numbers(&after), [2, 4]);
    assert_eq!((after.cursor, done_of(3, &after.bitmap)), (3, vec![]));
    assert_eq!(after.subscription.generation, before.subscription.generation + 1);
    assert_eq!(stage.state(4).await, Some(DeliveryState::Held));

    stage.record(Record { release: vec![2, 4], ..stage.base(4).await }).await;
    let exhausted = ExhaustedRow { sequence: 5, contact: stage.ana.id, attempts: 9, at: NOW };
    stage.record(Record { exhaust: vec![exhausted], ..stage.base(5).await }).await;
    stage.redeliver(5).await.unwrap();
    let last = stage.lane().await;
    assert_eq!((held_numbers(&last), last.held[0].attempts), (vec![5], 9));
    assert_eq!(stage.list(Some(DeliveryState::Exhausted), 0).await, [0; 0]);
    assert_eq!(stage.redeliver(6).await, Err(Error::NotFound));
}

async fn redelivering_what_waits_makes_the_first_of_its_contact_due(stage: Stage) {
    let later = NOW.plus(Duration::from_hours(1_000_000));
    stage
        .record(Record {
            hold: vec![held_of(stage.ana.id, 2, later), held_of(stage.ana.id, 3, later)],
            ..stage.base(3).await
        })
        .await;
    let before = stage.lane().await;
    assert!(before.held.iter().all(|held| held.due_at == later));

    stage.redeliver(5).await.unwrap();

    let after = stage.lane().await;
    assert_eq!(held_numbers(&after), [2, 3]);
    assert_eq!((after.held[0].due_at < later, after.held[1].due_at), (true, later));
}

async fn a_replay_sets_progress_back(stage: Stage) {
    let exhausted = ExhaustedRow { sequence: 3, contact: stage.ana.id, attempts: 13, at: NOW };
    let full = Record {
        hold: vec![held_of(stage.ana.id, 2, NOW), held_of(stage.ana.id, 4, NOW)],
        exhaust: vec![exhausted],
        ..stage.base(5).await
    };
    stage.record(full).await;
    let replay = |from| stage.store.write.replay(stage.service, stage.app, from);

    let replayed = replay(ReplayFrom::After(2)).await.unwrap();
    assert_eq!((replayed.after, replayed.newest), (2, 5));
    let lane = stage.lane().await;
    assert_eq!((lane.cursor, held_numbers(&lane)), (2, vec![2]));
    assert_eq!(stage.list(Some(DeliveryState::Exhausted), 0).await, [0; 0]);

    let refused = replay(ReplayFrom::After(6)).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    let events = stage.store.read.list_events(stage.service, 0, 10).await.unwrap();
    let nothing = replay(ReplayFrom::Since(events[4].at.plus(Duration::from_secs(1)))).await;
    assert_eq!(nothing.unwrap().after, 5);
    assert_eq!(stage.lane().await.cursor, 2, "a replay never passes what is owed");
    assert_eq!(replay(ReplayFrom::Since(events[0].at)).await.unwrap().after, 0);
    assert_eq!(stage.lane().await.cursor, 0);
    assert_eq!(stage.state(1).await, Some(DeliveryState::Pending));
}

async fn only_an_enabled_subscription_sends_again(stage: Stage) {
    let ticket = stage.store.write.take_ticket().await.unwrap();
    let (service, app) = (stage.service, stage.app);
    stage.store.write.set_subscription(service, app, ticket, super::disable()).await.unwrap();

    let redelivered = stage.redeliver(2).await;
    let replayed = stage.store.write.replay(service, app, ReplayFrom::After(0)).await;

    assert!(matches!(redelivered, Err(Error::Refused(_))), "{redelivered:?}");
    assert!(matches!(replayed, Err(Error::Refused(_))), "{replayed:?}");
    assert_eq!(stage.state(2).await, None);
    let other = super::app(&stage.store, service, 2).await;
    let never = stage.store.write.replay(service, other, ReplayFrom::After(0)).await;
    assert_eq!(never, Err(Error::NotFound));
}
