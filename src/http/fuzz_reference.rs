//! HTTP/1.1 read by the letter of RFC 9112, slowly and without mercy: what `fuzz_checks.rs` compares hyper with.
//!
//! It takes what the parser takes beyond the letter where no second reading comes of it: empty lines before a request,
//! and line ends without a carriage return.

/// One request as it stands on the wire.
#[derive(Debug)]
pub(super) struct Message<'a> {
    pub(super) method: &'a [u8],
    pub(super) target: &'a [u8],
    /// The digit behind `HTTP/1.`.
    pub(super) minor: u8,
    /// Names as written, values without blanks around them.
    pub(super) headers: Vec<(&'a [u8], &'a [u8])>,
    /// `None` when it has not all arrived or is malformed.
    pub(super) body: Option<Vec<u8>>,
}

/// The first request, and what stands behind it.
pub(super) fn read_message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let mut rest = bytes;
    let first = loop {
        let (line, behind) = read_line(rest)?;
        rest = behind;
        if !line.is_empty() {
            break line;
        }
    };
    let mut parts = first.split(|byte| *byte == b' ');
    let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
    let minor = *version.strip_prefix(b"HTTP/1.")?.first()?;
    if parts.next().is_some() || version.len() != 8 || !matches!(minor, b'0' | b'1') {
        return None;
    }
    let mut headers = Vec::new();
    loop {
        let (line, behind) = read_line(rest)?;
        rest = behind;
        if line.is_empty() {
            break;
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
            return None;
        }
        headers.push((name, trim(value)));
    }
    let find = |wanted: &str| {
        let named = |name: &[u8]| name.eq_ignore_ascii_case(wanted.as_bytes());
        headers.iter().rev().find(|(name, _)| named(name)).map(|(_, value)| *value)
    };
    let read = match (find("transfer-encoding"), find("content-length")) {
        (Some(_), _) => read_chunks(rest),
        (None, Some(length)) => read_length(length, rest),
        (None, None) => Some((Vec::new(), rest)),
    };
    let (body, behind) = match read {
        Some((body, behind)) => (Some(body), behind),
        None => (None, &[][..]),
    };
    Some((Message { method, target, minor, headers, body }, behind))
}

fn read_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let line = &bytes[..end];
    Some((line.strip_suffix(b"\r").unwrap_or(line), &bytes[end + 1..]))
}

fn read_length<'a>(length: &[u8], rest: &'a [u8]) -> Option<(Vec<u8>, &'a [u8])> {
    let digits = std::str::from_utf8(length).ok()?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let length: usize = digits.parse().ok()?;
    let (body, behind) = rest.split_at_checked(length)?;
    Some((body.to_vec(), behind))
}

fn read_chunks(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let (line, behind) = read_line(rest)?;
        let size = line.split(|byte| *byte == b';').next()?;
        let size = std::str::from_utf8(trim(size)).ok()?;
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = behind;
        if size == 0 {
            break;
        }
        let (chunk, behind) = rest.split_at_checked(size)?;
        body.extend_from_slice(chunk);
        let (end, behind) = read_line(behind)?;
        if !end.is_empty() {
            return None;
        }
        rest = behind;
    }
    // Whatever else stands behind the last chunk ends the connection: nothing behind it may be served.
    Some((body, rest.strip_prefix(b"\r\n").unwrap_or_default()))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn trim(value: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !blank(byte)).map_or(start, |at| at + 1);
    &value[start..end]
}
