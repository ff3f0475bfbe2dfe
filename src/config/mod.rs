//! Settings: one table, four sources, one typed result.
//!
//! `table.rs` names every setting; `raw.rs` collects what was written, as text with its source; `load.rs` turns
//! that into [`Settings`] or into all faults at once; `document.rs` writes the table for readers. The flags of the
//! command line come from the same table, in `cli`. Nothing later reads the environment or checks again.

pub mod document;
pub mod duration;
pub mod fault;
pub mod load;
pub mod parse;
pub mod raw;
pub mod table;

pub use load::{CorsOrigins, Loaded, LogFormat, Settings, Store, load, read_admin_token_file};
pub use raw::Source;
