//! The binding that serves each tenant where it lives, in whichever mode.

use std::{fmt, num::NonZeroU32, sync::Arc, time::Duration};

use async_trait::async_trait;
use saas_core::{
    Actor, CoreError, SessionBinding, SystemPool, SystemTx, TenantContext, TenantId, TenantPool, db::Place,
};

use super::{
    Fairness, KnownVersions, Lease, Mode, Placement, PlacementError, Pools, State,
    cache::Cache,
    error::is_missing_database,
    fairness::{Turn, Turns},
    record,
};

/// How many tenants' placements a process remembers.
const CAPACITY: usize = 100_000;
/// How long one is believed without news.
const TTL: Duration = Duration::from_secs(60);

/// Serves each tenant where it lives: among all others, in a schema or in a database of its own.
///
/// The application's code is the same in all modes: `TenantTx::begin(&placements, &ctx)`. Only the application's own tables
/// live there; the foundation's rows stay in the control database, behind its [`TenantPool`].
///
/// What it remembers may be out of date for a moment; the database refuses a transaction that comes to a place which the
/// tenant has left, and the placement is then looked up anew. Nobody is ever served at a wrong place.
///
/// Refuses a tenant whose place is not ready ([`BeingProvisioned`](PlacementError::BeingProvisioned),
/// [`ProvisioningFailed`](PlacementError::ProvisioningFailed)), has
/// [`Disappeared`](PlacementError::Disappeared), or has tables of an
/// [`UnknownVersion`](PlacementError::UnknownVersion). Each comes as [`CoreError::Refused`] with its own kind and code.
#[derive(Clone)]
pub struct Placements {
    inner: Arc<Inner>,
}

struct Inner {
    control: TenantPool,
    system: SystemPool,
    pools: Pools,
    known: Option<KnownVersions>,
    turns: Option<Turns>,
    schemas_per_connection: Option<NonZeroU32>,
    cache: Cache,
}

/// Options for [`Placements`].
#[derive(Debug)]
#[must_use]
pub struct PlacementsBuilder {
    control: TenantPool,
    system: SystemPool,
    pools: Pools,
    known: Option<KnownVersions>,
    fairness: Option<Fairness>,
    schemas_per_connection: Option<NonZeroU32>,
    capacity: usize,
    ttl: Duration,
}

impl PlacementsBuilder {
    /// Refuses places whose tables are at another version than these. Without it, every version is served.
    pub fn serving(mut self, known: KnownVersions) -> Self {
        self.known = Some(known);
        self
    }

    /// Bounds what one tenant may take of the shared tables' pool.
    pub fn with_fairness(mut self, fairness: Fairness) -> Self {
        self.fairness = Some(fairness);
        self
    }

    /// Closes a connection when it has served so many schemas: see [`Place::with_schemas_per_connection`], which says how many
    /// those are unless set.
    pub fn with_schemas_per_connection(mut self, schemas: NonZeroU32) -> Self {
        self.schemas_per_connection = Some(schemas);
        self
    }

    /// Remembers about `tenants` of them, each for at most `ttl`; 100,000 for 60 s unless set.
    pub fn with_memory(mut self, tenants: usize, ttl: Duration) -> Self {
        (self.capacity, self.ttl) = (tenants, ttl);
        self
    }

    /// The binding.
    #[must_use]
    pub fn build(self) -> Placements {
        Placements {
            inner: Arc::new(Inner {
                control: self.control,
                system: self.system,
                pools: self.pools,
                known: self.known,
                turns: self.fairness.map(Turns::new),
                schemas_per_connection: self.schemas_per_connection,
                cache: Cache::new(self.capacity, self.ttl),
            }),
        }
    }
}

impl Placements {
    /// The binding over the pools of the control database and those of tenants' own databases.
    pub const fn builder(control: TenantPool, system: SystemPool, pools: Pools) -> PlacementsBuilder {
        PlacementsBuilder {
            control,
            system,
            pools,
            known: None,
            fairness: None,
            schemas_per_connection: None,
            capacity: CAPACITY,
            ttl: TTL,
        }
    }

    /// The pools of tenants' own databases.
    #[must_use]
    pub fn pools(&self) -> &Pools {
        &self.inner.pools
    }

    /// Forgets where a tenant lives; the next request looks it up.
    pub fn forget(&self, tenant: TenantId) {
        self.inner.cache.forget(tenant);
    }

    /// Forgets where all tenants live.
    pub fn forget_all(&self) {
        self.inner.cache.forget_all();
    }

    /// Where a tenant lives, as far as this process knows; looked up when it does not.
    ///
    /// # Errors
    /// When the control database does not answer.
    pub async fn placement(&self, tenant: TenantId) -> Result<Arc<Placement>, PlacementError> {
        if let Some(placement) = self.inner.cache.find(tenant) {
            return Ok(placement);
        }
        self.look_up(tenant).await
    }

    async fn look_up(&self, tenant: TenantId) -> Result<Arc<Placement>, PlacementError> {
        let reading = self.inner.cache.begin(tenant);
        let mut tx = SystemTx::begin(&self.inner.system, BINDING, "find where a tenant lives").await?;
        let placement = Arc::new(record::get_in(&mut tx, tenant).await?);
        drop(tx);
        self.check(&placement)?;
        if placement.site.schema.is_some() {
            self.look_for_schema(&placement).await?;
        }
        // A refusal is not remembered: whoever mends it must not wait for a TTL.
        reading.keep(Arc::clone(&placement));
        Ok(placement)
    }

    fn check(&self, placement: &Placement) -> Result<(), PlacementError> {
        let tenant = placement.tenant;
        match placement.state {
            State::Active | State::Moving => {}
            State::Provisioning => return Err(PlacementError::BeingProvisioned { tenant }),
            State::Failed => {
                let reason = placement.reason.clone().unwrap_or_else(|| "no reason was noted".to_owned());
                return Err(PlacementError::ProvisioningFailed { tenant, reason });
            }
        }
        match (&self.inner.known, placement.mode, placement.schema_version) {
            // Nobody has migrated the shared tables by the fleet: their version is the application's own affair.
            (None, ..) | (_, Mode::Pooled, None) => Ok(()),
            (Some(known), _, found) => known.check(&placement.site, found),
        }
    }

    /// A search path may name a schema that is not there: every table would be missing, and nobody would know why.
    async fn look_for_schema(&self, placement: &Placement) -> Result<(), PlacementError> {
        let source = self.source(placement).await?;
        let exists: bool = sqlx::query_scalar("select exists (select from pg_namespace where nspname = $1)")
            .bind(placement.site.schema_or_public())
            .fetch_one(source.pool().pool())
            .await
            .map_err(CoreError::from_database)?;
        if exists { Ok(()) } else { Err(disappeared(placement)) }
    }

    async fn source(&self, placement: &Placement) -> Result<Source<'_>, PlacementError> {
        let database = &placement.site.database;
        if database.is_control() {
            return Ok(Source::Control(&self.inner.control));
        }
        self.inner.pools.lease(database).await.map(Source::Leased).map_err(|error| match error {
            PlacementError::DatabaseDown { cause, .. } if is_missing_database(&cause) => disappeared(placement),
            other => other,
        })
    }

    async fn find_place(&self, tenant: TenantId) -> Result<Place, PlacementError> {
        let placement = self.placement(tenant).await?;
        let turn = match (&self.inner.turns, placement.mode) {
            (Some(turns), Mode::Pooled) => Some(turns.wait(tenant).await?),
            (_, _) => None,
        };
        let limited = turn.is_some();
        let source = self.source(&placement).await?;
        let mut place = Place::pooled(source.pool()).at_generation(placement.generation);
        if let Some(schema) = &placement.site.schema {
            place = place.in_schema(schema.clone());
            if let Some(schemas) = self.inner.schemas_per_connection {
                place = place.with_schemas_per_connection(schemas);
            }
        }
        if limited && let Some(timeout) = self.inner.turns.as_ref().and_then(Turns::statement_timeout) {
            place = place.with_statement_timeout(timeout);
        }
        Ok(match (source, turn) {
            (Source::Control(_), None) => place,
            (source, turn) => place.holding(Held { _turn: turn, _lease: source.into_lease() }),
        })
    }
}

const BINDING: Actor = Actor::system("placements");

/// What a transaction keeps until it ends.
struct Held {
    _turn: Option<Turn>,
    _lease: Option<Lease>,
}

/// The pool of a placement's database.
enum Source<'a> {
    Control(&'a TenantPool),
    Leased(Lease),
}

impl Source<'_> {
    fn pool(&self) -> &TenantPool {
        match self {
            Self::Control(pool) => pool,
            Self::Leased(lease) => lease.pool(),
        }
    }

    fn into_lease(self) -> Option<Lease> {
        match self {
            Self::Control(_) => None,
            Self::Leased(lease) => Some(lease),
        }
    }
}

fn disappeared(placement: &Placement) -> PlacementError {
    PlacementError::Disappeared { tenant: placement.tenant, site: placement.site.clone() }
}

#[async_trait]
impl SessionBinding for Placements {
    async fn place(&self, ctx: &dyn TenantContext) -> Result<Place, CoreError> {
        Ok(self.find_place(ctx.tenant()).await?)
    }

    fn refused(&self, tenant: TenantId) {
        self.forget(tenant);
    }
}

impl fmt::Debug for Placements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.inner;
        let mut debug = f.debug_struct("Placements");
        debug.field("pools", &inner.pools).field("known", &inner.known).finish_non_exhaustive()
    }
}
