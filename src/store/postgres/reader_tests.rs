//! Reads of many rows: pages of one state, and the audit log by halving.

use crate::domain::audit::{Action, Origin};
use crate::domain::clock::Timestamp;
use crate::domain::event::EventKind;
use crate::domain::id::{ContactId, ServiceId};
use crate::store::audit_rows::Audit;
use crate::store::postgres::audit;
use crate::store::postgres::test_stage::{NOW, Stage};
use crate::store::rows::{AuditQuery, ContactQuery};
use crate::store::{Error, Read};

#[tokio::test]
async fn pages_of_the_roll_and_of_the_log_are_of_one_state() {
    let stage = Stage::new().await;
    let service = stage.service().await;
    let ana = ContactId::from_bytes([3; 16]);
    stage.events(service, ana, 4).await;
    for number in 0..3 {
        let fields = r#"{"firstName":"Ana","lastName":"Üçok","email":"a@example.org"}"#;
        let contact = ContactId::make(&stage.ids, NOW).uuid();
        stage.sql(&format!(
            "INSERT INTO contacts VALUES ('{}', '{contact}', 1, 1, 1, 'a{number}', NULL, 'ana{number} üçok', '{fields}')",
            service.uuid()
        )).await;
    }
    stage.sql("UPDATE rolls SET contacts = 3").await;
    let list = async |offset, limit, name: Option<&str>| {
        let query = ContactQuery { offset, limit, full_name: name.map(str::to_owned) };
        let list = stage.reader.list_contacts(service, query).await.unwrap();
        (list.total, list.items.len(), list.sequence)
    };
    let log = async |after, limit| {
        let page = stage.reader.list_log(service, after, limit).await.unwrap().unwrap();
        (page.events.iter().map(|event| event.sequence).collect::<Vec<_>>(), page.newest)
    };

    assert_eq!(list(0, 2, None).await, (3, 2, 4));
    assert_eq!(list(2, 2, None).await, (3, 1, 4));
    assert_eq!(list(u64::MAX, 2, None).await, (3, 0, 4));
    assert_eq!(list(0, 5, Some("1 ÜÇ")).await, (1, 1, 4));
    assert_eq!(list(0, 1, Some("üç")).await, (3, 1, 4));
    assert_eq!(list(0, 5, Some("nobody")).await, (0, 0, 4));
    assert_eq!(list(0, 5, Some("\0")).await, (0, 0, 4));
    assert_eq!(log(0, 3).await, (vec![1, 2, 3], 4));
    assert_eq!(log(3, 3).await, (vec![4], 4));
    assert_eq!(log(u64::MAX, 3).await, (vec![], 4));
    let events = stage.reader.list_events(service, 2, 1).await.unwrap();
    assert_eq!((events[0].sequence, events[0].full_name.as_str()), (3, "Ana Ng"));
    assert_eq!(stage.reader.check().await, Ok(()));
    *stage.reader.broken.lock().unwrap() = Some("why".to_owned());
    assert_eq!(stage.reader.check().await, Err(Error::Unavailable("why".to_owned())));
}

#[tokio::test]
async fn the_audit_log_is_read_from_any_number_and_time() {
    let stage = Stage::new().await;
    let service = stage.service().await;
    let mut noted = Vec::new();
    // Rows of 1, 2, 3 ... changes, 10 ms apart.
    let (mut first, mut sequence) = (1, 1);
    for row in 1..=30_u64 {
        let mut audit = Audit::default();
        for _ in 0..row {
            let kind = if sequence % 3 == 0 { EventKind::Edit } else { EventKind::Create };
            audit.note_contact(
                service,
                Origin::LOCAL,
                kind,
                ContactId::from_bytes([3; 16]),
                sequence,
            );
            sequence += 1;
        }
        for pending in audit.into_pending() {
            let at = Timestamp::from_millis(NOW.millis() + 10 * i64::try_from(row).unwrap());
            let entries = pending.entries();
            noted.push(pending.into_row(first, at));
            first += entries;
        }
    }
    audit::insert_rows(&stage.client, &noted).await.unwrap();
    let all = stage.entries(service).await;
    assert_eq!(all.len(), 465);
    let ask = async |query| stage.reader.list_audit(service, query).await.unwrap().unwrap();

    for limit in [1, 7, 100] {
        let (mut paged, mut after) = (Vec::new(), 0);
        loop {
            let page = ask(AuditQuery { after, limit, ..AuditQuery::default() }).await;
            paged.extend(page.entries);
            let Some(next) = page.next else { break };
            after = next;
        }
        assert_eq!(paged, all, "{limit}");
    }
    for row in [-5, 10, 11, 150, 155, 160, 300, 301] {
        let since = Some(Timestamp::from_millis(NOW.millis() + row));
        let page = ask(AuditQuery { since, limit: 500, ..AuditQuery::default() }).await;
        let expected = all.iter().filter(|entry| Some(entry.at) >= since).cloned();
        assert_eq!(page.entries, expected.collect::<Vec<_>>(), "{row}");
    }
    let action = Some(Action::ContactEdit);
    let page = ask(AuditQuery { action, after: 100, limit: 9, ..AuditQuery::default() }).await;
    let expected = all.iter().filter(|it| it.action == Action::ContactEdit && it.number > 100);
    assert_eq!(page.entries, expected.take(9).cloned().collect::<Vec<_>>());
    let nothing =
        ask(AuditQuery { action: Some(Action::Replay), limit: 9, ..AuditQuery::default() });
    assert_eq!(nothing.await.entries, []);
    let nowhere = ServiceId::from_bytes([9; 16]);
    let query = AuditQuery { limit: 9, ..AuditQuery::default() };
    assert_eq!(stage.reader.list_audit(nowhere, query).await, Ok(None));
}
