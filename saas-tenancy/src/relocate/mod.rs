//! Moving a tenant's tables from one place to another while the tenant works on.
//!
//! Owns the way of the application's own tables between any two of the three modes: shared tables, a schema, a database, on
//! the same server or on different ones. Promises that no write which was acknowledged is lost and none is there twice;
//! that until the switch the source serves whatever happens to the mover or the target; that a mover which is killed at any
//! step is resumed, or rolled back, by another; and that no row of another tenant is read or touched. Leaves making the
//! target (its schema or database, migrated to the same version) to the provisioner.
//!
//! # How
//! 1. *Capture*: triggers on the source's tables log the key of every row of this tenant that changes.
//! 2. *Copy*: each table is streamed in one snapshot, and compared with it by number and checksum before it stays.
//! 3. *Catch up*: what the log names is brought to the state of a later snapshot, round by round.
//! 4. *Freeze*: the tenant's transactions wait at the door; the rest of the log is carried over and compared.
//! 5. *Switch*: the source is closed for ever at its generation, the target opened at the next, the placement changed.
//! 6. *Confirm*: the source is kept as it was until an operator confirms; until then the tenant can move back.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use saas_core::{Actor, SystemClock, SystemPool, TenantId};
//! # use saas_tenancy::relocate::{Address, Endpoints, MoveError, Mover};
//! # async fn example(system: SystemPool, endpoints: Arc<dyn Endpoints>, tenant: TenantId) -> Result<(), MoveError> {
//! let mover = Mover::new(system, endpoints, Arc::new(SystemClock));
//! let target = Address::database("eu-1", "acme");
//! let report = mover.move_tenant(tenant, &target, &Actor::system("operator"), &|_| {}).await?;
//! println!("{} rows, the tenant waited {:?}", report.rows(), report.freeze);
//! mover.confirm(tenant, &|_| {}).await?; // once all is well
//! # Ok(()) }
//! ```
//!
//! # What a tenant notices
//! Transactions that begin during the freeze wait; those begun with the old placement are refused with `SA001`, whereupon
//! `TenantTx` asks the binding for the new place. Writers that do not come through the door (a worker as the system role)
//! are held by the log's trigger and refused in the same way.

mod address;
mod carry;
mod clear;
mod clusters;
mod door;
mod error;
mod layout;
mod load;
mod numbers;
mod pipe;
mod placed;
mod record;
mod report;
mod session;
mod sides;
mod state;
mod switch;
mod tables;

use std::sync::Arc;

use saas_core::{Actor, SharedClock, SystemPool, TenantId};

use clear::Leave;
use record::{Control, Record};
use sides::Sides;
use state::{Facts, Step, decide};

pub use address::{Address, Endpoint, Endpoints, Mode};
pub use error::{MoveError, Side};
pub use report::{Audit, Listener, MovedTable, Phase, Progress, Report};
pub use session::CAPTURE;
pub use state::State;

/// Unfinished moves that are listed at once.
const LIST_LIMIT: i64 = 1_000;

/// Moves tenants. See the [module](self).
#[derive(Debug, Clone)]
pub struct Mover {
    control: Control,
    endpoints: Arc<dyn Endpoints>,
}

/// A move that is neither confirmed nor rolled back.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Status {
    /// How far it is.
    pub state: State,
    /// The place that the tenant leaves, or has left.
    pub source: Address,
    /// The place that it goes to.
    pub target: Address,
    /// What was done so far.
    pub report: Report,
}

impl Mover {
    /// A mover for the tenants of a control database.
    #[must_use]
    pub fn new(system: SystemPool, endpoints: Arc<dyn Endpoints>, clock: SharedClock) -> Self {
        Self { control: Control::new(system, clock), endpoints }
    }

    /// Moves a tenant to `target`, which exists, is migrated and holds nothing of the tenant. Returns when the tenant is at
    /// home there; the source is kept until [`confirm`](Self::confirm).
    ///
    /// # Errors
    /// The tenant stays where it is, is served, and the move can be resumed or rolled back:
    /// - [`UnderWay`](MoveError::UnderWay), [`AlreadyThere`](MoveError::AlreadyThere), [`Occupied`](MoveError::Occupied),
    ///   [`NotServed`](MoveError::NotServed), [`Erased`](MoveError::Erased): nothing was begun.
    /// - [`PlaceGone`](MoveError::PlaceGone), [`NotPrivileged`](MoveError::NotPrivileged),
    ///   [`Differs`](MoveError::Differs), [`ChangedMeanwhile`](MoveError::ChangedMeanwhile), [`Unmovable`](MoveError::Unmovable), [`NotEmpty`](MoveError::NotEmpty),
    ///   [`Orphan`](MoveError::Orphan): mend what it says.
    /// - [`TargetRefused`](MoveError::TargetRefused), [`Unequal`](MoveError::Unequal), [`Busy`](MoveError::Busy),
    ///   [`CannotKeepUp`](MoveError::CannotKeepUp), or the databases' own.
    pub async fn move_tenant(
        &self,
        tenant: TenantId,
        target: &Address,
        actor: &Actor,
        listener: Listener<'_>,
    ) -> Result<Report, MoveError> {
        let record = self.control.begin(tenant, target, actor).await?;
        self.run(record, listener).await
    }

    /// Goes on with a move whose mover ended, from wherever it was.
    ///
    /// # Errors
    /// [`NoMove`](MoveError::NoMove); [`Driven`](MoveError::Driven) while its mover is alive; those of
    /// [`move_tenant`](Self::move_tenant).
    pub async fn resume(&self, tenant: TenantId, listener: Listener<'_>) -> Result<Report, MoveError> {
        let record = self.open_move(tenant).await?;
        self.run(record, listener).await
    }

    /// Clears the place that the tenant has left: deletes its rows there, or drops the schema or database of its own.
    ///
    /// # Errors
    /// [`WrongState`](MoveError::WrongState) before the switch; [`AuditFailed`](MoveError::AuditFailed);
    /// [`PlacementChanged`](MoveError::PlacementChanged) when the tenant does not live in the target.
    pub async fn confirm(&self, tenant: TenantId, listener: Listener<'_>) -> Result<(), MoveError> {
        let mut record = self.open_move(tenant).await?;
        self.leave_source(&mut record, Leave::Nothing, listener).await
    }

    /// Moves the tenant back to where it came from, with everything it has written since. The place must still be there, and
    /// what was kept in it is replaced.
    ///
    /// # Errors
    /// As [`confirm`](Self::confirm) and [`move_tenant`](Self::move_tenant).
    pub async fn move_back(
        &self,
        tenant: TenantId,
        actor: &Actor,
        listener: Listener<'_>,
    ) -> Result<Report, MoveError> {
        let mut record = self.open_move(tenant).await?;
        self.leave_source(&mut record, Leave::Place, listener).await?;
        self.move_tenant(tenant, &record.source, actor, listener).await
    }

    /// Gives a move up before the switch, at any step: the source is opened if need be, stops logging, and the target is
    /// cleared. A target that no longer exists is clear.
    ///
    /// # Errors
    /// [`Driven`](MoveError::Driven) while its mover is alive, which ends at its next step: call this again.
    /// [`WrongState`](MoveError::WrongState) after the switch: confirm it or move back. When the target does not answer,
    /// the source is rid of the move already, and the target is cleared by calling this again.
    pub async fn roll_back(&self, tenant: TenantId, listener: Listener<'_>) -> Result<(), MoveError> {
        let mut record = self.open_move(tenant).await?;
        self.control.take_over(&mut record).await?;
        let from = self.endpoints.endpoint(&record.source).await?;
        match record.state {
            State::Planned | State::Copying | State::CatchingUp => {
                self.control.advance(&mut record, State::RollingBack).await?;
            }
            // The doors of both sides may be in between.
            State::Switching => {
                let to = self.endpoints.endpoint(&record.target).await?;
                let mut sides = Sides::open(&record, &from, &to).await?;
                self.control.take_over(&mut record).await?;
                match self.next_step(&mut sides, &record).await? {
                    Step::Reopen => switch::reopen(&self.control, &mut sides, &mut record).await?,
                    // Another mover has opened it meanwhile.
                    Step::Capture | Step::StartOver | Step::Copy | Step::CatchUpAndSwitch => {}
                    Step::ClearSource | Step::ClearTarget | Step::Rest => {
                        return Err(MoveError::WrongState { state: record.state, what: "rolled back" });
                    }
                }
                self.control.advance(&mut record, State::RollingBack).await?;
            }
            State::RollingBack => {}
            state @ (State::Switched | State::Confirming | State::Confirmed | State::RolledBack) => {
                return Err(MoveError::WrongState { state, what: "rolled back" });
            }
        }
        self.require(&record, Step::ClearTarget).await?;
        let to = self.endpoints.endpoint(&record.target).await;
        clear::target(&self.control, &mut record, &from, to, listener).await
    }

    /// The tenant's move that is neither confirmed nor rolled back.
    ///
    /// # Errors
    /// When the control database does not answer.
    pub async fn find(&self, tenant: TenantId) -> Result<Option<Status>, MoveError> {
        Ok(self.control.find_open(tenant).await?.map(|record| {
            let Record { state, source, target, report, .. } = record;
            Status { state, source, target, report }
        }))
    }

    /// Tenants whose move was begun and is neither at rest nor over, the longest waiting first; at most 1,000. A process that
    /// runs movers resumes these when it starts: one that was killed between closing the source and the switch has left a
    /// tenant that nobody serves.
    ///
    /// # Errors
    /// When the control database does not answer.
    pub async fn list_unfinished(&self) -> Result<Vec<TenantId>, MoveError> {
        Ok(self.control.list_unfinished(LIST_LIMIT).await?)
    }

    async fn open_move(&self, tenant: TenantId) -> Result<Record, MoveError> {
        self.control.find_open(tenant).await?.ok_or(MoveError::NoMove)
    }

    /// Drives a move until it rests. After an error in the middle of the switch, sees to it that the source is served.
    async fn run(&self, mut record: Record, listener: Listener<'_>) -> Result<Report, MoveError> {
        match self.drive(&mut record, Until::Rest, listener).await {
            Err(error) if record.state == State::Switching => {
                let recovered = self.drive(&mut record, Until::Open, listener).await;
                // The switch had happened, and only its answer was lost.
                if record.state == State::Switched { recovered } else { Err(error) }
            }
            result => result,
        }
    }

    async fn drive(&self, record: &mut Record, until: Until, listener: Listener<'_>) -> Result<Report, MoveError> {
        let from = self.endpoints.endpoint(&record.source).await?;
        if matches!(record.state, State::Confirming) {
            self.leave_source(record, Leave::Nothing, listener).await?;
            return Ok(record.report.clone());
        }
        let to = self.endpoints.endpoint(&record.target).await?;
        let mut sides = Sides::open(record, &from, &to).await?;
        // Only now: a former mover has lost the target, and with the lease it loses the control database.
        self.control.take_over(record).await?;
        loop {
            match self.next_step(&mut sides, record).await? {
                Step::Capture => load::capture(&self.control, &mut sides, record, listener).await?,
                Step::StartOver => load::start_over(&self.control, &mut sides, record).await?,
                Step::Copy => load::copy(&self.control, &mut sides, record, listener).await?,
                Step::CatchUpAndSwitch if until == Until::Open => return Ok(record.report.clone()),
                Step::CatchUpAndSwitch => {
                    record.report.tables = load::list_moved(&self.control, record).await?;
                    switch::catch_up_and_switch(&self.control, &mut sides, record, &to, listener).await?;
                }
                Step::Reopen => switch::reopen(&self.control, &mut sides, record).await?,
                Step::Rest => return Ok(record.report.clone()),
                Step::ClearSource | Step::ClearTarget => {
                    return Err(MoveError::WrongState { state: record.state, what: "resumed" });
                }
            }
        }
    }

    async fn next_step(&self, sides: &mut Sides, record: &Record) -> Result<Step, MoveError> {
        let home = record.home(&self.control.placement(record.tenant).await?);
        // A table that was changed or added since may have rows that are in no log.
        let is_captured = sides.shape == record.report.shape && sides.is_captured(record).await?;
        let arrived = self.control.list_arrived(record).await?;
        let is_loaded = sides.tables.iter().all(|table| arrived.contains_key(&table.name));
        decide(record.state, Facts { home, is_captured, is_loaded })
    }

    /// Demands that what is recorded and the placement agree that `step` is next.
    async fn require(&self, record: &Record, step: Step) -> Result<(), MoveError> {
        let home = record.home(&self.control.placement(record.tenant).await?);
        let found = decide(record.state, Facts { home, is_captured: true, is_loaded: true })?;
        if found == step { Ok(()) } else { Err(MoveError::PlacementChanged { state: record.state }) }
    }

    async fn leave_source(&self, record: &mut Record, leave: Leave, listener: Listener<'_>) -> Result<(), MoveError> {
        self.control.take_over(record).await?;
        match record.state {
            State::Switched => {
                if let Audit::Unequal { tables } = &record.report.audit {
                    return Err(MoveError::AuditFailed { tables: tables.join(", ") });
                }
                self.require(record, Step::Rest).await?;
                self.control.advance(record, State::Confirming).await?;
            }
            State::Confirming => {}
            state @ (State::Planned
            | State::Copying
            | State::CatchingUp
            | State::Switching
            | State::Confirmed
            | State::RollingBack
            | State::RolledBack) => return Err(MoveError::WrongState { state, what: "confirmed" }),
        }
        self.require(record, Step::ClearSource).await?;
        let from = self.endpoints.endpoint(&record.source).await?;
        clear::source(&self.control, record, &from, leave, listener).await
    }
}

/// How far to drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// The tenant is at home in the target.
    Rest,
    /// The tenant is served, here or there.
    Open,
}
