//! Lists come in pages: bounded, in a stable order, continued by a cursor.

use serde::Serialize;

use crate::InvalidInput;

/// How much of a list is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSize(u16);

impl PageSize {
    /// The most that one page holds.
    pub const MAX: u16 = 500;

    /// A page of `rows` rows.
    ///
    /// # Errors
    /// When `rows` is 0 or more than [`PageSize::MAX`].
    pub fn new(rows: u16) -> Result<Self, InvalidInput> {
        if (1..=Self::MAX).contains(&rows) {
            return Ok(Self(rows));
        }
        Err(InvalidInput::new("page size", format!("{rows} is out of range"), "ask for 1 to 500 rows"))
    }

    /// Rows per page.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl Default for PageSize {
    fn default() -> Self {
        Self(50)
    }
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Page<T, C> {
    /// The rows, in the list's order.
    pub items: Vec<T>,
    /// Where the next page starts; `None` on the last page.
    pub next: Option<C>,
}

impl<T, C> Page<T, C> {
    /// Makes a page of a query that asked for one row more than `size`.
    #[must_use]
    pub fn from_rows(mut rows: Vec<T>, size: PageSize, cursor: impl Fn(&T) -> C) -> Self {
        let size = usize::from(size.get());
        let more = rows.len() > size;
        rows.truncate(size);
        let next = if more { rows.last().map(cursor) } else { None };
        Self { items: rows, next }
    }
}
