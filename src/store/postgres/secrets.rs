//! Signing secrets: sealed in their rows, opened by those who read them.
