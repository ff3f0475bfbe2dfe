//! A database of its own for each test, on the server that `TEST_POSTGRES_URL` names.

use uuid::Uuid;

use super::connect::Target;
use super::migrate::migrate;

/// An empty database with the tables of this version; dropped at the end, whoever is still connected.
pub(in crate::store) struct TestDatabase {
    server: String,
    name: String,
    pub(in crate::store) url: String,
    pub(in crate::store) target: Target,
}

impl TestDatabase {
    pub(in crate::store) async fn new() -> Self {
        let server = std::env::var("TEST_POSTGRES_URL")
            .expect("TEST_POSTGRES_URL names a server: `make test` starts one");
        let name = format!("rollcall_test_{}", Uuid::now_v7().simple());
        run_on(&server, &format!("CREATE DATABASE {name}")).await;
        let (address, _) = server.rsplit_once('/').expect("a URL with a database");
        let url = format!("{address}/{name}");
        let target = Target::parse(&url).expect("a URL");
        migrate(&mut target.connect_plain().await.expect("a connection")).await.expect("tables");
        Self { server, name, url, target }
    }
}

async fn run_on(server: &str, sql: &str) {
    let client = Target::parse(server).expect("a URL").connect_plain().await.expect("a server");
    client.batch_execute(sql).await.expect("a statement");
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (server, name) = (self.server.clone(), self.name.clone());
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let sql = format!("DROP DATABASE {name} WITH (FORCE)");
            runtime.expect("a runtime").block_on(run_on(&server, &sql));
        });
        drop(dropped.join());
    }
}
