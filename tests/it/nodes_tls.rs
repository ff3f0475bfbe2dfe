//! The way to PostgreSQL is encrypted, and goes to nobody whose certificate is not the right one.

use std::path::PathBuf;

use crate::harness::certificates::Authority;
use crate::harness::postgres::Postgres;
use crate::harness::server::TestServer;

/// A directory of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rollcall-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[tokio::test]
async fn certificate_of_postgresql_is_verified() {
    let (folder, other_folder) = (Folder::new("one"), Folder::new("other"));
    let (authority, stranger) = (Authority::new(&folder.0), Authority::new(&other_folder.0));
    let mut postgres = Postgres::start().await;
    let url_with = |url: String, authority: &Authority| {
        format!("{url}?sslmode=verify-full&sslrootcert={}", authority.root_path().display())
    };
    let refusal = |url: &str| {
        let (code, said) = TestServer::builder().node(url, "one").start_and_fail();
        assert_eq!(code, Some(1), "{said}");
        said
    };

    // Without TLS on the other side nothing is sent in the clear in its place.
    let url = url_with(postgres.url(), &authority);
    let said = refusal(&url);
    assert!(said.contains("TLS"), "{said}");

    postgres.restart_with_tls(&authority.issue()).await;
    let node = TestServer::builder().node(&url, "one").start().await;
    node.app().create_contact("Ana", "Reyes").await;
    let sessions = postgres
        .connect()
        .await
        .query_one(
            "SELECT count(*), count(*) FILTER (WHERE s.ssl AND s.version IN ('TLSv1.2', 'TLSv1.3')) \
             FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) \
             WHERE a.application_name = 'rollcall'",
            &[],
        )
        .await
        .unwrap();
    let (all, encrypted): (i64, i64) = (sessions.get(0), sessions.get(1));
    assert!(all >= 4 && all == encrypted, "{encrypted} of {all} sessions are encrypted");
    drop(node);

    let said = refusal(&url_with(postgres.url(), &stranger));
    assert!(said.contains("certificate"), "{said}");
    postgres.restart_with_tls(&authority.issue_for("database.example")).await;
    let said = refusal(&url);
    assert!(said.contains("certificate"), "{said}");
}
