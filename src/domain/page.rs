//! Page sizes and positions of lists.

/// Entries in a page unless asked otherwise; the reference's default.
pub const PAGE_LIMIT_DEFAULT: u32 = 50;

/// Most entries in one page; the reference's maximum. More makes one answer long and its read block
/// checkpoints, fewer costs callers round trips.
pub const PAGE_LIMIT_MAX: u32 = 500;

/// One page of a list that is read by cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The entries, in the list's order.
    pub items: Vec<T>,
    /// Where the next page starts; `None` after the last entry.
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// Of items that were asked for with one more than `limit`: cuts the one too many off and names where the next page
    /// starts.
    #[must_use]
    pub fn cut(mut items: Vec<T>, limit: u32, id: impl Fn(&T) -> String) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let next = if more { items.last().map(id) } else { None };
        Self { items, next }
    }
}
