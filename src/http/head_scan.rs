//! Reads along with the parser to see whether a request carries both `Content-Length` and `Transfer-Encoding`.
//!
//! hyper drops the first in favour of the second before we see the headers. RFC 9112, section 6.1 calls the pair
//! an attempt at request smuggling, so it must be seen. The scan is sure only while it knows where a head begins;
//! where it is not, the caller ends the connection after a chunked request instead. It also tells whether a head has
//! begun behind the requests that were given out, because the time for that head runs.

use std::collections::VecDeque;

/// Most heads that are read ahead of the parser. The parser reads on only when it needs bytes, so these fit into one
/// read of 4 KiB, and the shortest head has 16 bytes. With fewer the scan gets lost sooner, more is never needed.
const HEADS_AHEAD_MAX: usize = 256;
/// Longest header name that matters: `transfer-encoding`.
const NAME_BYTES_MAX: usize = 17;

/// What the scan knows about the head that was just parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// At most one of the two headers.
    Clear,
    /// Both.
    TwoLengths,
    /// The scan did not see this head whole.
    Unsure,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In a head.
    Head,
    /// In a body of which so many bytes are left, or of unknown length.
    Body(Option<u64>),
    /// The start of the next head was missed.
    Lost,
}

/// The scan of one connection.
#[derive(Debug)]
pub struct HeadScan {
    place: Place,
    line: usize,
    line_bytes: usize,
    name: [u8; NAME_BYTES_MAX],
    in_value: bool,
    length: Option<u64>,
    is_length: bool,
    has_length: bool,
    has_encoding: bool,
    /// On heads that have ended and were not given out, the oldest first.
    verdicts: VecDeque<Verdict>,
    tail: [u8; 5],
}

impl Default for HeadScan {
    fn default() -> Self {
        Self {
            place: Place::Head,
            line: 0,
            line_bytes: 0,
            name: [0; NAME_BYTES_MAX],
            in_value: false,
            length: None,
            is_length: false,
            has_length: false,
            has_encoding: false,
            verdicts: VecDeque::new(),
            tail: [0; 5],
        }
    }
}

impl HeadScan {
    /// Bytes that were read from the connection.
    pub fn feed(&mut self, bytes: &[u8]) {
        for (at, byte) in bytes.iter().enumerate() {
            match self.place {
                Place::Head => self.feed_head(*byte),
                Place::Body(Some(0)) => {
                    self.restart();
                    self.feed_head(*byte);
                }
                Place::Lost => return,
                Place::Body(Some(left)) => self.place = Place::Body(Some(left - 1)),
                Place::Body(None) => {
                    for byte in &bytes[at..] {
                        self.tail.rotate_left(1);
                        self.tail[4] = *byte;
                    }
                    return;
                }
            }
        }
    }

    /// The verdict on the request that the parser has just given out.
    pub fn take(&mut self) -> Verdict {
        let verdict = self.verdicts.pop_front().unwrap_or(Verdict::Unsure);
        if verdict == Verdict::Unsure {
            self.place = Place::Lost;
        }
        verdict
    }

    /// The request was answered: whatever comes next begins a head, if the body's end was seen.
    pub fn answered(&mut self) {
        if !self.verdicts.is_empty() {
            // The body at hand is that of a later request.
            return;
        }
        match self.place {
            Place::Body(None) if &self.tail == b"0\r\n\r\n" => self.restart(),
            Place::Body(None) => self.place = Place::Lost,
            Place::Head | Place::Body(Some(_)) | Place::Lost => {}
        }
    }

    /// Whether bytes of a head have come that has not ended. Where the scan is lost it may be so, and counts as so.
    #[must_use]
    pub fn in_open_head(&self) -> bool {
        match self.place {
            Place::Head => self.line > 0 || self.line_bytes > 0,
            Place::Body(_) => false,
            Place::Lost => true,
        }
    }

    /// Bytes of the request line so far, while it has not ended.
    #[must_use]
    pub fn open_request_line(&self) -> Option<usize> {
        (self.place == Place::Head && self.line == 0).then_some(self.line_bytes)
    }

    fn restart(&mut self) {
        *self = Self { verdicts: std::mem::take(&mut self.verdicts), ..Self::default() };
    }

    fn feed_head(&mut self, byte: u8) {
        match byte {
            b'\n' => self.end_line(),
            b'\r' => {}
            _ if self.line == 0 => self.line_bytes += 1,
            b':' if !self.in_value => self.end_name(),
            _ => {
                if self.in_value {
                    self.feed_value(byte);
                } else if let Some(place) = self.name.get_mut(self.line_bytes) {
                    *place = byte.to_ascii_lowercase();
                }
                self.line_bytes += 1;
            }
        }
    }

    fn end_name(&mut self) {
        self.in_value = true;
        let name = self.name.get(..self.line_bytes).unwrap_or_default();
        self.is_length = name == b"content-length";
        self.has_length |= self.is_length;
        self.has_encoding |= name == b"transfer-encoding";
        if self.is_length {
            self.length = Some(0);
        }
    }

    fn feed_value(&mut self, byte: u8) {
        if self.is_length && byte.is_ascii_digit() {
            let digit = u64::from(byte - b'0');
            self.length = self.length.and_then(|length| length.checked_mul(10)?.checked_add(digit));
        }
    }

    fn end_line(&mut self) {
        // Blank lines before the request line are passed over, as the parser does.
        if self.line_bytes > 0 {
            self.line += 1;
        } else if self.line > 0 {
            self.end_head();
        }
        self.line_bytes = 0;
        self.in_value = false;
        self.is_length = false;
    }

    fn end_head(&mut self) {
        if self.verdicts.len() >= HEADS_AHEAD_MAX {
            self.place = Place::Lost;
            return;
        }
        let both = self.has_length && self.has_encoding;
        self.verdicts.push_back(if both { Verdict::TwoLengths } else { Verdict::Clear });
        self.tail = [0; 5];
        self.place = if self.has_encoding {
            Place::Body(None)
        } else {
            Place::Body(Some(self.length.unwrap_or(0)))
        };
    }
}

#[cfg(test)]
mod tests {
    use super::{HEADS_AHEAD_MAX, HeadScan, Verdict};

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
            &[
                "POST /content-length: HTTP/1.1\r\nX: content-length: 1\r\ntransfer-encoding: x\r\n\r\n",
            ],
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
        scan.answered();
        scan.feed(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r");
        assert_eq!(scan.take(), Verdict::Clear);
        scan.feed(b"\n\r\n");
        scan.answered();

        scan.feed(b"POST / HTTP/1.1\r\nTransfer-Encoding: x\r\nContent-Length: 1\r\n\r\n");

        assert_eq!(scan.take(), Verdict::TwoLengths);
    }

    #[test]
    fn heads_that_came_early_are_judged_one_by_one() {
        let mut scan = HeadScan::default();
        scan.feed(b"GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}POST / HTTP/1.1\r\n");
        assert_eq!(scan.take(), Verdict::Clear);
        scan.answered();
        assert_eq!(scan.take(), Verdict::Clear);
        scan.answered();

        scan.feed(b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n");

        assert_eq!(scan.take(), Verdict::TwoLengths);
    }

    #[test]
    fn a_head_behind_a_chunked_body_that_came_early_is_not_judged() {
        let mut scan = HeadScan::default();
        scan.feed(
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nPOST / HTTP/1.1\r\n",
        );
        assert_eq!(scan.take(), Verdict::Clear);
        scan.answered();
        assert!(scan.in_open_head());

        scan.feed(b"Content-Length: 2\r\n\r\n");

        assert_eq!(scan.take(), Verdict::Unsure);
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
}
