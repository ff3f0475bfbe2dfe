//! The staff contacts that are created: numbered, so that a notification can be matched to its request.

use bytes::Bytes;

/// Comes before the number in `lastName`, and with it in the notification's `fullName`.
const MARK: &[u8] = b"Bench-";

/// Digits of a number.
const DIGITS: usize = 7;

/// Numbers with so many digits.
const NUMBERS: u64 = 10_000_000;

/// Spreads e-mails over the alphabet, as people's are: in the order of their numbers, each would be found on the
/// same page of an index as the one before it. Has no divisor in common with [`NUMBERS`], so that none is made twice.
const SPREAD: u64 = 6_180_339;

const TEMPLATE: &str = r#"{"firstName":"Ana Maria","lastName":"Bench-0000000","email":"0000000.ana.maria@example.com","jobTitle":"Customer support agent","role":"Agent","displayName":"Ana from support","timezone":"Asia/Manila"}"#;

/// The body of a create, as a template whose digits are replaced.
pub(crate) struct Template {
    bytes: Vec<u8>,
    digits: [usize; 2],
}

impl Template {
    pub(crate) fn new() -> Self {
        let zeros = "0".repeat(DIGITS);
        let mut places = TEMPLATE.match_indices(&zeros).map(|(at, _)| at);
        let digits = std::array::from_fn(|_| places.next().unwrap_or_default());
        Self { bytes: TEMPLATE.as_bytes().to_vec(), digits }
    }

    /// The body that creates contact `number`.
    pub(crate) fn body(&self, number: u32) -> Bytes {
        let number = u64::from(number);
        let mut body = self.bytes.clone();
        for (at, value) in self.digits.into_iter().zip([number, number * SPREAD % NUMBERS]) {
            let mut rest = value;
            for place in body[at..at + DIGITS].iter_mut().rev() {
                *place = b"0123456789"[(rest % 10) as usize];
                rest /= 10;
            }
        }
        body.into()
    }
}

/// The number of the contact that a notification (or a create) is about.
pub(crate) fn number_in(body: &[u8]) -> Option<u32> {
    let mut rest = body;
    loop {
        let at = rest.iter().position(|byte| *byte == MARK[0])?;
        rest = &rest[at..];
        if let Some(digits) = rest.strip_prefix(MARK) {
            return decimal(digits.get(..DIGITS)?).and_then(|n| n.try_into().ok());
        }
        rest = &rest[1..];
    }
}

/// Whether a receiver that refuses three contacts in ten refuses this one. As good as by chance (the finaliser of
/// `MurmurHash3`), because what matters are the rows in which refusals come.
pub(crate) fn is_refused(number: u32) -> bool {
    let mixed = (number ^ (number >> 16)).wrapping_mul(0x85eb_ca6b);
    let mixed = (mixed ^ (mixed >> 13)).wrapping_mul(0xc2b2_ae35);
    (mixed ^ (mixed >> 16)) % 10 < 3
}

/// A number without sign, all of it digits.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    digits.iter().try_fold(0, |sum, digit| {
        let value = digit.checked_sub(b'0').filter(|value| *value < 10)?;
        Some(sum * 10 + u64::from(value))
    })
}
