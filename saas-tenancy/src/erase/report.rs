//! What an erasure says about itself: how far it is, and what became of which table.

use std::fmt;

use chrono::{DateTime, Utc};
use saas_core::TenantId;
use serde::Serialize;

/// How far an erasure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EraseState {
    /// Asked for.
    Requested,
    /// Approved by another operator.
    Approved,
    /// Begun. The tenant is not served any more.
    Running,
    /// Stopped by something that a repeat alone does not mend.
    Failed,
    /// Over.
    Done,
}

impl EraseState {
    pub(super) const ALL: &'static [Self] = &[Self::Requested, Self::Approved, Self::Running, Self::Failed, Self::Done];

    /// The text that is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Approved => "approved",
            Self::Running => "running",
            Self::Failed => "failed",
            Self::Done => "done",
        }
    }
}

impl fmt::Display for EraseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What becomes of the tenant's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlugPolicy {
    /// Nobody gets it: old links never lead to another tenant.
    Keep,
    /// Another tenant may take it.
    Free,
}

/// The record of an erasure, and its report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Erasure {
    /// Whose.
    pub tenant: TenantId,
    /// How far it is.
    pub state: EraseState,
    /// Whether the address becomes free.
    pub frees_slug: bool,
    /// Why.
    pub reason: String,
    /// Who asked.
    pub requested_by: String,
    /// When.
    pub requested_at: DateTime<Utc>,
    /// Who approved.
    pub approved_by: Option<String>,
    /// When.
    pub approved_at: Option<DateTime<Utc>>,
    /// The code of the error that stopped it.
    pub failure: Option<String>,
    /// When it was done.
    pub finished_at: Option<DateTime<Utc>>,
    /// Where the tenant's own tables were when it began, if that was not among the shared ones of the control database.
    pub place: Option<ErasedPlace>,
    /// The tables in the order in which they are emptied; when it is done, followed by those that were kept.
    pub tables: Vec<ErasedTable>,
}

/// What became of a place of a tenant's own tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ErasedPlace {
    /// Which, such as `eu/saas_t_…` for a database of its own.
    pub name: String,
    /// Whether its schema or database is gone, or, in tables that are shared, the tenant's registration.
    pub is_removed: bool,
    /// Why it stays for good.
    pub kept_reason: Option<String>,
}

/// What became of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ErasedTable {
    /// Schema and table, quoted as SQL needs it.
    pub name: String,
    /// Whether it is in the tenant's own place, rather than in the control database.
    pub at_place: bool,
    /// Rows that were erased so far.
    pub rows_erased: u64,
    /// Rows that were kept.
    pub rows_kept: u64,
    /// Why.
    pub kept_reason: Option<String>,
}

/// What one step did.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EraseStep {
    /// The tenant is not served any more; nothing is erased yet.
    Begun,
    /// The door of the tenant's own place is closed, all who were in have left, and its tables are on the list.
    PlaceShut,
    /// A batch of a table's rows is gone.
    Erased {
        /// Which table.
        table: String,
        /// How many.
        rows: u64,
    },
    /// A table has no row of the tenant left.
    Emptied {
        /// Which table.
        table: String,
    },
    /// The tenant's own place is gone.
    PlaceRemoved,
    /// The tenant's own place stays, shut, because rows in it are kept.
    PlaceKept,
    /// All is done, or was done before.
    Done(Box<Erasure>),
}
