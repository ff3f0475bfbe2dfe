//! Verdicts on heads, bodies and what lies between; and the scan by lines against one that looks at every byte.

use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};

use super::{HEADS_AHEAD_MAX, HeadScan, Verdict, bytewise};

fn check(reads: &[&str], verdict: Verdict) {
    let mut scan = HeadScan::default();
    for read in reads {
        scan.feed(read.as_bytes());
    }

    assert_eq!(scan.take(), verdict, "{reads:?}");
}

#[test]
fn both_headers_are_seen_in_any_order_case_and_cut() {
    check(&["GET / HTTP/1.1\r\nHost: a\r\n\r\n"], Verdict::Clear);
    check(&["POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"], Verdict::Clear);
    check(&["POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"], Verdict::Clear);
    check(
        &["POST / HTTP/1.1\r\ncontent-LENGTH: 2\r\nTransfer-enc", "oding: chunked\r\n\r\n"],
        Verdict::TwoLengths,
    );
    check(
        &["POST / HTTP/1.1\nTransfer-Encoding: chunked\nContent-Length: 2\n\n"],
        Verdict::TwoLengths,
    );
    check(
        &["POST /content-length: HTTP/1.1\r\nX: content-length: 1\r\ntransfer-encoding: x\r\n\r\n"],
        Verdict::Clear,
    );
    check(&["POST / HTTP/1.1\r\nContent-Length: 2\r\n"], Verdict::Unsure);
}

#[test]
fn the_next_head_is_found_behind_a_body() {
    let mut scan = HeadScan::default();
    scan.feed(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{");
    assert_eq!(scan.take(), Verdict::Clear);
    scan.feed(b"}");
    scan.feed(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r");
    assert_eq!(scan.take(), Verdict::Clear);
    scan.feed(b"\n\r\n");

    scan.feed(b"POST / HTTP/1.1\r\nTransfer-Encoding: x\r\nContent-Length: 1\r\n\r\n");

    assert_eq!(scan.take(), Verdict::TwoLengths);
}

#[test]
fn heads_that_came_early_are_judged_one_by_one() {
    let mut scan = HeadScan::default();
    scan.feed(
        b"GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}POST / HTTP/1.1\r\n",
    );
    assert_eq!(scan.take(), Verdict::Clear);
    assert_eq!(scan.take(), Verdict::Clear);

    scan.feed(b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n");

    assert_eq!(scan.take(), Verdict::TwoLengths);
}

#[test]
fn a_head_behind_a_plain_chunked_body_is_judged_and_behind_any_other_not() {
    let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let behind = "POST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n";
    for (body, verdict) in [
        ("0\r\n\r\n", Verdict::TwoLengths),
        ("2\r\n{}\r\n0\r\n\r\n", Verdict::TwoLengths),
        ("0\r\nX-Trailer: 0\r\n\r\n", Verdict::Unsure),
        ("0\r\n\n0\r\n\r\n", Verdict::Unsure),
    ] {
        let mut scan = HeadScan::default();
        scan.feed(format!("{chunked}{body}").as_bytes());
        assert_eq!(scan.take(), Verdict::Clear);
        assert_eq!(scan.has_more(), verdict == Verdict::Unsure, "{body:?}");

        scan.feed(behind.as_bytes());

        assert!(scan.has_more());
        assert_eq!(scan.take(), verdict, "{body:?}");
    }
}

#[test]
fn heads_read_ahead_are_limited() {
    let mut scan = HeadScan::default();
    scan.feed("GET / HTTP/1.1\n\n".repeat(HEADS_AHEAD_MAX + 1).as_bytes());

    assert!((0..HEADS_AHEAD_MAX).all(|_| scan.take() == Verdict::Clear));
    assert_eq!(scan.take(), Verdict::Unsure);
}

#[test]
fn a_head_is_open_from_its_first_byte_to_its_end() {
    let open_after = |text: &str| {
        let mut scan = HeadScan::default();
        scan.feed(text.as_bytes());
        scan.in_open_head()
    };
    let get = "GET / HTTP/1.1\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n";

    for open in ["G", "GET / HTTP/1.1\r\n", &format!("{get}G"), &format!("{get}{post}{{}}G")] {
        assert!(open_after(open), "{open}");
    }
    for shut in ["", "\r\n", get, &format!("{get}\r\n"), post, &format!("{get}{post}{{}}")] {
        assert!(!open_after(shut), "{shut}");
    }
}

#[test]
fn the_open_request_line_is_measured() {
    let mut scan = HeadScan::default();
    scan.feed(b"\r\nGET /abc");
    assert_eq!(scan.open_request_line(), Some(8));

    scan.feed(b" HTTP/1.1\r\n");

    assert_eq!(scan.open_request_line(), None);
}

/// What a caller may send: whole requests, parts of heads and bodies, and what belongs nowhere.
const PIECES: [&str; 44] = [
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\n\n",
    "POST /a:b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n{\"a\"}",
    "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\n",
    "POST / HTTP/1.1\n",
    "POST ",
    "/content-length: 7 ",
    "Host: a\r\n",
    "Authorization: Bearer rct_0123456789\r\n",
    "X-Content-Length: 9\r\n",
    "Content-Length: 2\r\n",
    "content-length:2\n",
    "CONTENT-LENGTH : 2\r\n",
    "Content-Length: 12",
    "Content-Length: 2, 2\r\n",
    "Content-Length: -1x3\r\n",
    "Content-Length: 99999999999999999999999\r\n",
    "Content-Length: 18446744073709551615\r\n",
    "Content-\rLength: 4\r\n",
    "Content-Lengt",
    "h",
    "\rh\r: 3\r\n",
    "Transfer-Encoding: chunked\r\n",
    "transfer-encoding:x\n",
    "Transfer-Encodin",
    "g",
    "Transfer-Encodings: a\r\n",
    "\r\n",
    "\n",
    "\r",
    "\r\n\r\n",
    "\n\n",
    ":",
    ": ",
    ":\r\n",
    " folded\r\n",
    "0\r\n\r\n",
    "0\r\n",
    "{}",
    "7",
    "\0",
];

/// What happens to a connection.
#[derive(Clone, Debug)]
enum Step {
    /// So many of the bytes that are left arrive.
    Read(usize),
    /// The parser gives out a request.
    Take,
}

fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        12 => (0..PIECES.len()).prop_map(|at| PIECES[at].as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..24),
        1 => (0..40_usize).prop_map(|count| vec![b'x'; count]),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop_oneof![0..4_usize, 0..40_usize, 0..400_usize].prop_map(Step::Read),
        2 => Just(Step::Take),
    ]
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(4096))]

    #[test]
    fn skipping_changes_nothing_of_what_is_said(
        bytes in pieces(),
        steps in proptest::collection::vec(step(), 0..48),
    ) {
        let mut scan = HeadScan::default();
        let mut reference = bytewise::ByteScan::default();
        let mut rest = &bytes[..];
        for step in steps.iter().chain([&Step::Read(usize::MAX), &Step::Take, &Step::Take]) {
            match step {
                Step::Read(count) => {
                    let (read, left) = rest.split_at(rest.len().min(*count));
                    scan.feed(read);
                    reference.feed(read);
                    rest = left;
                }
                Step::Take => prop_assert_eq!(scan.take(), reference.take()),
            }
            prop_assert_eq!(scan.in_open_head(), reference.in_open_head());
            prop_assert_eq!(scan.open_request_line(), reference.open_request_line());
            // Where both believe to be decides what they will say of bytes that are not among these.
            prop_assert_eq!(format!("{:?}", scan.place), format!("{:?}", reference.place));
        }
    }
}
