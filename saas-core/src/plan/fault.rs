//! What is wrong with a catalogue file: everything at once, each with its place and its remedy.

use std::{error::Error as StdError, fmt, ops::Range};

use crate::{CoreError, ErrorKind};

/// One mistake in a catalogue file. Displayed as `line 3, column 8: … ; …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogFault {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong, by its path in the file, such as `plans.pro.rank`.
    pub what: String,
    /// Why it is refused.
    pub why: String,
    /// What to write instead.
    pub remedy: String,
}

impl fmt::Display for CatalogFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, column, what, why, remedy } = self;
        write!(f, "line {line}, column {column}: {what} {why}; {remedy}")
    }
}

/// A catalogue file that was refused. Nothing of it is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogError {
    faults: Vec<CatalogFault>,
    more: usize,
}

impl CatalogError {
    /// The mistakes in the order of the file: all of them, up to [`CatalogError::MAX_FAULTS`].
    #[must_use]
    pub fn faults(&self) -> &[CatalogFault] {
        &self.faults
    }

    /// The most mistakes that are kept; the rest is only counted.
    pub const MAX_FAULTS: usize = 1_000;

    /// What a caller can do about it.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }

    /// A stable name for logs and metrics.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "invalid_catalog"
    }
}

impl fmt::Display for CatalogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.faults.len() + self.more {
            1 => f.write_str("the plan catalogue has a mistake:")?,
            count => write!(f, "the plan catalogue has {count} mistakes:")?,
        }
        for fault in &self.faults {
            write!(f, "\n  {fault}")?;
        }
        if self.more > 0 {
            write!(f, "\n  … and {} more", self.more)?;
        }
        Ok(())
    }
}

impl StdError for CatalogError {}

impl From<CatalogError> for CoreError {
    fn from(error: CatalogError) -> Self {
        Self::Misconfigured { what: error.to_string(), remedy: "correct the plan catalogue".to_owned() }
    }
}

/// Collects mistakes and turns byte positions into lines and columns.
#[derive(Debug)]
pub(super) struct Faults<'i> {
    text: &'i str,
    line_starts: Vec<usize>,
    found: Vec<(usize, CatalogFault)>,
    more: usize,
}

impl<'i> Faults<'i> {
    pub(super) fn of(text: &'i str) -> Self {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, line_starts, found: Vec::new(), more: 0 }
    }

    pub(super) fn add(
        &mut self,
        span: Range<usize>,
        what: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        if self.found.len() >= CatalogError::MAX_FAULTS {
            self.more += 1;
            return;
        }
        let (line, column) = self.place(span.start);
        let fault = CatalogFault { line, column, what: what.into(), why: why.into(), remedy: remedy.into() };
        self.found.push((span.start, fault));
    }

    /// The line of a position, to point from one mistake at another place.
    pub(super) fn line(&self, at: usize) -> usize {
        self.place(at).0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(super) fn into_error(mut self) -> CatalogError {
        self.found.sort_by_key(|(at, _)| *at);
        CatalogError { faults: self.found.into_iter().map(|(_, fault)| fault).collect(), more: self.more }
    }

    fn place(&self, at: usize) -> (usize, usize) {
        let line = self.line_starts.partition_point(|start| *start <= at).max(1);
        let start = self.line_starts.get(line - 1).copied().unwrap_or(0);
        let column = self.text.get(start..at).map_or(0, |before| before.chars().count()) + 1;
        (line, column)
    }
}
