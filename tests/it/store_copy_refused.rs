//! What `rollcall store copy` and a node refuse before they make anything.

use crate::harness::postgres::Database;
use crate::harness::server::TestServer;
use crate::store_copy::{STOP, command, copy, on_database, refuses_to_start, serving, text};
use crate::store_copy_killed::refused;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_place_for_a_store_is_refused_before_anything_is_made() {
    let mut server = serving(TestServer::builder()).start().await;
    server.terminate(STOP).await.unwrap();
    let first = server.data_dir();
    let here = first.parent().unwrap().to_owned();
    for to in [
        "",
        "embedded",
        "mysql://u:s3cret@h/d",
        "Postgres://u:s3cret@h/d",
        "postgres:/u:s3cret@h/d",
        "host=h user=u password=s3cret dbname=d",
        "postgres://u:s3@cret@h/d",
        "postgres://u:s3cret@h",
    ] {
        let mut command = command(text(&first), to);
        let output = command.current_dir(&here).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{to}: {said}");
        assert!(said.contains("the target") || said.contains("of the target"), "{to}: {said}");
        assert!(!said.contains("s3cret") && !said.contains("s3@cret"), "{said}");
    }
    let said = refused(text(&first), text(&first));
    assert!(said.contains("the same store"), "{said}");
    let full = here.join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("x"), "x").unwrap();
    let said = refused(text(&first), text(&full));
    assert!(said.contains("something else in it"), "{said}");
    assert_eq!(std::fs::read_dir(&full).unwrap().count(), 1);

    copy(text(&first), text(&here.join("second")));
    // The source is sealed now: nothing is made for what cannot be copied.
    let said = refused(text(&first), text(&here.join("third")));
    assert!(said.contains("is sealed"), "{said}");
    assert!(!here.join("third").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_hold_every_name_is_refused() {
    let database = Database::create_with("ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0").await;
    let said = refuses_to_start(&on_database(
        &database.url(),
        "QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkI=",
    ));
    assert!(said.contains("encoding LATIN1") && said.contains("UTF8"), "{said}");
}
