//! Makes a tenant's own place, and removes one that was never used.
//!
//! A place is made in steps, each of which may be repeated; how far it has come is stored in the control database. Whoever
//! is killed half-way leaves a tenant that is refused service with a typed error, and that [`resume`](Provisioner::resume)
//! finishes or [`abandon`](Provisioner::abandon) removes.

mod bookkeeping;

use std::{fmt, sync::Arc};

use chrono::{DateTime, Utc};
use saas_core::{CoreError, SharedClock, SystemPool, SystemTx, TenantId};
use sqlx::PgConnection;

use self::bookkeeping::Books;
use super::{
    Blueprint, ClusterName, Clusters, Database, Login, Mode, Placement, PlacementError, Site, State, Timeouts,
    error::is_missing_database,
    ground::{Applying, Ground, close, connect},
    ledger, record,
};
use crate::lifecycle::store::lock_door;

/// What kind of place a tenant gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Among all others. In the control cluster that is where a tenant is from the beginning.
    Pooled(ClusterName),
    /// A schema of its own in the cluster's shared database.
    Schema(ClusterName),
    /// A database of its own on the cluster.
    Database(ClusterName),
}

impl Target {
    /// The place that a tenant gets.
    #[must_use]
    pub fn site(&self, tenant: TenantId) -> Site {
        match self {
            Self::Pooled(cluster) => Site::shared(cluster.clone()),
            Self::Schema(cluster) => Site::schema_of(tenant, cluster.clone()),
            Self::Database(cluster) => Site::database_of(tenant, cluster.clone()),
        }
    }

    /// What the tenant shares there.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        match self {
            Self::Pooled(_) => Mode::Pooled,
            Self::Schema(_) => Mode::Schema,
            Self::Database(_) => Mode::Database,
        }
    }
}

/// How far the making of a place has come. Ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// It was asked for.
    Requested,
    /// The database and the schema are there, with the kernel's tables.
    Created,
    /// The tenant is registered there, behind a closed door.
    Prepared,
    /// The application's tables are there.
    Migrated,
    /// The isolation audit found nothing.
    Examined,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Requested, Self::Created, Self::Prepared, Self::Migrated, Self::Examined];

    /// As it is stored and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Created => "created",
            Self::Prepared => "prepared",
            Self::Migrated => "migrated",
            Self::Examined => "examined",
        }
    }

    fn read(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.as_str() == text)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where the making of a tenant's place stands, for showing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Where it will be, and whether it is being made, served, or failed and why.
    pub placement: Placement,
    /// The last step that is complete; `None` once the place is served.
    pub step: Option<Step>,
    /// How often it was begun.
    pub tries: i32,
    /// Since when it stands there.
    pub since: Option<DateTime<Utc>>,
}

/// Hears of each step: before it is begun (`false`) and when it is done, but not yet noted (`true`).
pub type Observer = Arc<dyn Fn(TenantId, Step, bool) + Send + Sync>;

/// Makes and removes tenants' own places. Needs the clusters' admin logins.
#[derive(Clone)]
pub struct Provisioner {
    system: SystemPool,
    ground: Ground,
    blueprint: Arc<Blueprint>,
    clock: SharedClock,
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
    /// A tenant that is to stay in the shared tables of the control cluster needs nothing and is left as it is.
    ///
    /// # Errors
    /// [`InTheWay`](PlacementError::InTheWay) when the tenant has another place, or rows in the shared tables, which only a
    /// move can bring along. [`UnknownCluster`](PlacementError::UnknownCluster). The transaction cannot be used further.
    pub async fn request_in(&self, tx: &mut SystemTx, tenant: TenantId, target: &Target) -> Result<(), PlacementError> {
        let site = target.site(tenant);
        self.ground.clusters.options(&site.database, Login::Application)?;
        Books { tx, now: self.clock.now() }.request(tenant, target.mode(), site).await
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
        close(lock).await;
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

    /// Takes the remaining steps and activates.
    async fn make(&self, placement: &Placement, done: Step) -> Result<Placement, PlacementError> {
        let (tenant, site) = (placement.tenant, &placement.site);
        let mut applied = None;
        for step in Step::ALL.into_iter().filter(|step| *step > done) {
            self.tell(tenant, step, false);
            match step {
                Step::Requested => {}
                Step::Created => self.ground.create(site).await?,
                Step::Prepared => self.prepare(placement).await?,
                Step::Migrated => applied = self.migrate(site).await?,
                Step::Examined => self.examine(site).await?,
            }
            self.tell(tenant, step, true);
            let mut tx = self.begin("note how far a place has come").await?;
            let mut books = Books { tx: &mut tx, now: self.clock.now() };
            books.note(placement, step).await?;
            if let Some(applied) = &applied {
                ledger::record_in(books.tx, site, owner_of(placement), applied, books.now).await?;
            }
            tx.commit().await?;
        }
        let mut tx = self.begin("let a tenant into its own place").await?;
        // As far as its status lets it in, which nobody changes until this ends.
        let door = lock_door(&mut tx, tenant).await?;
        // The door there first: nobody is sent there yet.
        if !site.database.is_control() {
            self.ground.set_door(&site.database, tenant, placement.generation, door).await?;
        }
        let active = Books { tx: &mut tx, now: self.clock.now() }.activate(placement, door).await?;
        tx.commit().await?;
        Ok(active)
    }

    async fn prepare(&self, placement: &Placement) -> Result<(), PlacementError> {
        if placement.site.database.is_control() {
            return Ok(());
        }
        let mut tx = self.begin("read what a tenant is called").await?;
        let stub = Books { tx: &mut tx, now: self.clock.now() }.stub(placement.tenant).await?;
        drop(tx);
        self.ground.register(&placement.site.database, &stub, placement.generation).await
    }

    /// The shared tables of the control cluster are the fleet's, or the application's own affair; those of another cluster
    /// may be used for the first time.
    async fn migrate(&self, site: &Site) -> Result<Option<super::ground::Applied>, PlacementError> {
        if site.is_shared() && site.database.is_control() {
            return Ok(None);
        }
        let applying = Applying { ground: &self.ground, blueprint: &self.blueprint };
        let applied = applying.apply(site, |_| ()).await?;
        match applied.failed {
            Some(failed) => Err(failed),
            None => Ok(Some(applied)),
        }
    }

    async fn examine(&self, site: &Site) -> Result<(), PlacementError> {
        let findings = self.ground.examine(site).await?;
        if findings.is_empty() { Ok(()) } else { Err(PlacementError::Leaks { site: site.clone(), findings }) }
    }

    /// Removes a place that is being made or failed, wholly; the tenant is where it was before. Safe to repeat.
    ///
    /// # Errors
    /// [`InTheWay`](PlacementError::InTheWay) when the tenant is served there, or has rows there.
    pub async fn abandon(&self, tenant: TenantId) -> Result<(), PlacementError> {
        let lock = self.lock(tenant).await?;
        let done = self.abandon_locked(tenant).await;
        close(lock).await;
        done
    }

    async fn abandon_locked(&self, tenant: TenantId) -> Result<(), PlacementError> {
        let mut tx = self.begin("give a tenant's place up").await?;
        let given_up = Books { tx: &mut tx, now: self.clock.now() }.give_up(tenant).await?;
        tx.commit().await?;
        let Some(placement) = given_up else { return Ok(()) };
        self.remove_empty_site(tenant, &placement.site).await?;
        let mut tx = self.begin("forget a tenant's place").await?;
        Books { tx: &mut tx, now: self.clock.now() }.forget(&placement).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Makes a site ready for a tenant that stays where it is for now: schema or database, registration behind a closed
    /// door, the application's tables, the audit. Changes no placement. Safe to repeat. Answers the tables' version.
    ///
    /// For whoever moves a tenant there; `generation` is the one that it will have.
    ///
    /// # Errors
    /// As [`resume`](Self::resume).
    pub async fn make_site(&self, placement: &Placement) -> Result<Option<i64>, PlacementError> {
        self.ground.create(&placement.site).await?;
        self.prepare(placement).await?;
        let applied = self.migrate(&placement.site).await?;
        self.examine(&placement.site).await?;
        let Some(applied) = applied else { return Ok(None) };
        let mut tx = self.begin("note a place's migrations").await?;
        ledger::record_in(&mut tx, &placement.site, owner_of(placement), &applied, self.clock.now()).await?;
        tx.commit().await?;
        Ok(applied.version())
    }

    /// Removes a tenant's site when the tenant has no row there: drops its schema or database; from shared tables, takes
    /// its registration back.
    ///
    /// # Errors
    /// [`InTheWay`](PlacementError::InTheWay) when the tenant has rows there.
    pub async fn remove_empty_site(&self, tenant: TenantId, site: &Site) -> Result<(), PlacementError> {
        let rows = match self.ground.find_rows(site, tenant).await {
            Err(PlacementError::Core(error)) if is_missing_database(&error) => return Ok(()),
            // Killed between the making of the database and that of its tables: complete, it can be looked through.
            Err(_) if site.database.name.is_some() => {
                self.ground.create(site).await?;
                self.ground.find_rows(site, tenant).await?
            }
            found => found?,
        };
        if let Some(table) = rows {
            return Err(PlacementError::InTheWay {
                tenant,
                what: format!("has rows in `{table}` of `{site}`"),
                remedy: "move the tenant, or erase its rows first",
            });
        }
        self.remove_site_with_rows(tenant, site).await
    }

    /// Removes a tenant's own site with everything in it: for the place that a tenant has left for good.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn remove_site_with_rows(&self, tenant: TenantId, site: &Site) -> Result<(), PlacementError> {
        self.ground.remove(site).await?;
        if site.database.name.is_none() && !site.database.is_control() {
            self.ground.unregister(&site.database, tenant).await?;
        }
        let mut tx = self.begin("forget a place's migrations").await?;
        if !site.is_shared() {
            ledger::forget_in(&mut tx, site).await?;
        }
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

/// Whose place it is in the ledger: shared tables are nobody's.
fn owner_of(placement: &Placement) -> Option<TenantId> {
    (!placement.site.is_shared()).then_some(placement.tenant)
}

impl fmt::Debug for Provisioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provisioner").field("ground", &self.ground).finish_non_exhaustive()
    }
}
