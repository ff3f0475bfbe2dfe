//! Reads along with the parser to see whether a request carries two lengths: `Content-Length` twice, or beside
//! `Transfer-Encoding`.
//!
//! hyper drops all but one of them before we see the headers. RFC 9112, sections 6.1 and 6.3 call such requests
//! attempts at smuggling, so they must be seen. The scan is sure only while it knows where a head begins: behind a
//! chunked body that is not written plainly it does not, and the caller ends the connection. It also tells whether anything has come behind the request that was answered:
//! whoever sends a request before he has the answer to the one before is not served with it.
//!
//! Every byte of every connection passes here, so the scan goes by lines and skips what it need not look at. What it
//! says must be what a scan of each byte would say: `head_scan_bytewise.rs` is that one, and a test compares them.

use std::collections::VecDeque;

use memchr::memchr;

use super::chunk_scan::{Chunk, Next};

/// Most heads that are read ahead of the parser. The parser reads on only when it needs bytes, so these fit into one
/// read of 4 KiB, and the shortest head has 16 bytes. With fewer the scan gets lost sooner, more is never needed.
const HEADS_AHEAD_MAX: usize = 256;
/// Shortest header name that matters: `content-length`.
const NAME_BYTES_MIN: usize = 14;
/// Longest header name that matters: `transfer-encoding`.
const NAME_BYTES_MAX: usize = 17;

/// What the scan knows about the head that was just parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// At most one length.
    Clear,
    /// More than one.
    TwoLengths,
    /// The scan did not see this head whole.
    Unsure,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In a head.
    Head,
    /// In a body of which so many bytes are left.
    Body(u64),
    /// In a chunked body.
    Chunks(Chunk),
    /// The start of the next head was missed.
    Lost,
}

impl Place {
    fn behind(next: Next) -> Self {
        match next {
            Next::Within(chunk) => Self::Chunks(chunk),
            Next::Ended => Self::Body(0),
            Next::Lost => Self::Lost,
        }
    }
}

/// The scan of one connection.
#[derive(Debug)]
pub struct HeadScan {
    place: Place,
    line: usize,
    /// Bytes of the line so far, without carriage returns. Exact in the open request line and in a name; of anything
    /// else it only tells whether there was any.
    line_bytes: usize,
    name: [u8; NAME_BYTES_MAX],
    in_value: bool,
    length: Option<u64>,
    is_length: bool,
    has_length: bool,
    repeats_length: bool,
    has_encoding: bool,
    /// On heads that have ended and were not given out, the oldest first.
    verdicts: VecDeque<Verdict>,
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
            repeats_length: false,
            has_encoding: false,
            verdicts: VecDeque::new(),
        }
    }
}

impl HeadScan {
    /// Bytes that were read from the connection.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let seen = match self.place {
                Place::Head => self.feed_head(rest),
                Place::Body(0) => {
                    self.restart();
                    self.feed_head(rest)
                }
                Place::Body(left) => {
                    let seen =
                        usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
                    self.place = Place::Body(left - seen as u64);
                    seen
                }
                Place::Chunks(chunk) => {
                    let (seen, next) = chunk.pass(rest);
                    self.place = Place::behind(next);
                    seen
                }
                Place::Lost => return,
            };
            rest = &rest[seen..];
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

    /// Whether bytes of a head have come that has not ended. Where the scan is lost it may be so, and counts as so.
    #[must_use]
    pub fn in_open_head(&self) -> bool {
        match self.place {
            Place::Head => self.line > 0 || self.line_bytes > 0,
            Place::Body(_) | Place::Chunks(_) => false,
            Place::Lost => true,
        }
    }

    /// Whether anything has come behind the request that was just answered, or may have.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.verdicts.is_empty() || self.in_open_head()
    }

    /// Bytes of the request line so far, while it has not ended.
    #[must_use]
    pub fn open_request_line(&self) -> Option<usize> {
        (self.place == Place::Head && self.line == 0).then_some(self.line_bytes)
    }

    fn restart(&mut self) {
        *self = Self { verdicts: std::mem::take(&mut self.verdicts), ..Self::default() };
    }

    /// Reads one line, or what has come of it, and tells how many bytes those were.
    fn feed_head(&mut self, bytes: &[u8]) -> usize {
        match memchr(b'\n', bytes) {
            Some(end) => {
                self.feed_line(&bytes[..end], true);
                self.end_line();
                end + 1
            }
            None => {
                self.feed_line(bytes, false);
                bytes.len()
            }
        }
    }

    /// A part of a line. Carriage returns are passed over wherever they stand.
    fn feed_line(&mut self, part: &[u8], ends: bool) {
        if self.line == 0 {
            // How long it is matters only while it is open.
            self.line_bytes += if ends { usize::from(holds_any(part)) } else { count(part) };
            return;
        }
        let mut value = part;
        if !self.in_value {
            let colon = memchr(b':', part);
            let name = colon.map_or(part, |at| &part[..at]);
            if self.line_bytes == 0 && colon.is_some() && name.len() < NAME_BYTES_MIN {
                // A whole name that is none of the two, which holds for most.
                self.line_bytes = usize::from(holds_any(name));
                self.in_value = true;
            } else {
                self.feed_name(name);
                if colon.is_some() {
                    self.end_name();
                }
            }
            value = colon.map_or_else(Default::default, |at| &part[at + 1..]);
        }
        // Of a value only the digits of a length matter, and whether there is one at all.
        self.line_bytes += usize::from(holds_any(value));
        if self.is_length {
            self.feed_length(value);
        }
    }

    fn feed_name(&mut self, part: &[u8]) {
        for byte in part.iter().filter(|byte| **byte != b'\r') {
            if let Some(place) = self.name.get_mut(self.line_bytes) {
                *place = byte.to_ascii_lowercase();
            }
            self.line_bytes += 1;
        }
    }

    fn end_name(&mut self) {
        self.in_value = true;
        let name = self.name.get(..self.line_bytes).unwrap_or_default();
        self.is_length = name == b"content-length";
        self.repeats_length |= self.has_length && self.is_length;
        self.has_length |= self.is_length;
        self.has_encoding |= name == b"transfer-encoding";
        if self.is_length {
            self.length = Some(0);
        }
    }

    fn feed_length(&mut self, value: &[u8]) {
        for byte in value.iter().filter(|byte| byte.is_ascii_digit()) {
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
        let two = self.repeats_length || (self.has_length && self.has_encoding);
        self.verdicts.push_back(if two { Verdict::TwoLengths } else { Verdict::Clear });
        self.place = if self.has_encoding {
            Place::Chunks(Chunk::START)
        } else {
            Place::Body(self.length.unwrap_or(0))
        };
    }
}

/// Whether there is more in it than carriage returns.
fn holds_any(part: &[u8]) -> bool {
    part.iter().any(|byte| *byte != b'\r')
}

/// How many bytes it has besides them.
fn count(part: &[u8]) -> usize {
    part.iter().filter(|byte| **byte != b'\r').count()
}

#[cfg(any(test, feature = "fuzzing"))]
#[path = "head_scan_bytewise.rs"]
pub(super) mod bytewise;

#[cfg(test)]
#[path = "head_scan_tests.rs"]
mod tests;
