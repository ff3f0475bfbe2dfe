//! What `rollcall dev` asks of its server at the first start and at later ones.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::{DevCredentials, called, prepare, quoted, text};

type Requests = Arc<Mutex<Vec<String>>>;

/// A server that answers as the administration API does and knows one `AppToken`.
async fn serve(requests: Requests) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let requests = Arc::clone(&requests);
            let answer = service_fn(move |request| {
                let answer = answer(&requests, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await);
        }
    });
    base_url
}

fn answer(requests: &Requests, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let line = format!("{} {}", request.method(), request.uri());
    let (status, body) = match line.as_str() {
        "POST /v1/admin/services" => (201, r#"{"code":201,"result":{"serviceId":"srv_1"}}"#),
        "POST /v1/admin/services/srv_1/apps" => {
            (201, r#"{"code":201,"result":{"appID":"app_1","appToken":"rct_1"}}"#)
        }
        _ if request.headers()["authorization"] == "Bearer rct_1" => {
            (200, r#"{"code":200,"result":{"items":[]}}"#)
        }
        _ => (401, r#"{"code":6452000,"message":"Invalid token"}"#),
    };
    requests.lock().unwrap().push(line);
    Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap()
}

fn data_dir(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("rollcall-dev-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

#[tokio::test]
async fn first_start_makes_service_and_app_and_later_starts_reuse_them() {
    let requests = Requests::default();
    let data_dir = data_dir("reuse");
    let mut kept = DevCredentials {
        base_url: serve(Arc::clone(&requests)).await,
        admin_token: "rca_1".to_owned(),
        data_dir: data_dir.clone(),
        ..DevCredentials::default()
    };

    prepare(&mut kept).await.unwrap();
    let mut again = DevCredentials::find(&data_dir).unwrap();
    prepare(&mut again).await.unwrap();
    again.app_token = "rct_of_another_store".to_owned();
    prepare(&mut again).await.unwrap();

    let mode = std::fs::metadata(data_dir.join("dev.json")).unwrap().permissions().mode();
    std::fs::remove_dir_all(&data_dir).unwrap();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(again.app_token, "rct_1");
    let made = ["POST /v1/admin/services", "POST /v1/admin/services/srv_1/apps"];
    let asked = ["GET /v1/api/apps/app_1/event-hooks"];
    assert_eq!(*requests.lock().unwrap(), [&made[..], &asked, &asked, &made].concat());
}

#[test]
fn commands_to_paste_carry_the_credentials() {
    let kept = DevCredentials {
        base_url: "http://127.0.0.1:1".to_owned(),
        app_id: "app_1".to_owned(),
        app_token: "rct_1".to_owned(),
        ..DevCredentials::default()
    };

    let text = text(&kept, "target/x/rollcall", "ROLLCALL_DATA_DIR=/d ");

    let listen = "  target/x/rollcall listen --url http://127.0.0.1:1 --app app_1 --token rct_1\n";
    assert!(text.contains(listen), "{text}");
    assert!(text.contains("APP=http://127.0.0.1:1/v1/api/apps/app_1\n"));
    assert!(text.contains(r#"-d '{"jobTitle":"Team lead"}'"#));
    assert!(text.ends_with("  ROLLCALL_DATA_DIR=/d target/x/rollcall staff list"));
    assert_eq!(text.matches(r"  curl -w '\n' ").count(), text.matches("  curl ").count());
    assert!(!text.contains('<'), "nothing is left to fill in");
}

#[test]
fn program_is_called_as_a_shell_in_this_directory_finds_it() {
    let called = |path: &str| quoted(&called(Path::new(path), Path::new("/home/ana")));

    assert_eq!(called("/home/ana/target/debug/rollcall"), "target/debug/rollcall");
    assert_eq!(called("/home/ana/rollcall"), "./rollcall");
    assert_eq!(called("/usr/bin/rollcall"), "/usr/bin/rollcall");
    assert_eq!(called("/opt/Ana's tools/rollcall"), r"'/opt/Ana'\''s tools/rollcall'");
}
