//! Runs the application's migrations in all places, and keeps the ledger of what stands applied where.
//!
//! A place that fails stays at its last whole migration, and is refused service by binaries that do not know that version;
//! the others are served. Whoever is killed leaves a ledger that is at worst behind: the next run finds what is applied.

mod progress;
mod report;
mod sites;

use std::{fmt, num::NonZeroUsize, sync::Arc};

use saas_core::{Actor, CoreError, SharedClock, SystemPool, SystemTx, TenantId};
use sqlx::PgConnection;
use tokio::{task::JoinSet, time::Instant};

use self::sites::Waiting;
pub use self::{
    progress::{Event, Observer, ProgressBar},
    report::{Ending, Outcome, Report, SiteReport},
};
use super::{
    AppliedStep, Blueprint, Clusters, Database, Login, PlacementError, Site, Timeouts,
    error::is_missing_place,
    ground::{Applying, Ground, close, connect, unlock},
    ledger,
};

/// The application's migrations, over all places.
#[derive(Clone)]
pub struct Fleet {
    system: SystemPool,
    ground: Ground,
    blueprint: Arc<Blueprint>,
    clock: SharedClock,
    parallelism: NonZeroUsize,
    canaries: Canaries,
    stop_after: NonZeroUsize,
    shared: Shared,
    observer: Option<Observer>,
}

/// Which places are migrated before all others. If one of them fails, the others are left as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Canaries {
    /// So many tenants' own places, in the order of their ids.
    First(usize),
    /// The places of these tenants, which must have one of their own that is served and not being moved.
    Of(Vec<TenantId>),
}

/// Whether the shared tables are migrated with the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// After the canaries, before the rest.
    Included,
    /// The application migrates them itself.
    Excluded,
}

const FLEET: Actor = Actor::system("fleet");

impl Fleet {
    /// A fleet that is to be at the newest version of `blueprint`: one place at a time, one canary, and a stop at the first
    /// failure, until told otherwise. Needs the clusters' admin logins.
    #[must_use]
    pub fn new(system: SystemPool, clusters: Clusters, blueprint: Blueprint, clock: SharedClock) -> Self {
        Self {
            system,
            ground: Ground { clusters, timeouts: Timeouts::default() },
            blueprint: Arc::new(blueprint),
            clock,
            parallelism: NonZeroUsize::MIN,
            canaries: Canaries::First(1),
            stop_after: NonZeroUsize::MIN,
            shared: Shared::Included,
            observer: None,
        }
    }

    /// Works on so many places at a time. Each takes a connection of the admin's login.
    #[must_use]
    pub const fn with_parallelism(mut self, places: NonZeroUsize) -> Self {
        self.parallelism = places;
        self
    }

    /// Which places go first.
    #[must_use]
    pub fn with_canaries(mut self, canaries: Canaries) -> Self {
        self.canaries = canaries;
        self
    }

    /// Begins no further place once so many have failed.
    #[must_use]
    pub const fn stop_after(mut self, failures: NonZeroUsize) -> Self {
        self.stop_after = failures;
        self
    }

    /// Whether the shared tables are migrated as well.
    #[must_use]
    pub const fn with_shared(mut self, shared: Shared) -> Self {
        self.shared = shared;
        self
    }

    /// How long a statement may wait for a lock, and run.
    #[must_use]
    pub const fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        self.ground.timeouts = timeouts;
        self
    }

    /// Tells `observer` of every place that is begun and finished.
    #[must_use]
    pub fn with_observer(mut self, observer: Observer) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Brings every place to the newest version: those that are not there yet, also after a failure or a kill. Places that
    /// are being made or moved, or that another process works on, are skipped: whoever is at it leaves them whole.
    ///
    /// A place that fails is part of the report, not an error.
    ///
    /// # Errors
    /// - [`InProgress`](PlacementError::InProgress): another process migrates the fleet.
    /// - [`InTheWay`](PlacementError::InTheWay): a tenant that was named as a canary has no place that can be one. Nothing
    ///   was touched.
    /// - When the control database does not answer: what was applied meanwhile is found by the next run.
    pub async fn run(&self) -> Result<Report, PlacementError> {
        let began = Instant::now();
        let lock = self.lock().await?;
        let done = self.run_locked().await;
        unlock(lock).await;
        let (sites, ending) = done?;
        let report = Report { newest: self.blueprint.newest(), sites, ending, took: began.elapsed() };
        self.tell(&Event::Ended(&report));
        Ok(report)
    }

    async fn run_locked(&self) -> Result<(Vec<SiteReport>, Ending), PlacementError> {
        let all = self.list().await?;
        sites::require_canaries(&all, &self.canaries)?;
        let (mut reports, waiting): (Vec<SiteReport>, Vec<Waiting>) = sites::divide(all, self.blueprint.newest());
        let (canaries, others) = sites::order(waiting, &self.canaries);
        self.tell(&Event::Began { waiting: canaries.len() + others.len(), current: reports.len() });
        let before = reports.len();
        self.migrate(canaries, NonZeroUsize::MAX, &mut reports).await?;
        // Also one that somebody else was at: nothing was tried.
        if !reports[before..].iter().all(|report| matches!(report.outcome, Outcome::Migrated { .. })) {
            reports.extend(others.into_iter().map(Waiting::untouched));
            return Ok((reports, Ending::CanaryFailed));
        }
        let (failed, left) = self.migrate(others, self.stop_after, &mut reports).await?;
        let ending = match (left.is_empty(), failed) {
            (true, 0) => Ending::Complete,
            (true, _) => Ending::WithFailures,
            (false, _) => Ending::Stopped,
        };
        reports.extend(left.into_iter().map(Waiting::untouched));
        Ok((reports, ending))
    }

    /// Works through `sites`, some at a time, until `most` have failed. Answers how many have, and what it did not begin.
    async fn migrate(
        &self,
        sites: Vec<Waiting>,
        most: NonZeroUsize,
        reports: &mut Vec<SiteReport>,
    ) -> Result<(usize, Vec<Waiting>), PlacementError> {
        let mut sites = sites.into_iter();
        let mut running = JoinSet::new();
        let mut failed = 0;
        loop {
            while failed < most.get()
                && running.len() < self.parallelism.get()
                && let Some(waiting) = sites.next()
            {
                self.tell(&Event::Started { site: &waiting.site, tenant: waiting.tenant });
                let fleet = self.clone();
                running.spawn(async move { fleet.migrate_one(waiting).await });
            }
            let Some(done) = running.join_next().await else { break };
            let report = done.map_err(|lost| CoreError::Unavailable { cause: Box::new(lost) })??;
            if matches!(report.outcome, Outcome::Failed { .. }) {
                failed += 1;
            }
            self.tell(&Event::Finished(&report));
            reports.push(report);
        }
        Ok((failed, sites.collect()))
    }

    async fn migrate_one(self, waiting: Waiting) -> Result<SiteReport, PlacementError> {
        let began = Instant::now();
        let Waiting { site, tenant, version: from, .. } = waiting;
        let applied = Applying { ground: &self.ground, blueprint: &self.blueprint }.apply(&site, |_| ()).await;
        let applied = applied.map_err(|error| match (error, tenant) {
            (PlacementError::Core(error), Some(tenant)) if is_missing_place(&error) => {
                PlacementError::Disappeared { tenant, site: site.clone() }
            }
            (error, _) => error,
        });
        let mut tx = self.begin("note a place's migrations").await?;
        let now = self.clock.now();
        let (to, outcome) = match &applied {
            Ok(applied) => {
                ledger::record_in(&mut tx, &site, tenant, applied, now).await?;
                let outcome = match &applied.failed {
                    Some(error) => Outcome::failed(error),
                    None => Outcome::Migrated { applied: applied.now },
                };
                (applied.version(), outcome)
            }
            // Nothing was tried, so nothing failed.
            Err(PlacementError::InProgress { .. }) => {
                (from, Outcome::Skipped { why: "another process is at work there" })
            }
            Err(error) => {
                ledger::fail_in(&mut tx, &site, tenant, error, now).await?;
                (from, Outcome::failed(error))
            }
        };
        tx.commit().await?;
        Ok(SiteReport { site, tenant, from, to, outcome, took: began.elapsed() })
    }

    /// Where every place stands, without touching any.
    ///
    /// # Errors
    /// When the control database does not answer.
    pub async fn status(&self) -> Result<Report, PlacementError> {
        let began = Instant::now();
        let (mut sites, waiting) = sites::divide(self.list().await?, self.blueprint.newest());
        sites.extend(waiting.into_iter().map(Waiting::untouched));
        let ending = match sites.iter().all(|report| report.outcome == Outcome::Current) {
            true => Ending::Complete,
            false => Ending::Stopped,
        };
        Ok(Report { newest: self.blueprint.newest(), sites, ending, took: began.elapsed() })
    }

    /// What stands applied in a place, oldest first: which version, when, and how long it took.
    ///
    /// # Errors
    /// When the control database does not answer.
    pub async fn history(&self, site: &Site) -> Result<Vec<AppliedStep>, PlacementError> {
        let mut tx = self.begin("read a place's history").await?;
        Ok(ledger::history_in(&mut tx, site).await?)
    }

    async fn list(&self) -> Result<Vec<sites::Found>, PlacementError> {
        let mut tx = self.begin("list all places").await?;
        Ok(sites::list_in(&mut tx, self.shared).await?)
    }

    async fn begin(&self, reason: &'static str) -> Result<SystemTx, CoreError> {
        SystemTx::begin(&self.system, FLEET, reason).await
    }

    /// Held until the connection closes, also by a kill.
    async fn lock(&self) -> Result<PgConnection, PlacementError> {
        let control = Database::control();
        let mut connection = connect(&self.ground.clusters, &control, Login::System, self.ground.timeouts).await?;
        let locked: bool = sqlx::query_scalar("select pg_try_advisory_lock(hashtextextended('saas.fleet', 0))")
            .fetch_one(&mut connection)
            .await
            .map_err(CoreError::from_database)?;
        if locked {
            return Ok(connection);
        }
        close(connection).await;
        Err(PlacementError::InProgress { what: "the fleet".to_owned() })
    }

    fn tell(&self, event: &Event<'_>) {
        if let Some(observer) = &self.observer {
            observer(event);
        }
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet")
            .field("newest", &self.blueprint.newest())
            .field("parallelism", &self.parallelism)
            .field("canaries", &self.canaries)
            .field("stop_after", &self.stop_after)
            .finish_non_exhaustive()
    }
}
