//! What an attack found: leaks, what it could not try, and how much it tried.

use std::fmt;

use serde::Serialize;

/// A kind of attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Attack {
    /// Read another tenant's row.
    Select,
    /// Read it through a cursor.
    Cursor,
    /// Read it with `row_security = off`.
    RowSecurityOff,
    /// Read it with a statement that another tenant's session had prepared.
    PreparedStatement,
    /// Read another member's rows of the same tenant, where members see their own only.
    Member,
    /// Remove another tenant's rows behind the tenant's back, and see whether an answer changes.
    Inference,
    /// Store a row for another tenant.
    Insert,
    /// Change another tenant's row.
    Update,
    /// Remove another tenant's row.
    Delete,
    /// Give one's own row to another tenant.
    Move,
    /// Overwrite another tenant's row by `on conflict do update`.
    Upsert,
    /// Point at another tenant's row.
    ForeignKey,
    /// Learn from a unique key or an exclusion constraint what another tenant stores.
    UniqueKey,
    /// Touch another tenant's rows by what a trigger, a rule or a definer's function does.
    SideEffect,
    /// Empty a table for every tenant.
    Truncate,
    /// Attach code that runs for every tenant.
    Trigger,
    /// Read or advance a counter that all tenants share.
    Sequence,
    /// Become a role that sees more.
    SetRole,
    /// Shadow a table with a temporary one.
    TemporaryTable,
    /// Create objects that others would use.
    Create,
    /// Switch the fence off.
    AlterTable,
    /// Pass data between tenants in a large object.
    LargeObject,
    /// Read what the server keeps for all tenants: statistics, secrets, files.
    Server,
    /// Start a session as somebody whom nobody bound.
    PresetTenant,
    /// Write what every tenant reads.
    WriteGlobal,
}

impl fmt::Display for Attack {
    /// As serialized: `row-security-off`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// An attack that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leak {
    /// The table, view, function, … that gave way.
    pub object: String,
    /// What was tried.
    pub attack: Attack,
    /// The statement that did it, with the binding it ran under.
    pub statement: String,
    /// What shows that it worked.
    pub evidence: String,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}\n    {}", self.attack, self.object, self.evidence, self.statement)
    }
}

/// What could not be tried, and so is not proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unproven {
    /// The table, view, function, …
    pub object: String,
    /// Why, and what would help.
    pub reason: String,
}

impl fmt::Display for Unproven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.reason)
    }
}

/// The outcome of an [`attack`](super::attack()). `Display` is for people, `Serialize` for machines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[must_use]
pub struct Report {
    /// Attacks that succeeded.
    pub leaks: Vec<Leak>,
    /// What was not tried, with the reason.
    pub unproven: Vec<Unproven>,
    /// How many attempts were made.
    pub probes: usize,
}

impl Report {
    /// Whether everything was tried and nothing gave way.
    #[must_use]
    pub const fn is_isolated(&self) -> bool {
        self.leaks.is_empty() && self.unproven.is_empty()
    }

    pub(super) fn leak(
        &mut self,
        object: &str,
        attack: Attack,
        statement: impl Into<String>,
        evidence: impl Into<String>,
    ) {
        let leak = Leak { object: object.to_owned(), attack, statement: statement.into(), evidence: evidence.into() };
        if !self.leaks.contains(&leak) {
            self.leaks.push(leak);
        }
    }

    pub(super) fn unproven(&mut self, object: &str, reason: impl Into<String>) {
        let unproven = Unproven { object: object.to_owned(), reason: reason.into() };
        if !self.unproven.contains(&unproven) {
            self.unproven.push(unproven);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (leaks, unproven) = (self.leaks.len(), self.unproven.len());
        writeln!(f, "{} attempts: {leaks} succeeded, {unproven} things could not be tried", self.probes)?;
        for leak in &self.leaks {
            writeln!(f, "  leak      {leak}")?;
        }
        for unproven in &self.unproven {
            writeln!(f, "  unproven  {unproven}")?;
        }
        Ok(())
    }
}
