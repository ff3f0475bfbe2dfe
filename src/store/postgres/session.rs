//! Statements on a connection or in a transaction of one, each prepared once by its connection.

use deadpool_postgres::{ClientWrapper, Object, Transaction};
use futures_util::TryStreamExt;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row, RowStream, Statement};

/// Where a statement can be run. `deadpool_postgres` has a trait like this, but not for connections without a pool.
pub(super) trait Session: Sync {
    fn prepare_cached(&self, sql: &str) -> impl Future<Output = Result<Statement, Error>> + Send;

    fn execute_prepared(
        &self,
        statement: &Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> impl Future<Output = Result<u64, Error>> + Send;

    fn query_prepared(
        &self,
        statement: &Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> impl Future<Output = Result<RowStream, Error>> + Send;
}

macro_rules! session {
    ($($name:ty => $inner:ty,)*) => {$(
        impl Session for $name {
            async fn prepare_cached(&self, sql: &str) -> Result<Statement, Error> {
                <$name>::prepare_cached(self, sql).await
            }

            async fn execute_prepared(
                &self,
                statement: &Statement,
                params: &[&(dyn ToSql + Sync)],
            ) -> Result<u64, Error> {
                <$inner>::execute(self, statement, params).await
            }

            async fn query_prepared(
                &self,
                statement: &Statement,
                params: &[&(dyn ToSql + Sync)],
            ) -> Result<RowStream, Error> {
                <$inner>::query_raw(self, statement, params.iter().copied()).await
            }
        }
    )*};
}

session! {
    ClientWrapper => tokio_postgres::Client,
    Transaction<'_> => tokio_postgres::Transaction<'_>,
}

impl Session for Object {
    async fn prepare_cached(&self, sql: &str) -> Result<Statement, Error> {
        ClientWrapper::prepare_cached(self, sql).await
    }

    async fn execute_prepared(
        &self,
        statement: &Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Error> {
        Session::execute_prepared(&**self, statement, params).await
    }

    async fn query_prepared(
        &self,
        statement: &Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<RowStream, Error> {
        Session::query_prepared(&**self, statement, params).await
    }
}

/// Runs a statement; gives the number of rows it changed.
pub(super) async fn execute<S: Session>(
    session: &S,
    sql: &str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<u64, Error> {
    let statement = session.prepare_cached(sql).await?;
    session.execute_prepared(&statement, params).await
}

/// The rows that a statement gives, one by one as they arrive.
pub(super) async fn stream<S: Session>(
    session: &S,
    sql: &str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<RowStream, Error> {
    let statement = session.prepare_cached(sql).await?;
    session.query_prepared(&statement, params).await
}

/// The rows that a statement gives.
pub(super) async fn query<S: Session>(
    session: &S,
    sql: &str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Row>, Error> {
    stream(session, sql, params).await?.try_collect().await
}

/// The first row that a statement gives, if any.
pub(super) async fn query_opt<S: Session>(
    session: &S,
    sql: &str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<Option<Row>, Error> {
    Ok(query(session, sql, params).await?.into_iter().next())
}
