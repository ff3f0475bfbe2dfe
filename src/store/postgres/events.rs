//! The event log: appended by the writer, read in order.
