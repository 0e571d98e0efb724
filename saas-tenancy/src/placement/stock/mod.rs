//! Places that are made ahead, so that a tenant that comes gets one at once.
//!
//! Owns places that are nobody's yet: named after no tenant, with the foundation's and the application's tables, examined
//! by the isolation audit, and empty. Promises:
//! - *One each*: a place is claimed in the transaction that gives it to a tenant, and belongs to that tenant's placement from
//!   the commit on. Claims at the same time get different ones; one that is rolled back, or whose process is killed, leaves
//!   the place ready; one that was committed is finished by [`Provisioner::resume`] or removed by
//!   [`abandon`](Provisioner::abandon).
//! - *Fit*: only a place whose tables the claimer's binary carries is claimed. A refill brings those on that an older release
//!   has left behind.
//! - *Nothing left*: what a killed refill was making is made by the next one; what could not be made is removed by it.
//!
//! Leaves claiming to [`Provisioner::request_in`], which makes a place where none is ready, and calling
//! [`Stock::refill`] now and then to the application's scheduler.

mod shelf;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use saas_core::{CoreError, InvalidInput, LeaseToken, SystemTx};
use sqlx::PgConnection;

use self::shelf::Shelf;
pub(super) use self::shelf::{claim_in, is_kept_in};
use super::{
    Database, Login, Mode, PlacementError, Provisioner, Site, Target,
    ground::{close, connect, unlock},
};

/// Keeps a number of places of one kind ready.
#[derive(Debug, Clone)]
pub struct Stock {
    provisioner: Provisioner,
    target: Arc<Target>,
    level: u16,
}

/// How far a place is that was made ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// A refill is at it, or was killed over it.
    Making,
    /// It can be claimed.
    Ready,
    /// It could not be made. The next refill removes it and makes another.
    Failed,
    /// It is being removed.
    Removing,
}

impl Readiness {
    const ALL: [Self; 4] = [Self::Making, Self::Ready, Self::Failed, Self::Removing];

    /// As it is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Making => "making",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Removing => "removing",
        }
    }

    fn read(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|readiness| readiness.as_str() == text)
    }
}

/// A place that was made ahead, and is nobody's yet.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Ready {
    /// Where.
    pub site: Site,
    /// How far it is.
    pub readiness: Readiness,
    /// The version of the application's tables there; `None` before they are there for the first time.
    pub version: Option<i64>,
    /// Why it could not be made.
    pub reason: Option<String>,
    /// Since when it stands there.
    pub since: DateTime<Utc>,
}

/// What a refill did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[must_use]
pub struct Refill {
    /// Places that were made.
    pub made: usize,
    /// Places that were ready, and were brought to the newest version.
    pub migrated: usize,
    /// Places that could not be made earlier, and were removed.
    pub removed: usize,
}

impl Stock {
    /// Keeps `level` places of the kind of `target` ready. Nothing is made yet.
    ///
    /// # Errors
    /// When `target` is shared tables, which need no making.
    pub fn new(provisioner: Provisioner, target: Target, level: u16) -> Result<Self, InvalidInput> {
        if target.mode() == Mode::Pooled {
            return Err(InvalidInput::new("stock", "is to keep shared tables", "name a schema or database target"));
        }
        Ok(Self { provisioner, target: Arc::new(target), level })
    }

    /// Makes what is missing: finishes what a killed refill has begun, brings ready places to the newest version, and makes
    /// new ones up to the level. Places beyond the level are left.
    ///
    /// # Errors
    /// - [`InProgress`](PlacementError::InProgress): another process refills or drains the stock.
    /// - Those of [`Provisioner::resume`]: the first place that could not be made ends the refill, and is shown by
    ///   [`list`](Self::list) with the reason. What was made before is ready.
    pub async fn refill(&self) -> Result<Refill, PlacementError> {
        let lock = self.lock().await?;
        let done = self.refill_locked().await;
        unlock(lock).await;
        done
    }

    async fn refill_locked(&self) -> Result<Refill, PlacementError> {
        let mut done =
            Refill { removed: self.remove_all(&[Readiness::Failed, Readiness::Removing]).await?, ..Refill::default() };
        for begun in self.list_in(&[Readiness::Making]).await? {
            self.make(&begun.site).await?;
            done.made += 1;
        }
        let newest = self.provisioner.blueprint.newest();
        for ready in self.list_in(&[Readiness::Ready]).await? {
            if ready.version.is_some_and(|version| version < newest)
                && self.change(&ready.site, Readiness::Ready, Readiness::Making, ready.version, None).await?
            {
                self.make(&ready.site).await?;
                done.migrated += 1;
            }
        }
        while self.list_in(&[Readiness::Ready]).await?.len() < usize::from(self.level) {
            let site = self.note_new().await?;
            self.make(&site).await?;
            done.made += 1;
        }
        Ok(done)
    }

    /// Every step can be repeated.
    async fn make(&self, site: &Site) -> Result<(), PlacementError> {
        let provisioner = &self.provisioner;
        let made = async {
            provisioner.ground.create(site).await?;
            let applied = provisioner.apply(site).await?;
            provisioner.examine(site).await?;
            Ok(applied.version())
        }
        .await;
        match made {
            Ok(version) => Ok(self.change(site, Readiness::Making, Readiness::Ready, version, None).await.map(drop)?),
            // Whoever is at it does not lose it.
            Err(error @ PlacementError::InProgress { .. }) => Err(error),
            Err(error) => {
                let reason = error.in_full();
                self.change(site, Readiness::Making, Readiness::Failed, None, Some(&reason)).await?;
                Err(error)
            }
        }
    }

    /// Removes every place that nobody has claimed.
    ///
    /// # Errors
    /// [`InProgress`](PlacementError::InProgress): another process refills or drains the stock. When a database refuses.
    pub async fn drain(&self) -> Result<usize, PlacementError> {
        let lock = self.lock().await?;
        let done = self.remove_all(&Readiness::ALL).await;
        unlock(lock).await;
        done
    }

    async fn remove_all(&self, of: &[Readiness]) -> Result<usize, PlacementError> {
        let mut removed = 0;
        for Ready { site, readiness, version, .. } in self.list_in(of).await? {
            // From here on nobody claims it; one that was claimed meanwhile is not touched.
            if self.change(&site, readiness, Readiness::Removing, version, None).await? {
                self.provisioner.ground.remove(&site).await?;
                let mut tx = self.begin("forget a place that was made ahead").await?;
                self.shelf(&mut tx).forget(&site).await?;
                tx.commit().await?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// The places of this kind that are nobody's, the oldest first.
    ///
    /// # Errors
    /// When the control database does not answer.
    pub async fn list(&self) -> Result<Vec<Ready>, PlacementError> {
        Ok(self.list_in(&Readiness::ALL).await?)
    }

    async fn list_in(&self, of: &[Readiness]) -> Result<Vec<Ready>, CoreError> {
        let mut tx = self.begin("list places that were made ahead").await?;
        self.shelf(&mut tx).list(of).await
    }

    async fn change(
        &self,
        site: &Site,
        from: Readiness,
        to: Readiness,
        version: Option<i64>,
        reason: Option<&str>,
    ) -> Result<bool, CoreError> {
        let mut tx = self.begin("note how far a place made ahead is").await?;
        let changed = self.shelf(&mut tx).change(site, (from, to), version, reason).await?;
        tx.commit().await?;
        Ok(changed)
    }

    /// Written down before anything is made, so that it is found again.
    async fn note_new(&self) -> Result<Site, PlacementError> {
        let now = self.provisioner.clock.now();
        let name = format!("saas_t_{}", LeaseToken::mint_at(now).as_uuid().simple());
        let cluster = self.target.cluster().clone();
        let site = match &*self.target {
            Target::Database(_) => Site { database: Database { cluster, name: Some(name.parse()?) }, schema: None },
            Target::Schema(_) | Target::Pooled(_) => Site {
                database: Database { cluster, name: None },
                schema: Some(name.parse().map_err(CoreError::from)?),
            },
        };
        let mut tx = self.begin("begin a place ahead").await?;
        self.shelf(&mut tx).add(&site).await?;
        tx.commit().await?;
        Ok(site)
    }

    fn shelf<'a>(&'a self, tx: &'a mut SystemTx) -> Shelf<'a> {
        Shelf { tx, target: &self.target, now: self.provisioner.clock.now() }
    }

    async fn begin(&self, reason: &'static str) -> Result<SystemTx, CoreError> {
        SystemTx::begin(&self.provisioner.system, shelf::STOCK, reason).await
    }

    /// One process at a time fills and empties a kind of stock. Held until the connection closes, also by a kill.
    async fn lock(&self) -> Result<PgConnection, PlacementError> {
        let ground = &self.provisioner.ground;
        let mut connection = connect(&ground.clusters, &Database::control(), Login::System, ground.timeouts).await?;
        let what = format!("stock of {} on {}", self.target.mode(), self.target.cluster());
        let locked: bool = sqlx::query_scalar("select pg_try_advisory_lock(hashtextextended('saas.stock:' || $1, 0))")
            .bind(&what)
            .fetch_one(&mut connection)
            .await
            .map_err(CoreError::from_database)?;
        if locked {
            return Ok(connection);
        }
        close(connection).await;
        Err(PlacementError::InProgress { what })
    }
}
