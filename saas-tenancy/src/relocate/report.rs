//! What a mover tells: while it works, and at the end.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where a mover is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Both ends were found to fit.
    Planned,
    /// A table begins to log its changes.
    Capture,
    /// A table is being copied.
    Copy,
    /// A table has arrived and is being compared.
    Verify,
    /// Changes are being carried over while the tenant works on.
    CatchUp,
    /// The tenant's transactions wait.
    Freeze,
    /// The last changes are being carried over.
    Drain,
    /// The source is about to be closed.
    Close,
    /// The target is open, and the placement about to change.
    Switch,
    /// The tenant is at home in the target.
    Switched,
    /// Source and target, as they were at the switch, are being compared as a whole.
    Audit,
    /// Rows are being deleted where the tenant does not live.
    Clear,
}

/// One report while the work goes on.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// What is being done.
    pub phase: Phase,
    /// To which table; empty when it is about all of them.
    pub table: &'a str,
    /// Rows of that table so far.
    pub rows: u64,
    /// Bytes of that table so far, as they went over the wire.
    pub bytes: u64,
    /// The rate for that table so far.
    pub bytes_per_second: f64,
}

/// Hears how far a move is. Called from within the move: it should return at once.
pub type Listener<'a> = &'a (dyn Fn(Progress<'_>) + Send + Sync);

/// Says something without figures.
pub(super) fn tell(listener: Listener<'_>, phase: Phase, table: &str) {
    listener(Progress { phase, table, rows: 0, bytes: 0, bytes_per_second: 0.0 });
}

/// One table that arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedTable {
    /// Its name.
    pub name: String,
    /// Rows in the snapshot that was copied.
    pub rows: u64,
    /// Bytes of the copy, as they went over the wire.
    pub bytes: u64,
    /// The checksum that both sides had of them.
    pub checksum: String,
}

/// How the two sides compared as a whole after the switch: the closed source, and the target as it was at that moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Audit {
    /// Not compared: the mover ended right after the switch. Every table had been found equal when it arrived, and every
    /// later change when it was carried over.
    #[default]
    Missed,
    /// Number and checksum of the rows are equal in every table.
    Equal,
    /// These tables are not: the source is kept, and is not cleared.
    Unequal {
        /// Their names.
        tables: Vec<String>,
    },
}

/// What a move did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Report {
    /// The tables, as they were copied.
    pub tables: Vec<MovedTable>,
    /// How often changes were carried over, the last time included, while the tenant waited.
    pub rounds: u32,
    /// Rows that changed during the move and were carried over; one that changed in two rounds counts twice.
    pub carried_over: u64,
    /// How long the tenant's transactions had to wait, at most.
    #[serde(with = "micros")]
    pub freeze: Duration,
    /// How the two sides compared as a whole.
    pub audit: Audit,
    /// The target was found empty, and the source logs its changes: what the target holds since then came from this move.
    pub(super) was_captured: bool,
    /// The tables of both sides when the log began, as a digest.
    pub(super) shape: String,
}

impl Report {
    /// Rows copied in all tables.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }

    /// Bytes copied in all tables.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.bytes).sum()
    }
}

mod micros {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_micros)
    }
}
