//! From a request to a member's context.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    Actor, CoreError, InvalidInput, RequestContext, Revision, SystemTx, TenantId, UserId,
    revision::{Holder, Listener},
    tenant,
};
use sqlx::postgres::PgConnectOptions;
use uuid::Uuid;

use super::{
    RequestView, ResolveError, Resolver, SignedIn,
    cache::Cache,
    resolver::{Name, Rules},
};
use crate::{Tenancy, TenancyError, domain};

/// A member's request.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The tenant, the person and their role.
    pub ctx: RequestContext,
}

/// How much an [`Entrance`] remembers, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// How long a name is believed to lead to a tenant; a [`Listener`] shortens it to one notification.
    pub found_for: TimeDelta,
    /// How long a person is refused again without a look-up.
    pub refused_for: TimeDelta,
    /// The most names, and the most refusals, that are held.
    pub entries: usize,
}

impl Default for Memory {
    /// 30 seconds, 2 seconds, 10,000 entries (at most some 4 MiB).
    fn default() -> Self {
        Self { found_for: TimeDelta::seconds(30), refused_for: TimeDelta::seconds(2), entries: 10_000 }
    }
}

/// What an [`Entrance`] holds and has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntranceStats {
    /// Names that lead to a tenant.
    pub names: usize,
    /// Refusals that are repeated without a look-up.
    pub refusals: usize,
    /// Transactions that looked names up, since the start.
    pub look_ups: u64,
    /// How often everything was forgotten, since the start: once when a listener connects, twice more when it reconnects.
    pub flushes: u64,
    /// Messages on the channel that were no announcements, since the start.
    pub unreadable_announcements: u64,
}

/// Lets members in: finds the tenant that a request names and checks that the person is in it.
///
/// - *A refusal says nothing.* A tenant that does not exist and one that the person is not in give the same error, after
///   the same work: one look-up and one question about membership, whatever is remembered. The refusal is then repeated
///   from memory, for both alike.
/// - *Nobody signed in, no work*: requests without a person touch neither the database nor the memory.
/// - *Bounded*: only names whose tenant let a member in are remembered, up to [`Memory::entries`].
/// - A membership is never remembered: who was removed is out with their next request.
///
/// Cheap to clone; clones share the memory. A tenant that may not be entered for now is refused by [`Tenancy::enter`], and
/// nowhere else.
#[derive(Debug, Clone)]
pub struct Entrance {
    core: Arc<Core>,
}

#[derive(Debug)]
struct Core {
    tenancy: Tenancy,
    rules: Rules,
    held: Mutex<Held>,
    look_ups: AtomicU64,
    flushes: AtomicU64,
    unreadable: AtomicU64,
}

#[derive(Debug)]
struct Held {
    found: Cache<Name, TenantId>,
    refused: Cache<(UserId, Vec<Name>), ()>,
    /// Rises with every announcement: what was read before one is not held after it.
    heard: u64,
}

/// No tenant: asked about where there is none, so that asking takes as long.
const NOBODY: TenantId = TenantId::from_uuid(Uuid::nil());

impl Entrance {
    /// An entrance with the memory of [`Memory::default`].
    ///
    /// # Errors
    /// When the resolver holds something that is no host name, path pattern or header name.
    pub fn new(tenancy: Tenancy, resolver: Resolver) -> Result<Self, InvalidInput> {
        Self::with_memory(tenancy, resolver, Memory::default())
    }

    /// An entrance with a memory of another size.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_memory(tenancy: Tenancy, resolver: Resolver, memory: Memory) -> Result<Self, InvalidInput> {
        let held = Held {
            found: Cache::new(memory.entries, memory.found_for),
            refused: Cache::new(memory.entries, memory.refused_for),
            heard: 0,
        };
        let rules = resolver.check()?;
        let (look_ups, flushes, unreadable) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { core: Arc::new(Core { tenancy, rules, held: Mutex::new(held), look_ups, flushes, unreadable }) })
    }

    /// Forgets what a notification makes wrong, as soon as it comes, for as long as the listener lives.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn listen(&self, options: PgConnectOptions) -> Listener {
        Listener::start(self.core.clone(), options)
    }

    /// Finds the tenant of a request and lets the person in.
    ///
    /// # Errors
    /// [`BadHost`](ResolveError::BadHost), then [`NotSignedIn`](ResolveError::NotSignedIn), then
    /// [`Unknown`](ResolveError::Unknown), in this order; [`Tenancy`](ResolveError::Tenancy) for whatever else
    /// [`Tenancy::enter`] refuses.
    pub async fn resolve(&self, view: &RequestView<'_>, person: Option<SignedIn>) -> Result<Resolved, ResolveError> {
        let names = self.core.rules.read(view);
        if let Err(error @ ResolveError::BadHost(_)) = names {
            return Err(error);
        }
        let SignedIn(user) = person.ok_or(ResolveError::NotSignedIn)?;
        Ok(Resolved { ctx: self.core.enter(names?, user).await? })
    }

    /// What is held and was done.
    #[must_use]
    pub fn stats(&self) -> EntranceStats {
        let (names, refusals) = self.core.held(|held| (held.found.len(), held.refused.len()));
        EntranceStats {
            names,
            refusals,
            look_ups: self.core.look_ups.load(Ordering::Relaxed),
            flushes: self.core.flushes.load(Ordering::Relaxed),
            unreadable_announcements: self.core.unreadable.load(Ordering::Relaxed),
        }
    }
}

impl Core {
    fn held<T>(&self, with: impl FnOnce(&mut Held) -> T) -> T {
        with(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn enter(&self, names: Vec<Name>, user: UserId) -> Result<RequestContext, ResolveError> {
        let now = self.tenancy.clock.now();
        let key = (user, names);
        let (refused, remembered, heard) =
            self.held(|held| (held.refused.get(&key, now).is_some(), held.remembered(&key.1, now), held.heard));
        if refused {
            return Err(ResolveError::Unknown);
        }
        if let Some(tenant) = remembered
            && let Some(ctx) = self.membership(tenant, user).await?
        {
            return Ok(ctx);
        }
        // Refused, or not remembered: from here on everyone is asked the same number of questions.
        let found = self.look_up(&key.1).await?;
        let tenant = agreed(found.iter().copied());
        let asked_before = remembered.is_some() && (tenant.is_none() || tenant == remembered);
        let ctx = if asked_before { None } else { self.membership(tenant.unwrap_or(NOBODY), user).await? };
        let after = self.tenancy.clock.now();
        self.held(|held| match (&ctx, tenant) {
            (Some(_), Some(tenant)) if held.heard == heard => held.remember(key.1, tenant, now),
            (Some(_), _) => {}
            (None, _) => held.refused.put(key, (), after),
        });
        ctx.ok_or(ResolveError::Unknown)
    }

    async fn membership(&self, tenant: TenantId, user: UserId) -> Result<Option<RequestContext>, ResolveError> {
        match self.tenancy.enter(tenant, user).await {
            Ok(ctx) => Ok(Some(ctx)),
            Err(TenancyError::NotMember) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The tenant behind each name, in one transaction; none at all when every name is an id.
    async fn look_up(&self, names: &[Name]) -> Result<Vec<Option<TenantId>>, ResolveError> {
        if names.iter().all(|name| matches!(name, Name::Id(_))) {
            return Ok(names.iter().map(Name::id).collect());
        }
        self.look_ups.fetch_add(1, Ordering::Relaxed);
        let reading = async {
            let actor = Actor::system("tenant resolution");
            let mut tx = SystemTx::begin(&self.tenancy.system, actor, "find the tenant of a request").await?;
            let mut found = Vec::with_capacity(names.len());
            for name in names {
                found.push(match name {
                    Name::Id(id) => Some(*id),
                    Name::Slug(slug) => tenant::find_by_slug_in(&mut tx, slug).await?,
                    Name::Domain(domain) => domain::find_active_in(&mut tx, domain).await?,
                });
            }
            Ok(found)
        };
        reading.await.map_err(|error: CoreError| TenancyError::from(error).into())
    }
}

impl Name {
    const fn id(&self) -> Option<TenantId> {
        match self {
            Self::Id(id) => Some(*id),
            Self::Slug(_) | Self::Domain(_) => None,
        }
    }
}

impl Held {
    /// The tenant, where it is remembered under every name.
    fn remembered(&mut self, names: &[Name], now: DateTime<Utc>) -> Option<TenantId> {
        agreed(names.iter().map(|name| name.id().or_else(|| self.found.get(name, now))))
    }

    fn remember(&mut self, names: Vec<Name>, tenant: TenantId, now: DateTime<Utc>) {
        for name in names.into_iter().filter(|name| name.id().is_none()) {
            self.found.put(name, tenant, now);
        }
    }
}

/// The one tenant that all of them are, if they are.
fn agreed(mut tenants: impl Iterator<Item = Option<TenantId>>) -> Option<TenantId> {
    let first = tenants.next()??;
    tenants.all(|tenant| tenant == Some(first)).then_some(first)
}

impl Holder for Core {
    fn hear(&self, tenant: TenantId, _: Revision) {
        self.held(|held| {
            held.heard += 1;
            held.found.retain(|found| *found != tenant);
        });
    }

    fn flush(&self) {
        self.held(|held| {
            held.heard += 1;
            held.found.clear();
            held.refused.clear();
        });
        self.flushes.fetch_add(1, Ordering::Relaxed);
    }

    fn count_unreadable(&self) {
        self.unreadable.fetch_add(1, Ordering::Relaxed);
    }
}
