//! How much of its request rate each service has used up, for all nodes: what a node tells of the requests that it has let
//! in, and what it hears of all.
//!
//! A level is kept as the time at which it comes to zero by itself, on the database's clock. The table is not logged: after
//! a crash of PostgreSQL, and on a standby that takes over, every level begins at zero. On a connection of its own, so
//! that neither waits for the readers under load, which is when limits matter.

use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::change::{column, int, uint};
use super::connect::Target;
use super::{session, unavailable};
use crate::domain::id::ServiceId;
use crate::store::Error;

/// Longest time for one exchange: about as long as that between two. Then each node goes on by what it knows.
const EXCHANGE_WAIT: Duration = Duration::from_secs(1);
/// Highest level, in microseconds: two minutes' worth, which is more than nodes can come to together. It bounds what a
/// step back of the database's clock does.
const LEVEL_MAX: i64 = 120_000_000;
/// Exchanges of a node between two removals of services that are at zero.
const REMOVE_EVERY: u32 = 60;

/// The database's clock in microseconds.
const NOW: &str = "(extract(epoch FROM now()) * 1000000)::bigint";

/// What all nodes have to go by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// How many nodes there are, this one among them.
    pub nodes: usize,
    /// The services whose level is not at zero, with the time until it is.
    pub levels: Vec<(ServiceId, Duration)>,
}

/// A node's way to the levels.
#[derive(Debug)]
pub struct RequestLevels {
    target: Target,
    link: Option<ClientWrapper>,
    exchanges: u32,
}

impl RequestLevels {
    pub(super) const fn new(target: Target) -> Self {
        Self { target, link: None, exchanges: 0 }
    }

    /// Raises the level of each of these services by so much, and tells the levels of all.
    ///
    /// # Errors
    ///
    /// Unavailable: then nobody knows whether the levels were raised.
    pub async fn exchange(&mut self, spent: &[(ServiceId, Duration)]) -> Result<Heard, Error> {
        let heard = tokio::time::timeout(EXCHANGE_WAIT, self.try_exchange(spent)).await;
        let heard =
            heard.unwrap_or_else(|_| Err(Error::Unavailable("PostgreSQL: no answer".to_owned())));
        if heard.is_err() {
            // It may be in the middle of something.
            self.link = None;
        }
        heard
    }

    async fn try_exchange(&mut self, spent: &[(ServiceId, Duration)]) -> Result<Heard, Error> {
        let failed = |error: tokio_postgres::Error| unavailable(&error);
        if self.link.as_ref().is_none_or(|link| link.is_closed()) {
            self.link = Some(self.target.connect(|_| ()).await?);
        }
        let Some(link) = &self.link else {
            return Err(Error::Unavailable("no connection".to_owned()));
        };
        // In the order of their keys, like everybody who locks several.
        let raise = format!(
            "INSERT INTO request_levels AS l (service, empty_at) \
             SELECT s.service, {NOW} + s.spent FROM unnest($1::uuid[], $2::bigint[]) s (service, spent) \
             ORDER BY s.service ON CONFLICT (service) DO UPDATE SET empty_at = \
             least(greatest(l.empty_at - {NOW}, 0) + excluded.empty_at - {NOW}, {LEVEL_MAX}) + {NOW}"
        );
        let read =
            format!("SELECT service, empty_at - {NOW} FROM request_levels WHERE empty_at > {NOW}");
        let (raise, read, count) = futures_util::try_join!(
            link.prepare_cached(&raise),
            link.prepare_cached(&read),
            link.prepare_cached("SELECT count(*) FROM nodes"),
        )
        .map_err(failed)?;
        let services: Vec<Uuid> = spent.iter().map(|(service, _)| service.uuid()).collect();
        let micros = |time: &Duration| i64::try_from(time.as_micros()).unwrap_or(LEVEL_MAX);
        let times: Vec<i64> = spent.iter().map(|(_, time)| micros(time)).collect();
        let raised: [&(dyn ToSql + Sync); 2] = [&services, &times];
        // One after the other on the server, in one round trip.
        let (_, rows, nodes) = futures_util::try_join!(
            async { if spent.is_empty() { Ok(0) } else { link.execute(&raise, &raised).await } },
            link.query(&read, &[]),
            link.query_one(&count, &[]),
        )
        .map_err(failed)?;
        let mut levels = Vec::with_capacity(rows.len());
        for row in &rows {
            let left = uint(row, 1)?.min(u64::try_from(LEVEL_MAX).unwrap_or(u64::MAX));
            levels.push((ServiceId::from_uuid(column(row, 0)?), Duration::from_micros(left)));
        }
        let mut nodes = usize::try_from(uint(&nodes, 0)?).unwrap_or(usize::MAX);
        if self.exchanges == 0 {
            // A node that has just started is not among them yet.
            nodes += 1;
        }
        self.exchanges = self.exchanges.wrapping_add(1);
        if self.exchanges % REMOVE_EVERY == 0 {
            let remove = format!(
                "DELETE FROM request_levels WHERE service IN (SELECT service FROM request_levels \
                 WHERE empty_at < {NOW} FOR UPDATE SKIP LOCKED LIMIT $1)"
            );
            session::execute(link, &remove, &[&int(100_000)]).await.map_err(failed)?;
        }
        Ok(Heard { nodes: nodes.max(1), levels })
    }
}

#[cfg(test)]
mod tests {
    use super::{Heard, REMOVE_EVERY, RequestLevels};
    use crate::domain::id::ServiceId;
    use crate::store::postgres::test_database::TestDatabase;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn service(byte: u8) -> ServiceId {
        ServiceId::from_bytes([byte; 16])
    }

    fn level_of(heard: &Heard, byte: u8) -> Duration {
        let found = heard.levels.iter().find(|(of, _)| *of == service(byte));
        found.map_or(Duration::ZERO, |(_, level)| *level)
    }

    #[tokio::test]
    async fn levels_are_the_sum_of_what_nodes_tell_and_fall_by_themselves() {
        let database = TestDatabase::new().await;
        let [mut one, mut two] = [(); 2].map(|()| RequestLevels::new(database.target.clone()));

        let first = one.exchange(&[(service(1), 30 * SECOND), (service(2), SECOND)]).await.unwrap();
        let second = two.exchange(&[(service(1), 20 * SECOND)]).await.unwrap();

        assert_eq!(first.nodes, 1);
        assert!(level_of(&first, 1) > 28 * SECOND && level_of(&first, 1) <= 30 * SECOND);
        assert!(level_of(&second, 1) > 45 * SECOND && level_of(&second, 1) <= 50 * SECOND);
        tokio::time::sleep(SECOND).await;
        let third = one.exchange(&[]).await.unwrap();
        assert!(level_of(&third, 1) <= 49 * SECOND, "{third:?}");
        assert_eq!(level_of(&third, 2), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_level_has_an_end_and_what_is_at_zero_is_removed() {
        let database = TestDatabase::new().await;
        let mut node = RequestLevels::new(database.target.clone());
        let client = database.target.connect(|_| ()).await.unwrap();
        // As after a step of the clock by an hour.
        client
            .batch_execute(
                "INSERT INTO request_levels VALUES ('01010101-0101-0101-0101-010101010101', \
                 (extract(epoch FROM now()) * 1000000)::bigint + 3600000000), \
                 ('02020202-0202-0202-0202-020202020202', 1)",
            )
            .await
            .unwrap();

        let heard = node.exchange(&[(service(1), SECOND)]).await.unwrap();
        assert!(level_of(&heard, 1) <= 120 * SECOND, "{heard:?}");
        for _ in 0..REMOVE_EVERY {
            node.exchange(&[]).await.unwrap();
        }

        let left = client.query_one("SELECT count(*) FROM request_levels", &[]).await.unwrap();
        assert_eq!(left.get::<_, i64>(0), 1);
    }

    #[tokio::test]
    async fn an_exchange_goes_on_after_its_connection_was_cut() {
        let database = TestDatabase::new().await;
        let mut node = RequestLevels::new(database.target.clone());
        node.exchange(&[(service(1), 30 * SECOND)]).await.unwrap();
        let client = database.target.connect(|_| ()).await.unwrap();
        client
            .batch_execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
            .await
            .unwrap();

        let mut heard = node.exchange(&[]).await;
        if heard.is_err() {
            heard = node.exchange(&[]).await;
        }

        assert!(level_of(&heard.unwrap(), 1) > 25 * SECOND);
    }
}
