//! Staff contacts: read by id or in slices, changed by the writer together with their event.
