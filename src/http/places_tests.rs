//! Who gets a place, and who leaves it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{IDLE_MIN, LEAVING_MAX, LOG_INTERVAL, Place, Places, Taken};
use crate::http::connection::ConnectionProgress;
use crate::http::listener::serve;

async fn admit(places: &Arc<Places>, address: &str) -> Option<Place> {
    let peer: IpAddr = address.parse().unwrap();
    let free = places.wait().await;
    places.admit(free, peer, &CancellationToken::new())
}

#[tokio::test]
async fn one_address_has_so_many_places_and_takes_none_of_another() {
    let places = Arc::new(Places::with_total(10, 2, Vec::new()));

    let first = admit(&places, "192.0.2.1").await.unwrap();
    let second = admit(&places, "192.0.2.1").await.unwrap();
    assert!(admit(&places, "192.0.2.1").await.is_none());
    let other = admit(&places, "192.0.2.2").await.unwrap();
    drop(first);
    let third = admit(&places, "192.0.2.1").await.unwrap();
    assert!(admit(&places, "192.0.2.1").await.is_none());

    drop((second, third, other));
    assert!(places.lock().by_address.is_empty() && places.lock().seats.is_empty());
    assert_eq!(places.all.available_permits(), 10);
}

#[tokio::test]
async fn ipv6_counts_by_its_64_and_proxies_do_not_count() {
    let places = Arc::new(Places::with_total(10, 1, vec!["10.0.0.0/8".parse().unwrap()]));

    let one = admit(&places, "2001:db8::1").await;
    assert!(one.is_some());
    assert!(admit(&places, "2001:db8::2").await.is_none());
    let beside = admit(&places, "2001:db8:0:1::1").await;
    assert!(beside.is_some());
    let proxied = [admit(&places, "10.0.0.1").await, admit(&places, "10.0.0.1").await];
    assert!(proxied.iter().all(Option::is_some));
    let off = Arc::new(Places::with_total(10, 0, Vec::new()));
    let all = [admit(&off, "192.0.2.1").await, admit(&off, "192.0.2.1").await];
    assert!(all.iter().all(Option::is_some));
}

#[tokio::test]
async fn the_longest_idle_leave_when_all_places_are_taken() {
    let places = Arc::new(Places::with_total(LEAVING_MAX + 3, 0, Vec::new()));
    let mut held = Vec::new();
    for _ in 0..LEAVING_MAX + 3 {
        held.push(admit(&places, "192.0.2.1").await.unwrap());
    }
    // The first shakes hands, the second is in a request, the others are idle.
    for place in &held[2..] {
        place.watch(ConnectionProgress::of_new_connection());
        tokio::time::sleep(Duration::from_micros(10)).await;
    }
    let busy = ConnectionProgress::of_new_connection();
    let _note = busy.begin_request(false);
    held[1].watch(busy);

    places.make_room(Instant::now());
    assert!(held.iter().all(|place| !place.leave.is_cancelled()), "none is idle for long");
    places.make_room(Instant::now() + IDLE_MIN);

    let left: Vec<bool> = held.iter().map(|place| place.leave.is_cancelled()).collect();
    let mut expected = vec![true; LEAVING_MAX + 3];
    for stays in [0, 1, LEAVING_MAX + 2] {
        expected[stays] = false;
    }
    assert_eq!(left, expected);
}

#[tokio::test]
async fn whoever_waits_for_a_place_gets_the_first_that_is_free() {
    let places = Arc::new(Places::with_total(1, 0, Vec::new()));
    let held = admit(&places, "192.0.2.1").await.unwrap();
    assert!(timeout(Duration::from_millis(150), places.wait()).await.is_err());

    drop(held);

    assert!(timeout(Duration::from_secs(20), places.wait()).await.is_ok());
}

#[test]
fn refused_connections_are_told_once_in_a_while() {
    let mut taken = Taken::default();
    let start = Instant::now();

    taken.note_refused(start);
    assert_eq!(taken.refused, 0, "the first is told at once");
    taken.note_refused(start + LOG_INTERVAL / 2);
    taken.note_refused(start + LOG_INTERVAL / 2);
    assert_eq!(taken.refused, 2, "these are counted");
    taken.note_refused(start + LOG_INTERVAL);

    assert_eq!(taken.refused, 0);
}

#[tokio::test]
async fn idle_connections_make_room_for_callers_that_wait() {
    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let places = Arc::new(Places::with_total(2, 0, Vec::new()));
    let router = axum::Router::new().route("/", axum::routing::get(async || ""));
    tokio::spawn(serve(listener, None, places, router, stop.clone(), TaskTracker::new()));
    let ask = async || {
        let mut caller = TcpStream::connect(address).await.unwrap();
        caller.write_all(GET).await.unwrap();
        let mut start = [0; 12];
        timeout(Duration::from_secs(20), caller.read_exact(&mut start)).await.unwrap().unwrap();
        assert_eq!(&start, b"HTTP/1.1 200");
        caller
    };

    // Each keeps its connection; without room being made the third would wait for 75 s.
    let mut kept = Vec::new();
    for _ in 0..4 {
        kept.push(ask().await);
    }
    stop.cancel();
}
