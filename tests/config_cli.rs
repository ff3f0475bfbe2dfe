//! The program as an operator meets it: exit codes, where messages go, and whose credentials are used.

#![cfg(test)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A directory that goes away with the value.
struct TestDir(PathBuf);

impl TestDir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rollcall-cli-{}-{name}", std::process::id()));
        std::fs::create_dir_all(path.join("rollcall-data")).unwrap();
        Self(path)
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn command(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    command.args(arguments.split(' '));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ROLLCALL_") {
            command.env_remove(name);
        }
    }
    command
}

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn in_dir(dir: &Path, arguments: &str) -> (i32, String, String) {
    run(command(arguments).current_dir(dir))
}

#[test]
fn good_configuration_is_ok_and_names_its_file() {
    let dir = TestDir::new("good");
    std::fs::write(dir.0.join("a.toml"), "max_in_flight = 3\n").unwrap();

    let (code, out, _) = in_dir(&dir.0, "config check --config a.toml");
    assert_eq!((code, out.as_str()), (0, "ok (a.toml)\n"));

    let (code, out, _) = in_dir(&dir.0, "config show --effective --config a.toml");
    assert_eq!(code, 0);
    assert!(out.lines().any(|line| {
        line.split_whitespace().collect::<Vec<_>>().join(" ")
            == "max_in_flight \"3\" the file a.toml"
    }));
}

#[test]
fn faults_go_to_standard_error_with_exit_code_2() {
    for arguments in ["config check", "serve", "dev", "dev --json"] {
        let mut command = command(&format!("{arguments} --max-in-flight 0"));
        let (code, out, err) = run(command.env("ROLLCALL_NO_SUCH", "x"));

        assert_eq!((code, out.as_str()), (2, ""), "{arguments}");
        assert!(err.starts_with("error: 2 faults in the configuration\n"), "{err}");
    }
}

#[test]
fn help_tells_the_exit_codes() {
    let (code, out, _) = run(&mut command("--help"));

    assert_eq!(code, 0);
    assert!(out.contains("Exit codes:\n  0    done"), "{out}");
}

#[test]
fn server_that_cannot_be_reached_is_exit_code_1_with_a_hint() {
    // Port 1 is reserved and nothing listens there.
    let (code, out, err) = run(&mut command("service list --url http://127.0.0.1:1 --token x"));

    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("is `rollcall serve` or `rollcall dev` running at 127.0.0.1:1?"), "{err}");
}

#[test]
fn credentials_of_dev_go_only_to_the_server_and_app_they_belong_to() {
    let dir = TestDir::new("credentials");
    let credentials = r#"{"baseURL":"http://127.0.0.1:1","adminToken":"a","serviceId":"s",
        "appID":"app_1","appToken":"t","dataDir":"d"}"#;
    std::fs::write(dir.0.join("rollcall-data/dev.json"), credentials).unwrap();

    // Exit code 1: the credentials were taken, and the server is not there.
    assert_eq!(in_dir(&dir.0, "staff list").0, 1);
    assert_eq!(in_dir(&dir.0, "staff list --app app_1 --url http://127.0.0.1:1/").0, 1);
    assert_eq!(in_dir(&dir.0, "service list").0, 1);
    // Exit code 2: they were not.
    assert_eq!(in_dir(&dir.0, "staff list --app app_2").0, 2);
    assert_eq!(in_dir(&dir.0, "staff list --url http://127.0.0.1:2").0, 2);
    assert_eq!(in_dir(&dir.0, "service list --url http://127.0.0.1:2").0, 2);
}

#[test]
fn listen_ends_in_order_on_sigterm() {
    let dir = TestDir::new("listen");
    let mut child = command("listen --port 0")
        .current_dir(&dir.0)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();

    let killed = Command::new("kill").arg(child.id().to_string()).status().unwrap();

    assert!(line.starts_with("listening on http://127.0.0.1:"), "{line}");
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// The key that all nodes of a PostgreSQL are given.
const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
/// Port 1 is reserved and nothing listens there.
const STORE: &str = "postgres://me:hunter2@127.0.0.1:1/rollcall";

#[test]
fn store_of_several_nodes_is_for_serve_only_and_its_url_is_never_shown() {
    let refused = |arguments: &str, with_key: bool| {
        let mut command = command(&format!("{arguments} --store {STORE}"));
        if with_key {
            command.env("ROLLCALL_SECRET_KEY", KEY);
        }
        let (code, out, err) = run(&mut command);
        assert!(out.is_empty() && !err.contains("hunter2"), "{out}{err}");
        (code, err)
    };

    let (code, err) = refused("serve --listen 127.0.0.1:0", true);
    assert!(code == 1 && err.contains("with PostgreSQL"), "{err}");
    let (code, err) = refused("serve", false);
    assert!(code == 2 && err.contains("secret_key from the defaults"), "{err}");
    let (code, err) = refused("dev", true);
    assert!(code == 2 && err.contains("`rollcall dev` has the embedded store only"), "{err}");
}

#[test]
fn commands_on_a_closed_store_tell_postgresql_from_a_data_directory() {
    let dir = TestDir::new("postgres");
    for (arguments, remedy) in [
        ("key rotate", "behind the earlier one on one node after the other"),
        ("key reset", "in postgres://127.0.0.1:1/rollcall; stop every node"),
        ("admin-token reset", "in postgres://127.0.0.1:1/rollcall; stop every node"),
    ] {
        if !arguments.contains("rotate") {
            let mut both = command(&format!("{arguments} --data-dir /nowhere"));
            let (code, out, err) = run(both.env("ROLLCALL_STORE", STORE).current_dir(&dir.0));
            assert_eq!((code, out.as_str()), (1, ""), "{err}");
            assert!(err.contains("both a data directory and a PostgreSQL are named"), "{err}");
        }
        let mut command = command(arguments);
        command.env("ROLLCALL_STORE", STORE).env_remove("ROLLCALL_SECRET_KEY");
        let (code, out, err) = run(command.current_dir(&dir.0));
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains(remedy) && !err.contains("hunter2"), "{err}");

        let (code, _, err) = in_dir(&dir.0, arguments);
        assert!(code == 1 && err.contains("set ROLLCALL_STORE"), "{err}");
    }
}
