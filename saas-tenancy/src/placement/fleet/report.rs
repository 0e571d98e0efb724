//! What a run of the fleet did: as data, and as text for a terminal.

use std::{fmt, time::Duration};

use saas_core::TenantId;
use serde::Serialize;

use crate::placement::{PlacementError, Site};

/// What a run did, or where the fleet stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The version that every place should be at.
    pub newest: i64,
    /// All places.
    pub sites: Vec<SiteReport>,
    /// How it ended.
    pub ending: Ending,
    /// How long it took.
    pub took: Duration,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// No place waits, and none failed.
    Complete,
    /// Every place was tried, and some failed.
    WithFailures,
    /// A canary was not migrated: the others were left as they are.
    CanaryFailed,
    /// There were too many failures, or nobody ran it: some places wait.
    Stopped,
}

/// One place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SiteReport {
    /// Which.
    pub site: Site,
    /// Whose; `None` for shared tables.
    pub tenant: Option<TenantId>,
    /// The version before.
    pub from: Option<i64>,
    /// The version after.
    pub to: Option<i64>,
    /// What happened.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// What happened to a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It was at the newest version already.
    Current,
    /// It is at a version that this binary does not carry: a newer release was here.
    Ahead,
    /// It is at the newest version now.
    Migrated {
        /// How many migrations were applied.
        applied: usize,
    },
    /// It stays at the last migration that succeeded.
    Failed {
        /// At which migration; `None` when none was begun.
        version: Option<i64>,
        /// Why.
        error: String,
    },
    /// It is in other hands.
    Skipped {
        /// Whose.
        why: &'static str,
    },
    /// It was not begun.
    Waiting,
}

impl Outcome {
    pub(super) fn failed(error: &PlacementError) -> Self {
        let version = match error {
            PlacementError::MigrationFailed { version, .. } => Some(*version),
            _ => None,
        };
        Self::Failed { version, error: error.in_full() }
    }

    const fn word(&self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Ahead => "ahead",
            Self::Migrated { .. } => "migrated",
            Self::Failed { .. } => "failed",
            Self::Skipped { .. } => "skipped",
            Self::Waiting => "waiting",
        }
    }
}

impl Report {
    /// The places that failed.
    pub fn failures(&self) -> impl Iterator<Item = &SiteReport> {
        self.sites.iter().filter(|report| matches!(report.outcome, Outcome::Failed { .. }))
    }

    /// How many places have this outcome, such as `migrated`.
    #[must_use]
    pub fn count(&self, word: &str) -> usize {
        self.sites.iter().filter(|report| report.outcome.word() == word).count()
    }
}

/// A summary, then a line for each place that someone should look at.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = match self.ending {
            Ending::Complete => "complete",
            Ending::WithFailures => "complete, with failures",
            Ending::CanaryFailed => "stopped: a canary failed",
            Ending::Stopped => "not complete",
        };
        write!(f, "fleet to version {}: {ending}, {:.1} s;", self.newest, self.took.as_secs_f64())?;
        for word in ["migrated", "current", "ahead", "failed", "skipped", "waiting"] {
            let count = self.count(word);
            if count > 0 {
                write!(f, " {count} {word}")?;
            }
        }
        for report in &self.sites {
            let at = report.to.map_or_else(|| "-".to_owned(), |version| version.to_string());
            match &report.outcome {
                Outcome::Failed { error, .. } => write!(f, "\n  failed   {} at {at}: {error}", report.site)?,
                Outcome::Skipped { why } => write!(f, "\n  skipped  {} at {at}: {why}", report.site)?,
                Outcome::Ahead => write!(f, "\n  ahead    {} at {at}", report.site)?,
                Outcome::Waiting => write!(f, "\n  waiting  {} at {at}", report.site)?,
                Outcome::Current | Outcome::Migrated { .. } => {}
            }
        }
        Ok(())
    }
}
