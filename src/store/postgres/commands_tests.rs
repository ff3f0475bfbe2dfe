//! The rare commands: what they change, tell and note, and what is read back.

use crate::domain::audit::{Action, Entry, SERVER};
use crate::domain::clock::Timestamp;
use crate::domain::id::ContactId;
use crate::domain::shard::shard_of;
use crate::domain::subscription::{Enabled, SigningSecret, StoredSecret};
use crate::domain::tenancy::{Scopes, TokenHash};
use crate::store::command::{Command, Reply};
use crate::store::postgres::test_stage::{EPOCH, NOW, Stage, disable, enable, hash, held};
use crate::store::postgres::{secrets, tenancy};
use crate::store::rows::{
    DeliveryQuery, DeliveryState, LaterEvents, ReplayFrom, Replayed, done_of,
};
use crate::store::{Commit, Error, Read};

fn actions(entries: &[Entry]) -> Vec<Action> {
    entries.iter().map(|entry| entry.action).collect()
}

#[tokio::test]
async fn services_apps_and_tokens_come_and_go() {
    let stage = Stage::new().await;
    let (one, two) = (stage.service().await, stage.service().await);
    let app = stage.app(one, 1).await;
    let other = stage.app(one, 2).await;
    let find = async |byte| stage.reader.find_app_by_token(hash(byte), NOW).await.unwrap();
    let rotate = |byte, until| Command::RotateToken {
        service: one,
        app,
        token: hash(byte),
        earlier_until: until,
    };

    let page = stage.reader.list_services(None, 1).await.unwrap();
    assert_eq!((page.items[0].id, page.next.as_deref()), (one, Some(one.to_string().as_str())));
    let page = stage.reader.list_services(Some(one), 1).await.unwrap();
    assert_eq!((page.items[0].id, page.next), (two, None));
    let apps = stage.reader.list_apps(one, None, 5).await.unwrap().items;
    assert_eq!(apps.iter().map(|app| app.id).collect::<Vec<_>>(), [app, other]);
    assert_eq!(apps[0].scopes, Scopes::all());

    let later = Timestamp::from_millis(1 << 50);
    let before = stage.count("tenancy").await;
    assert!(stage.run(rotate(3, later)).await.1.tenancy);
    assert_eq!(stage.count("tenancy").await, before + 1);
    assert_eq!(find(1).await.unwrap().app.id, app);
    let tokens = stage.reader.list_tokens(one, vec![other, app], NOW).await.unwrap();
    let hashes: Vec<Vec<TokenHash>> =
        tokens.iter().map(|of| of.iter().map(|token| token.hash).collect()).collect();
    assert_eq!(hashes, [vec![hash(2)], vec![hash(1), hash(3)]]);
    tenancy::note_token_uses(&stage.client, &[hash(9), hash(3)], NOW).await.unwrap();
    tenancy::note_token_uses(&stage.client, &[hash(3)], NOW).await.unwrap();
    assert_eq!(find(3).await.unwrap().used_at.unwrap().millis() % 3_600_000, 0);
    stage.run(rotate(4, NOW)).await;
    assert_eq!((find(1).await, find(3).await), (None, None));

    let unknown = Command::RotateToken { service: two, app, token: hash(5), earlier_until: NOW };
    assert_eq!(stage.refused(unknown).await, Error::NotFound);
    let deleted = stage.run(Command::DeleteApp(one, app)).await.1;
    assert_eq!((deleted.subscriptions, deleted.tenancy), (vec![(one, app)], true));
    assert_eq!(find(4).await, None);
    assert_eq!(stage.refused(Command::DeleteApp(one, app)).await, Error::NotFound);
    let [create, rotate] = [Action::AppCreate, Action::TokenRotate];
    let entries = stage.entries(one).await;
    assert_eq!(actions(&entries), [create, create, rotate, rotate, Action::AppDelete]);
    assert_eq!(entries[2].subject.token, Some(hash(3).id()));

    stage.set(one, other, 1, enable("https://one.example/")).await;
    let shard = format!("shard/{}", shard_of(other));
    let before = stage.count(&shard).await;
    assert_eq!(stage.run(Command::DeleteService(one)).await.1.hidden, [one]);
    assert_eq!(stage.count(&shard).await, before + 1);
    assert_eq!(find(2).await, None);
    assert_eq!(stage.reader.find_service(one).await.unwrap(), None);
    assert_eq!(stage.reader.list_heads().await.unwrap(), [(two, 0)]);
    assert_eq!(stage.reader.list_log(one, 0, 5).await.unwrap(), None);
    assert_eq!(stage.reader.find_lane(one, other).await.unwrap(), None);
    assert_eq!(stage.reader.list_lanes().await.unwrap(), []);
    assert_eq!(stage.refused(Command::DeleteService(one)).await, Error::NotFound);
    let [create, delete] = [Action::ServiceCreate, Action::ServiceDelete];
    let entries = stage.entries(SERVER).await;
    assert_eq!(actions(&entries), [create, create, delete]);
    assert_eq!(entries[2].subject.service, Some(one));
}

#[tokio::test]
async fn admin_tokens_overlap() {
    let stage = Stage::new().await;
    let until = Timestamp::from_millis(1 << 50);
    let list = async |now| {
        let found = stage.reader.list_admin_tokens(now).await.unwrap();
        found.iter().map(|token| token.hash).collect::<Vec<_>>()
    };

    stage.run(Command::SetAdminToken(hash(1))).await;
    stage.run(Command::RotateAdminToken { token: hash(2), earlier_until: until }).await;
    assert_eq!((list(NOW).await, list(until).await), (vec![hash(1), hash(2)], vec![hash(2)]));
    stage.run(Command::SetAdminToken(hash(3))).await;
    assert_eq!(list(NOW).await, [hash(3)]);
    assert_eq!(stage.count("server_audit").await, 3);
    assert_eq!(stage.count("server_audit_at").await, NOW.millis());
}

#[tokio::test]
async fn two_nodes_at_once_store_one_first_admin_token() {
    let stage = Stage::new().await;
    for round in 0..20 {
        stage.sql("DELETE FROM admin_tokens").await;
        let other = stage.database.target.connect(|_| {}).await.unwrap();
        let [one, two] = [1, 2].map(|byte| Command::SetFirstAdminToken(hash(byte + 2 * round)));

        let (one, two) = tokio::join!(stage.try_run(&one), stage.try_run_on(&other, &two));

        let is_first = |done: Result<(Reply, Commit), Error>| match done.unwrap() {
            (Reply::IsFirst(is_first), commit) => {
                assert_eq!(commit.tenancy, is_first);
                is_first
            }
            other => panic!("unexpected {other:?}"),
        };
        assert!(is_first(one) ^ is_first(two));
        assert_eq!(stage.reader.list_admin_tokens(NOW).await.unwrap().len(), 1);
    }
    // What has ended does not count.
    stage.sql("UPDATE admin_tokens SET expires_at = 1").await;
    let (reply, _) = stage.run(Command::SetFirstAdminToken(hash(100))).await;
    assert!(matches!(reply, Reply::IsFirst(true)));
}

#[tokio::test]
async fn secrets_rotate_unless_an_earlier_one_is_damaged() {
    let stage = Stage::new().await;
    let service = stage.service().await;
    let app = stage.app(service, 1).await;
    stage.set(service, app, 1, enable("https://one.example/")).await;
    let until = Timestamp::from_millis(1 << 50);
    let rotate = |byte, earlier_until| Command::RotateSecret {
        service,
        app,
        secret: SigningSecret(vec![byte; 32]),
        earlier_until,
    };
    let secret_of =
        |byte, expires_at| StoredSecret { secret: SigningSecret(vec![byte; 32]), expires_at };
    let list = async || stage.reader.list_signing_secrets(service, app, NOW).await;
    let shard = format!("shard/{}", shard_of(app));
    let before = stage.count(&shard).await;

    let commit = stage.run(rotate(2, until)).await.1;
    let all = [secret_of(2, None), secret_of(1, Some(until))];
    assert_eq!(commit.secrets[0].secrets[..], all);
    assert_eq!(list().await.unwrap(), all);
    assert_eq!(stage.lane(service, app).await.secrets, all);
    assert_eq!(stage.reader.list_lanes().await.unwrap()[0].secrets, all);
    assert_eq!(stage.count(&shard).await, before + 1);
    stage.run(rotate(3, until)).await;
    stage.run(rotate(4, until)).await;
    let bytes: Vec<u8> = list().await.unwrap().iter().map(|it| it.secret.0[0]).collect();
    assert_eq!(bytes, [4, 3, 2]);

    stage.sql("UPDATE app_secrets SET secret = '\\x00' WHERE number = 3").await;
    let refused = stage.refused(rotate(5, until)).await;
    assert!(
        matches!(&refused, Error::Unavailable(text) if text.contains("key reset")),
        "{refused}"
    );
    assert_eq!(list().await.unwrap_err(), refused);
    // Where it does not go on it is not opened.
    stage.run(rotate(5, NOW)).await;
    assert_eq!(list().await.unwrap(), [secret_of(5, None)]);
    assert_eq!(stage.entries(service).await.len(), 6);
}

#[tokio::test]
async fn secrets_are_brought_to_the_newest_key() {
    let stage = Stage::new().await;
    let service = stage.service().await;
    for byte in 1..4 {
        stage.app(service, byte).await;
    }
    let mut client = stage.database.target.connect_plain().await.unwrap();
    let both = stage.keys.with_new().unwrap();
    let newest = both.only_newest().unwrap();

    let missing = secrets::prepare(&mut client, &newest).await.unwrap_err();
    let [new, old] = [newest.newest(), stage.keys.newest()].map(|id| id.to_string());
    let text = missing.to_string();
    assert!(text.contains(&new) && text.contains(&old) && text.contains("secret_key"), "{text}");
    assert_eq!(secrets::prepare(&mut client, &both).await, Ok(3));
    assert_eq!(secrets::prepare(&mut client, &newest).await, Ok(0));
    let app = stage.reader.list_apps(service, None, 5).await.unwrap().items[1].id;
    let opened = secrets::list_signing_secrets(&stage.client, &newest, service, app, NOW).await;
    assert_eq!(opened.unwrap()[0].secret, SigningSecret(vec![2; 32]));
}

#[tokio::test]
async fn wishes_follow_their_tickets() {
    let stage = Stage::new().await;
    let service = stage.service().await;
    let app = stage.app(service, 1).await;
    let ana = ContactId::from_bytes([3; 16]);
    stage.events(service, ana, 1).await;
    let status = async || stage.reader.get_subscription_status(service, app).await.unwrap();
    assert_eq!((status().await.cursor, status().await.subscription), (1, None));

    stage.set(service, app, 2, enable("https://one.example/hook?key=s3cret")).await;
    let late = Command::SetSubscription { service, app, ticket: 1, wish: disable() };
    assert_eq!(stage.refused(late).await, Error::Superseded);
    stage.events(service, ana, 3).await;
    let key = format!("'{}', '{}'", service.uuid(), app.uuid());
    stage
        .sql(&format!("INSERT INTO held VALUES ({key}, 2, '{}', 1, 1, {})", ana.uuid(), i64::MAX))
        .await;
    stage.sql("UPDATE progress SET cursor = 3, gap_from = 1, gap_to = 1, failing_since = 5, failing_attempts = 2")
        .await;
    let before = status().await;
    assert_eq!((before.cursor, before.newest, before.held, before.exhausted), (3, 4, 1, 0));
    assert_eq!(before.oldest_undelivered, Some(Timestamp::from_millis(NOW.millis() + 2000)));
    assert_eq!((before.failing.unwrap().attempts, before.gap.unwrap().to), (2, 1));

    stage.set(service, app, 3, enable("https://two.example:8443/")).await;
    let kept = stage.lane(service, app).await;
    assert_eq!((kept.cursor, kept.subscription.generation, kept.epoch), (3, 2, EPOCH));
    assert_eq!((held(&kept), kept.held[0].due_at, kept.failing), (vec![2], NOW, None));
    assert_eq!(stage.reader.list_lanes().await.unwrap(), [kept]);
    assert_eq!(status().await.gap, None);
    stage.set(service, app, 4, disable()).await;
    stage.set(service, app, 4, disable()).await;
    let off = stage.reader.find_subscription(service, app).await.unwrap().unwrap();
    assert_eq!((off.enabled, off.url.as_str()), (Enabled::No, "https://two.example:8443/"));
    assert_eq!((status().await.cursor, status().await.oldest_undelivered), (4, None));
    stage.set(service, app, 5, enable("https://two.example:8443/")).await;
    let anew = stage.lane(service, app).await;
    assert_eq!((anew.cursor, held(&anew), anew.subscription.generation), (4, vec![], 5));
    stage.reader.ownership.lose(shard_of(app));
    assert_eq!(stage.reader.find_lane(service, app).await.unwrap(), None);
    assert_eq!(stage.reader.list_lanes().await.unwrap(), []);

    use Action::{AppCreate, SubscriptionDisable, SubscriptionEnable, SubscriptionUrl};
    let entries = stage.entries(service).await;
    let expected =
        [AppCreate, SubscriptionEnable, SubscriptionUrl, SubscriptionDisable, SubscriptionEnable];
    assert_eq!(actions(&entries), expected);
    assert_eq!(entries[1].subject.target.as_deref(), Some("https://one.example"));
    assert_eq!(stage.count(&format!("shard/{}", shard_of(app))).await, 5);
}

#[tokio::test]
async fn single_deliveries_are_sent_again() {
    let stage = Stage::new().await;
    let service = stage.service().await;
    let app = stage.app(service, 1).await;
    let (ana, bo) = (ContactId::from_bytes([3; 16]), ContactId::from_bytes([4; 16]));
    stage.events(service, ana, 1).await;
    stage.set(service, app, 1, enable("https://one.example/")).await;
    stage.events(service, ana, 3).await;
    stage.events(service, bo, 1).await;
    let key = format!("'{}', '{}'", service.uuid(), app.uuid());
    // 1 not owed, 2 delivered, 3 exhausted, 4 delivered above the cursor, 5 pending.
    stage.sql(&format!("INSERT INTO exhausted VALUES ({key}, 3, '{}', 13, 5)", ana.uuid())).await;
    stage
        .sql(&format!(
            "INSERT INTO failed_attempts VALUES ({key}, 1, 3, 13, 5, 500, 'status', '\\x6e6f')"
        ))
        .await;
    stage.sql("UPDATE progress SET cursor = 3, bitmap = '\\x01'").await;
    let redeliver = async |sequence| {
        let later = stage.reader.list_later_events(service, sequence).await.unwrap();
        stage.try_run(&Command::Redeliver { service, app, sequence, later }).await
    };

    use DeliveryState::{Delivered, Exhausted, Held, NotOwed, Pending};
    for (sequence, state) in
        [(1, NotOwed), (2, Delivered), (3, Exhausted), (4, Delivered), (5, Pending)]
    {
        assert_eq!(stage.state(service, app, sequence).await, Some(state), "{sequence}");
    }
    assert_eq!(stage.state(service, app, 6).await, None);
    let later = stage.reader.list_later_events(service, 2).await.unwrap();
    assert_eq!(later, LaterEvents { sequences: vec![4, 3], head: 5 });
    assert_eq!(stage.reader.list_later_events(service, 9).await.unwrap().head, 5);
    let query = DeliveryQuery { state: None, after: 0, limit: 5 };
    let listed = stage.reader.list_deliveries(service, app, query).await.unwrap();
    assert_eq!((listed.len(), listed[0].attempts, listed[0].failed[0].status), (1, 13, Some(500)));
    assert_eq!(listed[0].failed[0].answer, b"no");

    // 4 is not finished in a log that the reader saw no end of: it is looked for again.
    let early = LaterEvents { sequences: vec![], head: 3 };
    let command = Command::Redeliver { service, app, sequence: 3, later: early };
    let commit = stage.run(command).await.1;
    assert_eq!((commit.again, commit.subscriptions), (vec![(service, app)], vec![(service, app)]));
    let lane = stage.lane(service, app).await;
    assert_eq!((held(&lane), lane.held[0].attempts, lane.held[1].attempts), (vec![3, 4], 13, 0));
    assert_eq!((lane.cursor, done_of(3, &lane.bitmap)), (3, vec![]));
    assert_eq!(lane.subscription.generation, 2);
    assert_eq!(stage.state(service, app, 3).await, Some(Held));
    let commit = redeliver(4).await.unwrap().1;
    assert_eq!((commit.subscriptions, commit.again), (vec![], vec![]), "both are due already");
    stage.sql("UPDATE held SET due_at = 9000000000000").await;
    let commit = redeliver(4).await.unwrap().1;
    assert_eq!((commit.subscriptions.len(), commit.again), (1, vec![]));
    let due: Vec<bool> =
        stage.lane(service, app).await.held.iter().map(|held| held.due_at == NOW).collect();
    assert_eq!(due, [true, false]);
    assert_eq!(redeliver(5).await.unwrap().1.subscriptions, []);
    assert_eq!(redeliver(6).await.unwrap_err(), Error::NotFound);

    let full = format!(
        "INSERT INTO held SELECT {key}, n, '{}', 0, 0, 0 FROM generate_series(10, 10006) n",
        bo.uuid()
    );
    stage.sql(&full).await;
    let refused = redeliver(2).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused(field) if field.field == "held"), "{refused}");
    stage.set(service, app, 2, disable()).await;
    assert!(matches!(redeliver(2).await.unwrap_err(), Error::Refused(_)));
    assert_eq!(
        actions(&stage.entries(service).await)[2..],
        [Action::Redeliver; 4].into_iter().chain([Action::SubscriptionDisable]).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_replay_sets_progress_back_to_a_number_or_a_time() {
    let stage = Stage::new().await;
    let service = stage.service().await;
    let app = stage.app(service, 1).await;
    let ana = ContactId::from_bytes([3; 16]);
    stage.set(service, app, 1, enable("https://one.example/")).await;
    stage.events(service, ana, 9).await;
    let key = format!("'{}', '{}'", service.uuid(), app.uuid());
    stage.sql(&format!("INSERT INTO exhausted VALUES ({key}, 3, '{}', 13, 5)", ana.uuid())).await;
    stage.sql("UPDATE progress SET cursor = 5, bitmap = '\\x06'; UPDATE services SET floor = 2; DELETE FROM events WHERE sequence <= 2")
        .await;
    let replay = async |from| {
        let (reply, _) = stage.try_run(&Command::Replay { service, app, from }).await?;
        let lane = stage.lane(service, app).await;
        let Reply::Replayed(replayed) = reply else { panic!("unexpected {reply:?}") };
        Ok((replayed, lane.cursor, done_of(lane.cursor, &lane.bitmap)))
    };
    let told = |after| Replayed { after, newest: 9 };
    let at = |millis| ReplayFrom::Since(Timestamp::from_millis(NOW.millis() + millis));

    assert_eq!(replay(ReplayFrom::After(7)).await, Ok((told(7), 5, vec![7])));
    let refused: Result<(Replayed, u64, Vec<u64>), Error> = replay(ReplayFrom::After(10)).await;
    assert!(matches!(refused, Err(Error::Refused(_))));
    assert_eq!(replay(at(9001)).await.unwrap().0, told(9));
    assert_eq!(replay(at(9000)).await.unwrap().0, told(8));
    assert_eq!(replay(at(4001)).await, Ok((told(4), 4, vec![])));
    assert_eq!(stage.state(service, app, 3).await, Some(DeliveryState::Exhausted));
    let status = async || stage.reader.get_subscription_status(service, app).await.unwrap();
    assert_eq!((status().await.gap, status().await.exhausted), (None, 1));
    assert_eq!(replay(at(0)).await, Ok((told(2), 2, vec![])));
    assert_eq!(status().await.exhausted, 0);
    assert_eq!(replay(ReplayFrom::After(0)).await.unwrap().0, told(2));
    let gap = status().await.gap.unwrap();
    assert_eq!((gap.from, gap.to), (1, 2));
    let other = stage.app(service, 2).await;
    let never = Command::Replay { service, app: other, from: ReplayFrom::After(0) };
    assert_eq!(stage.refused(never).await, Error::NotFound);
}
