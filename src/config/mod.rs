//! Settings: sources, precedence, validation.

/// To be written.
#[derive(Debug)]
pub struct Settings {}
