//! Services, apps and tokens.
