//! The audit log in its table: written with the group, read by number. Rows are never changed; only [`remove_old`]
