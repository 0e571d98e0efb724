//! Why a tenant could not be moved. Until the switch, the source goes on serving whatever the error.

use saas_core::{CoreError, ErrorKind};

use super::state::State;
use crate::lifecycle::State as Status;

/// One end of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Side {
    /// The place that the tenant leaves.
    Source,
    /// The place that the tenant goes to.
    Target,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

/// Why a tenant could not be moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MoveError {
    /// The control database, or the source, did not do as asked.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The tenant has a move that is neither confirmed nor rolled back.
    #[error("a move of this tenant is under way ({state}); resume, confirm or roll it back first")]
    UnderWay {
        /// How far it is.
        state: State,
    },
    /// Nothing to resume, confirm or roll back.
    #[error("this tenant has no move under way")]
    NoMove,
    /// The move is past this, or not there yet.
    #[error("a move that is {state} cannot be {what}")]
    WrongState {
        /// How far it is.
        state: State,
        /// What was asked.
        what: &'static str,
    },
    /// Another process drives this move.
    #[error("another process is driving this move; let it finish, or end it first")]
    Driven,
    /// The tenant is there already.
    #[error("the tenant is at {address} already")]
    AlreadyThere {
        /// Where.
        address: String,
    },
    /// The tenant's own place is not ready, so there is nothing to move.
    #[error("the tenant's place, {address}, is not ready; let its provisioning end, or abandon it")]
    NotServed {
        /// Where.
        address: String,
    },
    /// The tenant is at its end.
    #[error("the tenant is {state}, so it is not moved")]
    Erased {
        /// How far that is.
        state: Status,
    },
    /// The place is to be one tenant's own, and another is there.
    #[error("{address} is the place of another tenant; provision one for this tenant")]
    Occupied {
        /// Where.
        address: String,
    },
    /// A migration ran while the tenant moved: what it added is in no log.
    #[error(
        "tables were changed while the tenant moved; migrate both places to the same version of the application, then resume: the copy begins anew"
    )]
    ChangedMeanwhile,
    /// The placement was changed by someone else.
    #[error(
        "the tenant's placement is neither the source nor the target of the move that is {state}; find out who changed saas.placement"
    )]
    PlacementChanged {
        /// How far the move is.
        state: State,
    },
    /// The database or schema does not exist, or cannot be reached.
    #[error("the {side} cannot be reached: {what}")]
    PlaceGone {
        /// Which end.
        side: Side,
        /// What is missing.
        what: String,
        /// The server itself says so; otherwise it may only be out of reach for now.
        is_certain: bool,
        /// The database's own error.
        #[source]
        cause: Option<CoreError>,
    },
    /// The login may not do what a mover does.
    #[error("the login for the {side} {reason}; {remedy}")]
    NotPrivileged {
        /// Which end.
        side: Side,
        /// What is missing.
        reason: &'static str,
        /// What to do.
        remedy: String,
    },
    /// The target does not have the same tables.
    #[error("the table {table} {what}; migrate both places to the same version of the application")]
    Differs {
        /// Which.
        table: String,
        /// How.
        what: String,
    },
    /// A table that cannot be moved as it is.
    #[error("the table {table} cannot be moved: {reason}; {remedy}")]
    Unmovable {
        /// Which.
        table: String,
        /// Why.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// The target holds rows of the tenant that did not come from this move.
    #[error(
        "the target's {table} holds rows of this tenant already; look at them, and delete them if they are left over"
    )]
    NotEmpty {
        /// Which table.
        table: String,
    },
    /// The target refused rows: it is full, a constraint or trigger is in the way, or it went away.
    #[error("the target refused rows of {table}: {cause}; mend it and resume, or roll back")]
    TargetRefused {
        /// Which table.
        table: String,
        /// Why.
        cause: CoreError,
    },
    /// Rows on both sides are not the same. Nothing was switched.
    #[error(
        "{table} is not the same on both sides: {source_rows} rows and {target_rows} rows; roll back and look at the target"
    )]
    Unequal {
        /// Which table.
        table: String,
        /// In the source.
        source_rows: i64,
        /// In the target.
        target_rows: i64,
    },
    /// The two sides were not the same when they were compared after the switch. The source is kept.
    #[error(
        "{tables} were not the same on both sides after the switch: compare them by hand before the source is given up"
    )]
    AuditFailed {
        /// Which tables.
        tables: String,
    },
    /// A row refers to something that the target does not have.
    #[error(
        "rows of {table} break the foreign key {constraint} at the target: add there what they refer to, then resume"
    )]
    Orphan {
        /// Which table.
        table: String,
        /// Which foreign key.
        constraint: String,
    },
    /// Running transactions did not let go of a table, or of the tenant, in time. Nothing was held up for long.
    #[error("{what} was busy for too long; resume when there is less going on, or end the long transactions")]
    Busy {
        /// What could not be had.
        what: String,
    },
    /// More changes than can be carried over.
    #[error(
        "{left} rows were still to be carried over after {rounds} rounds: the tenant writes faster than the target takes it"
    )]
    CannotKeepUp {
        /// Rounds so far.
        rounds: u32,
        /// Keys in the log.
        left: u64,
    },
    /// The tenant's door at the source was set by hand, and does not follow its status.
    #[error(
        "the tenant's door at the source was set by hand ({reason}); set it to open first, and suspend the tenant by `Lifecycle`"
    )]
    Closed {
        /// What its resident row says.
        reason: String,
    },
}

impl MoveError {
    /// What a caller can do about it.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Core(error) => error.kind(),
            Self::UnderWay { .. }
            | Self::WrongState { .. }
            | Self::Driven
            | Self::AlreadyThere { .. }
            | Self::PlacementChanged { .. }
            | Self::NotEmpty { .. }
            | Self::NotServed { .. }
            | Self::Erased { .. }
            | Self::Occupied { .. }
            | Self::ChangedMeanwhile
            | Self::Closed { .. } => ErrorKind::Conflict,
            Self::NoMove => ErrorKind::NotFound,
            Self::PlaceGone { .. } | Self::TargetRefused { .. } | Self::Busy { .. } | Self::CannotKeepUp { .. } => {
                ErrorKind::Unavailable
            }
            Self::NotPrivileged { .. } | Self::Differs { .. } | Self::Unmovable { .. } | Self::Orphan { .. } => {
                ErrorKind::Misconfigured
            }
            Self::Unequal { .. } | Self::AuditFailed { .. } => ErrorKind::Corrupt,
        }
    }

    /// A stable name for logs, metrics and clients.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Core(error) => error.code(),
            Self::UnderWay { .. } => "move_under_way",
            Self::NoMove => "no_move",
            Self::WrongState { .. } => "wrong_move_state",
            Self::Driven => "move_driven_elsewhere",
            Self::AlreadyThere { .. } => "already_there",
            Self::PlacementChanged { .. } => "placement_changed",
            Self::NotServed { .. } => "not_served",
            Self::Erased { .. } => "tenant_erased",
            Self::Occupied { .. } => "place_occupied",
            Self::ChangedMeanwhile => "tables_changed",
            Self::PlaceGone { .. } => "place_gone",
            Self::NotPrivileged { .. } => "mover_not_privileged",
            Self::Differs { .. } => "tables_differ",
            Self::Unmovable { .. } => "table_unmovable",
            Self::NotEmpty { .. } => "target_not_empty",
            Self::TargetRefused { .. } => "target_refused",
            Self::Unequal { .. } => "sides_unequal",
            Self::AuditFailed { .. } => "move_audit_failed",
            Self::Orphan { .. } => "orphan_at_target",
            Self::Busy { .. } => "busy",
            Self::CannotKeepUp { .. } => "cannot_keep_up",
            Self::Closed { .. } => "tenant_closed",
        }
    }

    /// Whether the same call can succeed later without anyone changing anything.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        self.kind().is_retryable()
    }
}
