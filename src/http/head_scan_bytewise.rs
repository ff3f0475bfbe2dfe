//! The scan of heads as it was when it looked at every byte: the reference for what the verdicts must be. Tests and
//! the fuzzer only.

use std::collections::VecDeque;

use crate::http::chunk_scan::{Chunk, Next};
use crate::http::head_scan::{HEADS_AHEAD_MAX, NAME_BYTES_MAX, Verdict};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Place {
    /// In a head.
    Head,
    /// In a body of which so many bytes are left.
    Body(u64),
    /// In a chunked body.
    Chunks(Chunk),
    /// The start of the next head was missed.
    Lost,
}

/// The scan of one connection.
#[derive(Debug)]
pub(in crate::http) struct ByteScan {
    pub(in crate::http) place: Place,
    line: usize,
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

impl Default for ByteScan {
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

impl ByteScan {
    /// Bytes that were read from the connection.
    pub(in crate::http) fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match self.place {
                Place::Head => self.feed_head(*byte),
                Place::Body(0) => {
                    self.restart();
                    self.feed_head(*byte);
                }
                Place::Lost => return,
                Place::Body(left) => self.place = Place::Body(left - 1),
                Place::Chunks(chunk) => {
                    self.place = match chunk.next(*byte) {
                        Next::Within(chunk) => Place::Chunks(chunk),
                        Next::Ended => Place::Body(0),
                        Next::Lost => Place::Lost,
                    };
                }
            }
        }
    }

    /// The verdict on the request that the parser has just given out.
    pub(in crate::http) fn take(&mut self) -> Verdict {
        let verdict = self.verdicts.pop_front().unwrap_or(Verdict::Unsure);
        if verdict == Verdict::Unsure {
            self.place = Place::Lost;
        }
        verdict
    }

    /// Whether bytes of a head have come that has not ended. Where the scan is lost it may be so, and counts as so.
    pub(in crate::http) fn in_open_head(&self) -> bool {
        match self.place {
            Place::Head => self.line > 0 || self.line_bytes > 0,
            Place::Body(_) | Place::Chunks(_) => false,
            Place::Lost => true,
        }
    }

    /// Bytes of the request line so far, while it has not ended.
    pub(in crate::http) fn open_request_line(&self) -> Option<usize> {
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
        self.repeats_length |= self.has_length && self.is_length;
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
        let two = self.repeats_length || (self.has_length && self.has_encoding);
        self.verdicts.push_back(if two { Verdict::TwoLengths } else { Verdict::Clear });
        self.place = if self.has_encoding {
            Place::Chunks(Chunk::START)
        } else {
            Place::Body(self.length.unwrap_or(0))
        };
    }
}
