//! Makes a tenant's own place, and removes one that is not used, or no longer.
//!
//! A place is made in steps, each of which may be repeated; how far it has come is stored in the control database. Whoever
//! is killed half-way leaves a tenant that is refused service with a typed error, and that [`resume`](Provisioner::resume)
//! finishes or [`abandon`](Provisioner::abandon) removes.

mod bookkeeping;
mod leave;
mod make;
mod remove;
mod retire;
mod target;

use std::{fmt, sync::Arc};

use saas_core::{CoreError, SharedClock, SystemPool, SystemTx, TenantId};
use sqlx::PgConnection;

use self::bookkeeping::Books;
pub use self::target::{Progress, Step, Target};
use super::{
    Blueprint, Clusters, Database, Login, Placement, PlacementError, State, Timeouts,
    ground::{Ground, close, connect, unlock},
    record,
};

/// Hears of each step: before it is begun (`false`) and when it is done, but not yet noted (`true`).
pub type Observer = Arc<dyn Fn(TenantId, Step, bool) + Send + Sync>;

/// Makes and removes tenants' own places. Needs the clusters' admin logins.
#[derive(Clone)]
pub struct Provisioner {
    pub(super) system: SystemPool,
    pub(super) ground: Ground,
    pub(super) blueprint: Arc<Blueprint>,
    pub(super) clock: SharedClock,
    observer: Option<Observer>,
}

impl Provisioner {
    /// A provisioner for the application whose tables `blueprint` makes.
    #[must_use]
    pub fn new(system: SystemPool, clusters: Clusters, blueprint: Blueprint, clock: SharedClock) -> Self {
        let ground = Ground { clusters, timeouts: Timeouts::default() };
        Self { system, ground, blueprint: Arc::new(blueprint), clock, observer: None }
    }

    /// How long a statement may wait and run.
    #[must_use]
    pub const fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        self.ground.timeouts = timeouts;
        self
    }

    /// Tells `observer` of each step.
    #[must_use]
    pub fn with_observer(mut self, observer: Observer) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Gives a tenant without rows a place of its own, and serves it there from then on.
    ///
    /// # Errors
    /// As [`request_in`](Self::request_in) and [`resume`](Self::resume).
    pub async fn provision(&self, tenant: TenantId, target: &Target) -> Result<Placement, PlacementError> {
        let mut tx = self.begin("request a tenant's own place").await?;
        self.request_in(&mut tx, tenant, target).await?;
        let placement = record::get_in(&mut tx, tenant).await?;
        tx.commit().await?;
        if placement.state == State::Active { Ok(placement) } else { self.resume(tenant).await }
    }

    /// Notes in the caller's transaction, such as the one that creates the tenant, that it is to get a place of its own.
    /// Until a worker has called [`resume`](Self::resume), the tenant is
    /// [refused](PlacementError::BeingProvisioned) service.
    ///
    /// Where a place of that kind was made ahead (see [`Stock`](super::Stock)), the tenant gets that one: it is the
    /// tenant's with the commit, and nobody's again if the transaction is rolled back.
    ///
    /// A tenant that is to stay in the shared tables of the control cluster needs nothing and is left as it is.
    ///
    /// # Errors
    /// [`InTheWay`](PlacementError::InTheWay) when the tenant has another place, or rows in the shared tables, which only a
    /// move can bring along. [`UnknownCluster`](PlacementError::UnknownCluster). The transaction cannot be used further.
    pub async fn request_in(&self, tx: &mut SystemTx, tenant: TenantId, target: &Target) -> Result<(), PlacementError> {
        self.ground.clusters.options(&target.site(tenant).database, Login::Application)?;
        Books { tx, now: self.clock.now() }.request(tenant, target, self.blueprint.newest()).await
    }

    /// Makes a requested place, from the step that it had come to, and lets the tenant in. Finds nothing to do for a
    /// tenant that is served already.
    ///
    /// One process at a time works on a tenant; a second one waits for the first, up to the lock timeout.
    ///
    /// # Errors
    /// - [`InProgress`](PlacementError::InProgress): another process is still at it.
    /// - [`MigrationFailed`](PlacementError::MigrationFailed), [`Diverged`](PlacementError::Diverged),
    ///   [`Leaks`](PlacementError::Leaks): mend the migrations and resume.
    /// - [`InTheWay`](PlacementError::InTheWay): nobody asked for a place, or the tenant is being moved.
    ///
    /// A failure is noted with its reason; the tenant is refused service until it is resumed or abandoned.
    pub async fn resume(&self, tenant: TenantId) -> Result<Placement, PlacementError> {
        let lock = self.lock(tenant).await?;
        let done = self.resume_locked(tenant).await;
        unlock(lock).await;
        done
    }

    async fn resume_locked(&self, tenant: TenantId) -> Result<Placement, PlacementError> {
        let mut tx = self.begin("take up a tenant's place").await?;
        let taken = Books { tx: &mut tx, now: self.clock.now() }.take_up(tenant).await?;
        tx.commit().await?;
        let (placement, step) = match taken {
            bookkeeping::Taken::Done(placement) => return Ok(placement),
            bookkeeping::Taken::ToDo(placement, step) => (placement, step),
        };
        let made = self.make(&placement, step).await;
        if let Err(error) = &made
            && let Err(unnoted) = self.note_failure(&placement, error).await
        {
            // The place stays as being made, which can be resumed just as well.
            tracing::warn!(
                target: "saas.tenancy.provisioner", %tenant, error = &unnoted as &dyn std::error::Error,
                "cannot note why a tenant's place was not made"
            );
        }
        made
    }

    async fn note_failure(&self, placement: &Placement, error: &PlacementError) -> Result<(), PlacementError> {
        let mut tx = self.begin("note why a place was not made").await?;
        Books { tx: &mut tx, now: self.clock.now() }.fail(placement, &error.in_full()).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Where the making of a tenant's place stands; `None` for a tenant that nobody has placed.
    ///
    /// # Errors
    /// When the control database does not answer.
    pub async fn progress(&self, tenant: TenantId) -> Result<Option<Progress>, PlacementError> {
        let mut tx = self.begin("look how far a place has come").await?;
        Ok(Books { tx: &mut tx, now: self.clock.now() }.progress(tenant).await?)
    }

    /// Tenants whose place is being made or failed, in the order of their ids: up to `limit` after `after`. For a worker
    /// that resumes what others have left.
    ///
    /// # Errors
    /// When the control database does not answer.
    pub async fn list_unfinished(
        &self,
        after: Option<TenantId>,
        limit: u16,
    ) -> Result<Vec<(TenantId, State)>, PlacementError> {
        let mut tx = self.begin("list unfinished places").await?;
        Ok(Books { tx: &mut tx, now: self.clock.now() }.unfinished(after, limit).await?)
    }

    async fn begin(&self, reason: &'static str) -> Result<SystemTx, CoreError> {
        SystemTx::begin(&self.system, bookkeeping::PROVISIONER, reason).await
    }

    /// Held until the connection closes, also by a kill.
    async fn lock(&self, tenant: TenantId) -> Result<PgConnection, PlacementError> {
        let control = Database::control();
        let mut connection = connect(&self.ground.clusters, &control, Login::System, self.ground.timeouts).await?;
        let locked = sqlx::query("select pg_advisory_lock(hashtextextended('saas.provisioning:' || $1, 0))")
            .bind(tenant.to_string())
            .execute(&mut connection)
            .await;
        match locked.map_err(CoreError::from_database) {
            Ok(_) => Ok(connection),
            Err(error) => {
                close(connection).await;
                match error {
                    CoreError::Unavailable { .. } => Err(PlacementError::InProgress { what: tenant.to_string() }),
                    other => Err(other.into()),
                }
            }
        }
    }

    fn tell(&self, tenant: TenantId, step: Step, done: bool) {
        if let Some(observer) = &self.observer {
            observer(tenant, step, done);
        }
    }
}

impl fmt::Debug for Provisioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provisioner").field("ground", &self.ground).finish_non_exhaustive()
    }
}
