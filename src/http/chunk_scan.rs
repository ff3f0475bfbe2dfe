//! Where a chunked body ends, by the plainest of its grammar: sizes in hexadecimal, no extensions, no trailers.
//!
//! `head_scan.rs` reads along with it. The parser takes more than this, and so do proxies, each in its own way: a body
//! that is written otherwise still counts, but nothing that comes behind it on its connection.

/// Most digits of a size: as many as fit into the number.
const SIZE_DIGITS_MAX: u8 = 16;

/// A place within a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// In the digits of a size: its value so far, and how many there were.
    Size(u64, u8),
    /// The size has ended with a carriage return.
    SizeEnd(u64),
    /// So many bytes of the chunk are left.
    Left(u64),
    /// Behind the bytes of a chunk.
    DataEnd,
    /// Behind the carriage return behind them.
    DataLineEnd,
    /// Behind the line of the last size.
    Last,
    /// Behind the carriage return behind it.
    LastLineEnd,
}

/// What a byte leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another place within the body.
    Within(Chunk),
    /// It was the last byte of the body.
    Ended,
    /// It is written otherwise.
    Lost,
}

impl Chunk {
    /// The first byte of a body.
    pub(super) const START: Self = Self::Size(0, 0);

    /// The place behind this byte.
    pub(super) fn next(self, byte: u8) -> Next {
        match (self, byte) {
            (Self::Size(size, digits), _)
                if byte.is_ascii_hexdigit() && digits < SIZE_DIGITS_MAX =>
            {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                Next::Within(Self::Size(size << 4 | u64::from(digit), digits + 1))
            }
            (Self::Size(size, 1..), b'\r') => Next::Within(Self::SizeEnd(size)),
            (Self::SizeEnd(0), b'\n') => Next::Within(Self::Last),
            (Self::SizeEnd(size), b'\n') => Next::Within(Self::Left(size)),
            (Self::Left(0 | 1), _) => Next::Within(Self::DataEnd),
            (Self::Left(left), _) => Next::Within(Self::Left(left - 1)),
            (Self::DataEnd, b'\r') => Next::Within(Self::DataLineEnd),
            (Self::DataLineEnd, b'\n') => Next::Within(Self::START),
            (Self::Last, b'\r') => Next::Within(Self::LastLineEnd),
            (Self::LastLineEnd, b'\n') => Next::Ended,
            _ => Next::Lost,
        }
    }

    /// How many bytes were passed, and the place behind them; the bytes of chunks are not looked at.
    pub(super) fn pass(self, bytes: &[u8]) -> (usize, Next) {
        let mut place = self;
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            if let Self::Left(left @ 2..) = place {
                let rest = bytes.len() - at;
                let skipped = usize::try_from(left - 1).map_or(rest, |most| most.min(rest));
                place = Self::Left(left - skipped as u64);
                at += skipped;
                continue;
            }
            at += 1;
            match place.next(*byte) {
                Next::Within(next) => place = next,
                end => return (at, end),
            }
        }
        (at, Next::Within(place))
    }
}

#[cfg(test)]
mod tests {
    use super::{Chunk, Next};

    fn check(body: &str, passed: usize, end: Option<Next>) {
        let (count, next) = Chunk::START.pass(body.as_bytes());
        let ended = (!matches!(next, Next::Within(_))).then_some(next);
        assert_eq!((count, ended), (passed, end), "{body:?}");
    }

    #[test]
    fn plain_bodies_end_where_they_end() {
        check("0\r\n\r\nGET", 5, Some(Next::Ended));
        check("000\r\n\r\n", 7, Some(Next::Ended));
        check("5\r\n{\"a\"}\r\nA\r\n0\r\n\r\n01234\r\n0\r\n\r\nX", 30, Some(Next::Ended));
        check("ffffffffffffffff\r\nall of it", 27, None);
        check("2\r\n{", 4, None);
    }

    #[test]
    fn what_is_written_otherwise_is_lost() {
        check("\r\n", 1, Some(Next::Lost));
        check("2;x=y\r\n{}", 2, Some(Next::Lost));
        check("2\n{}", 2, Some(Next::Lost));
        check("2 \r\n{}", 2, Some(Next::Lost));
        check("0x2\r\n{}", 2, Some(Next::Lost));
        check("00000000000000002\r\n{}", 17, Some(Next::Lost));
        check("2\r\n{}x", 6, Some(Next::Lost));
        check("0\r\n\n0\r\n\r\n", 4, Some(Next::Lost));
        check("0\r\nX-Trailer: 0\r\n\r\n", 4, Some(Next::Lost));
    }
}
