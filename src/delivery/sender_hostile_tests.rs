//! Receivers that answer without end or measure: each costs at most the time of one attempt and a bounded part of memory.

use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::connections::setup_checking;
use super::receiver::{Receiver, acceptor, trusting_client};
use super::{Setup, answer_to, attempt, delivered, failed, setup, setup_with};
use crate::delivery::outcome::Outcome;
use crate::delivery::sender::Step;

/// Time for an attempt in these tests.
const TIMEOUT: Duration = Duration::from_millis(500);
/// What an attempt may take beyond it on a slow machine.
const MARGIN: Duration = Duration::from_secs(5);
/// Bytes that a receiver sends at most, far beyond every limit.
const FLOOD_BYTES: usize = 32 << 20;
/// Bytes that may be under way in the buffers of both sockets when the other end has gone.
const SOCKETS_BYTES: usize = 12 << 20;

/// Sends the piece again and again; gives how many bytes were taken until the other end had enough.
async fn flood(stream: &mut (impl AsyncWrite + Unpin), piece: &[u8]) -> usize {
    let piece = piece.repeat((16 * 1024 / piece.len()).max(1));
    let mut taken = 0;
    while taken < FLOOD_BYTES && stream.write_all(&piece).await.is_ok() {
        taken += piece.len();
    }
    taken
}

/// A receiver that sends a start and then the piece without end, and notes how much was taken.
async fn flooding(start: &'static [u8], piece: &'static [u8]) -> Receiver {
    Receiver::start(move |receiver, _, mut stream| async move {
        receiver.read(&mut stream).await?;
        stream.write_all(start).await.ok()?;
        let taken = flood(&mut stream, piece).await;
        receiver.note(format!("taken {taken}"));
        None
    })
    .await
}

async fn until_noted(receiver: &Receiver, start: &str, case: &str) -> String {
    let started = Instant::now();
    loop {
        if let Some(note) = receiver.requests().iter().find(|note| note.starts_with(start)) {
            return note.clone();
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{case}: {:?}", receiver.requests());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn floods_of_every_part_of_an_answer_end_with_the_limit_or_the_time() {
    let chunked = b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n";
    let last = b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n0\r\n";
    let extended = b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n1;";
    for (start, piece, status) in [
        (&b"HTTP/1.1 200 OK\r\n"[..], &b"a: b\r\n"[..], None),
        (b"HTTP/1.1 200 OK\r\nx: ", b"y", None),
        (b"HTTP/1.1 200 ", b"y", None),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", None),
        (b"", b"HTTP/1.1 103 Hints\r\nlink: </x>\r\n\r\n", None),
        (b"", b"\r\n", None),
        (chunked, b"1\r\nx\r\n", Some(500)),
        (last, b"t: v\r\n", Some(500)),
        (extended, b"e=v;", Some(500)),
        (b"HTTP/1.0 500 No\r\n\r\n", b"x", Some(500)),
    ] {
        let receiver = flooding(start, piece).await;
        let Setup { sender, .. } = setup_with(trusting_client(), |it| it.request_timeout = TIMEOUT);
        let line = sender.line(&receiver.url("/")).unwrap();
        let started = Instant::now();

        let got = attempt(&sender, &line).await;

        let case = String::from_utf8_lossy(&[start, piece].concat()).into_owned();
        assert!(started.elapsed() < TIMEOUT + MARGIN, "{case}: {:?}", started.elapsed());
        assert_eq!((got.outcome, got.status), (Outcome::Failed, status), "{case}");
        assert!(got.answer_start.len() <= 1024, "{case}");
        drop((line, sender));
        let note = until_noted(&receiver, "taken ", &case).await;
        let taken: usize = note["taken ".len()..].parse().unwrap();
        let endless_1xx = piece.starts_with(b"HTTP/1.1 1");
        assert!(endless_1xx || taken < SOCKETS_BYTES, "{case}: {taken} bytes were taken");
    }
}

#[tokio::test]
async fn a_head_that_trickles_has_the_time_of_the_attempt() {
    let receiver = Receiver::start(|receiver, _, mut stream| async move {
        receiver.read(&mut stream).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await.ok()?;
        loop {
            stream.write_all(b"y").await.ok()?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let Setup { sender, .. } = setup_with(trusting_client(), |it| it.request_timeout = TIMEOUT);
    let started = Instant::now();

    let got = attempt(&sender, &sender.line(&receiver.url("/")).unwrap()).await;

    assert_eq!(got, failed(Step::Timeout));
    assert!(started.elapsed() < TIMEOUT + MARGIN, "{:?}", started.elapsed());
}

#[tokio::test]
async fn compressed_answers_are_kept_as_they_came() {
    let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\xae\x05\x00";
    let head = format!(
        "HTTP/1.1 500 No\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n",
        gzip.len()
    );

    let got = answer_to([head.as_bytes(), gzip].concat()).await;

    assert_eq!(&got.answer_start[..], gzip);
}

#[tokio::test]
async fn answers_with_two_lengths_do_not_reach_the_next_attempt() {
    let two = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n";
    let receiver = Receiver::answering(&two[..]).await;
    let Setup { sender, .. } = setup();
    let line = sender.line(&receiver.url("/")).unwrap();

    for _ in 0..5 {
        let got = attempt(&sender, &line).await;

        assert_ne!(got.outcome, Outcome::Gone, "an answer that nobody asked for was taken");
    }
}

/// One frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Reads frames until a request begins; gives its stream.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<u32> {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut payload).await.ok()?;
        if head[3] == HEADERS {
            return Some(u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
        }
    }
}

/// What a hostile receiver sends on the stream of each request: a start, and a piece without end (none: it waits).
type Hostile = fn(u32) -> (Vec<u8>, Vec<u8>);

/// What it does with what we send meanwhile.
#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    Takes,
    TakesNothing,
}

async fn http2_receiver(hostile: Hostile, meanwhile: Meanwhile) -> Receiver {
    Receiver::start(move |receiver, _, stream| async move {
        let mut stream = acceptor(&["h2"]).accept(stream).await.ok()?;
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.ok()?;
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.ok()?;
        while let Some(id) = read_request(&mut stream).await {
            receiver.note("request");
            let (start, piece) = hostile(id);
            stream.write_all(&start).await.ok()?;
            if !piece.is_empty() {
                let (mut reader, mut writer) = tokio::io::split(stream);
                let taking = async {
                    let mut sink = tokio::io::sink();
                    match meanwhile {
                        Meanwhile::Takes => drop(tokio::io::copy(&mut reader, &mut sink).await),
                        Meanwhile::TakesNothing => {}
                    }
                    std::future::pending::<usize>().await
                };
                let taken = tokio::select! {
                    taken = flood(&mut writer, &piece) => taken,
                    never = taking => never,
                };
                receiver.note(format!("taken {taken}"));
                return None;
            }
        }
        None
    })
    .await
}

#[tokio::test]
async fn floods_of_http2_frames_end_with_the_limit_or_the_time() {
    // Literal header without a name in the table: `x: ` and 100 bytes.
    fn field() -> Vec<u8> {
        [&[0x00, 0x01, b'x', 100][..], &[b'y'; 100]].concat()
    }
    let cases: [(&str, Hostile); 5] = [
        ("continuations without end", |id| {
            (frame(HEADERS, 0, id, &[0x88]), frame(CONTINUATION, 0, id, &field()))
        }),
        ("empty continuations without end", |id| {
            (frame(HEADERS, 0, id, &[0x88]), frame(CONTINUATION, 0, id, &[]))
        }),
        ("pings without end", |_| (Vec::new(), frame(PING, 0, 0, &[7; 8]))),
        ("settings without end", |_| (Vec::new(), frame(SETTINGS, 0, 0, &[]))),
        ("frames of an unknown kind without end", |_| (Vec::new(), frame(0xBB, 0, 0, &[0; 64]))),
    ];
    let both = |(case, hostile)| {
        [(case, hostile, Meanwhile::Takes), (case, hostile, Meanwhile::TakesNothing)]
    };
    for (case, hostile, meanwhile) in cases.into_iter().flat_map(both) {
        let case = format!("{case}, {meanwhile:?}");
        let receiver = http2_receiver(hostile, meanwhile).await;
        let Setup { sender, .. } = setup_checking(TIMEOUT, |it| it.request_timeout = TIMEOUT);
        let url = format!("https://hooks.example.com:{}/", receiver.address.port());
        let line = sender.line(&url).unwrap();
        let started = Instant::now();

        let got = attempt(&sender, &line).await;

        assert_eq!((got.outcome, got.status), (Outcome::Failed, None), "{case}");
        assert!(started.elapsed() < 2 * TIMEOUT + MARGIN, "{case}: {:?}", started.elapsed());
        drop((line, sender));
        until_noted(&receiver, "taken ", &case).await;
        assert!(receiver.connections() <= 2, "{case}: {}", receiver.connections());
    }
}

#[tokio::test]
async fn a_header_list_of_http2_over_16_kib_is_refused() {
    let receiver = http2_receiver(
        |id| {
            let field = [&[0x00, 0x01, b'x', 100][..], &[b'y'; 100]].concat();
            let start = frame(HEADERS, 0, id, &[0x88]);
            let rest = frame(CONTINUATION, END_HEADERS, id, &field.repeat(150));
            ([start, rest].concat(), Vec::new())
        },
        Meanwhile::Takes,
    )
    .await;
    let Setup { sender, .. } = setup_with(trusting_client(), |it| it.request_timeout = TIMEOUT);
    let url = format!("https://hooks.example.com:{}/", receiver.address.port());

    let got = attempt(&sender, &sender.line(&url).unwrap()).await;

    assert_eq!((got.outcome, got.status), (Outcome::Failed, None));
}

#[tokio::test]
async fn a_receiver_that_resets_every_stream_gets_each_request_at_most_twice() {
    let receiver = http2_receiver(
        |id| (frame(RST_STREAM, 0, id, &[0, 0, 0, 7]), Vec::new()),
        Meanwhile::Takes,
    )
    .await;
    let Setup { sender, .. } = setup_with(trusting_client(), |it| it.request_timeout = TIMEOUT);
    let url = format!("https://hooks.example.com:{}/", receiver.address.port());
    let line = sender.line(&url).unwrap();

    for _ in 0..20 {
        let got = attempt(&sender, &line).await;
        assert_eq!((got.outcome, got.status), (Outcome::Failed, None));
    }

    let requests = receiver.requests().iter().filter(|note| *note == "request").count();
    assert!((20..=40).contains(&requests), "{requests} requests for 20 attempts");
    assert!(receiver.connections() <= 40, "{}", receiver.connections());
    let well = Receiver::answering(super::OK).await;
    assert_eq!(attempt(&sender, &sender.line(&well.url("/")).unwrap()).await, delivered());
}
