//! The steps of a call to a receiver, and the refusal of one by the target guard.
//!
//! Steps are all that a caller learns of a failed verification and what a failed attempt is filed under; the
//! guard, the sender and the challenge share them.

use std::borrow::Cow;
use std::fmt;

/// How far a verification or an attempt came; what the caller learns of a failed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The text of the URL.
    Url,
    /// Its host name: the rules for names, and resolving it.
    Name,
    /// An address: written in the URL, or what the name stands for.
    Address,
    /// Opening the connection, and keeping it until the answer.
    Connect,
    /// The TLS handshake and the certificate.
    Tls,
    /// The time for the whole answer.
    Timeout,
    /// The answer's status line and headers.
    Status,
    /// The answer's size.
    Size,
    /// The answer as JSON.
    Json,
    /// The answer's `code`.
    Code,
    /// The echoed challenge.
    Challenge,
    /// Our own machine: no free descriptor, port or buffer. The receiver has nothing to do with it.
    Local,
}

impl Step {
    /// The name in messages and rows.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::Name => "name",
            Self::Address => "address",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Status => "status",
            Self::Size => "size",
            Self::Json => "json",
            Self::Code => "code",
            Self::Challenge => "challenge",
            Self::Local => "local",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a target may not be called; the message names the rule, never an address that was resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Where it was refused: [`Step::Url`], [`Step::Name`] or [`Step::Address`].
    pub step: Step,
    /// For the caller: lower case, no full stop.
    pub message: Cow<'static, str>,
}

impl Refusal {
    pub(super) const fn url(message: &'static str) -> Self {
        Self { step: Step::Url, message: Cow::Borrowed(message) }
    }

    pub(super) const fn name(message: &'static str) -> Self {
        Self { step: Step::Name, message: Cow::Borrowed(message) }
    }

    pub(super) const fn address(message: &'static str) -> Self {
        Self { step: Step::Address, message: Cow::Borrowed(message) }
    }
}
