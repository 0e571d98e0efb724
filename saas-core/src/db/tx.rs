//! The two ways to talk to the database: as one tenant, or as the system.

use std::{
    any::Any,
    fmt,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use sqlx::PgConnection;

use super::{Place, SessionBinding, SystemPool, binding::Sessions, guard::Guard, place::Access};
use crate::{Actor, CoreError, RequestId, TenantContext, TenantId};

/// A transaction that can only see and change one tenant's rows.
///
/// The tenant is bound in the round trip that opens the transaction and ends with it. Dereferences to the connection.
/// [`commit`](Self::commit) consumes it; any other end, including a panic or a cancelled future, rolls back.
///
/// Scopes do not nest: there is no way to bind a second tenant inside. Savepoints (`sqlx::Connection::begin`) work; one
/// whose opening failed or was dropped ends the whole transaction, and [`commit`](Self::commit) then says so.
pub struct TenantTx {
    guard: Guard,
    tenant: TenantId,
    actor: Actor,
    request: RequestId,
    /// What the place asked to keep until the end.
    _held: Option<Arc<dyn Any + Send + Sync>>,
}

impl TenantTx {
    /// Opens a transaction bound to the context's tenant, in one round trip.
    ///
    /// # Errors
    /// [`Unavailable`](CoreError::Unavailable) when no connection can be had; [`Moved`](CoreError::Moved) when the tenant
    /// is not at home where the binding says, also when asked once more; whatever the binding refuses.
    ///
    /// ```no_run
    /// # use saas_core::{*, db::*};
    /// # async fn example(tenants: &TenantPool, ctx: &RequestContext) -> Result<(), CoreError> {
    /// let mut tx = TenantTx::begin(tenants, ctx).await?;
    /// let projects: i64 = sqlx::query_scalar("select count(*) from project") // this tenant's only
    ///     .fetch_one(&mut *tx)
    ///     .await
    ///     .map_err(CoreError::from_database)?;
    /// tx.commit().await?;
    /// # Ok(()) }
    /// ```
    pub async fn begin(binding: &dyn SessionBinding, ctx: &dyn TenantContext) -> Result<Self, CoreError> {
        Self::open(binding, ctx, Access::Write).await
    }

    /// As [`begin`](Self::begin), for reading only: PostgreSQL refuses a write. Dropped when done, it costs no round trip
    /// to end.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub async fn begin_read_only(binding: &dyn SessionBinding, ctx: &dyn TenantContext) -> Result<Self, CoreError> {
        Self::open(binding, ctx, Access::Read).await
    }

    /// As [`begin_read_only`](Self::begin_read_only), with statements that all see the state of one instant (repeatable
    /// read), however long it lasts. While it is open, the server cannot clean up what it may still see.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub async fn begin_snapshot(binding: &dyn SessionBinding, ctx: &dyn TenantContext) -> Result<Self, CoreError> {
        Self::open(binding, ctx, Access::Snapshot).await
    }

    async fn open(binding: &dyn SessionBinding, ctx: &dyn TenantContext, access: Access) -> Result<Self, CoreError> {
        let place = binding.place(ctx).await?;
        let opened = Self::open_at(&place, ctx, access).await;
        let Err(CoreError::Moved { .. }) = opened else { return opened };
        // What the old place holds, such as the tenant's only turn, is given back before the new one is asked for.
        drop(place);
        binding.refused(ctx.tenant());
        Self::open_at(&binding.place(ctx).await?, ctx, access).await
    }

    async fn open_at(place: &Place, ctx: &dyn TenantContext, access: Access) -> Result<Self, CoreError> {
        let tenant = ctx.tenant();
        let guard = Guard::begin_at(place, sqlx::AssertSqlSafe(place.begin(ctx, access))).await?;
        Ok(Self { guard, tenant, actor: ctx.actor().clone(), request: ctx.request(), _held: place.held.clone() })
    }

    /// The tenant that the transaction is bound to.
    #[must_use]
    pub const fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// Who acts, for the audit log.
    #[must_use]
    pub const fn actor(&self) -> &Actor {
        &self.actor
    }

    /// The request that the transaction serves.
    #[must_use]
    pub const fn request(&self) -> RequestId {
        self.request
    }

    /// Commits.
    ///
    /// # Errors
    /// - [`Aborted`](CoreError::Aborted): an earlier statement had failed; nothing was stored.
    /// - [`Conflict`](CoreError::Conflict): a deferred constraint refused; nothing was stored.
    /// - [`OutcomeUnknown`](CoreError::OutcomeUnknown): the connection broke. Repeat with the same idempotency key.
    pub async fn commit(self) -> Result<(), CoreError> {
        self.guard.commit().await
    }

    /// Rolls back and waits for it. Dropping the transaction rolls back too, without waiting.
    ///
    /// # Errors
    /// When the connection broke; nothing was stored either way.
    pub async fn rollback(self) -> Result<(), CoreError> {
        self.guard.rollback().await
    }
}

/// A transaction of the foundation or of an operator, which may see every tenant.
///
/// Stepping outside a tenant is loud: it names who does it and why, and both stand in the trace. The system's login sees
/// no tenant's rows in any other way.
pub struct SystemTx {
    guard: Guard,
    actor: Actor,
}

impl SystemTx {
    /// Opens a transaction as the system role.
    ///
    /// # Errors
    /// [`Unavailable`](CoreError::Unavailable) when no connection can be had.
    pub async fn begin(pool: &SystemPool, actor: Actor, reason: &'static str) -> Result<Self, CoreError> {
        Self::begin_with(pool, actor, reason, &[]).await
    }

    /// As [`begin`](Self::begin), with settings of PostgreSQL that hold until its end, such as `("lock_timeout", "500ms")`, in
    /// the same round trip.
    ///
    /// # Errors
    /// Those of [`begin`](Self::begin), and [`Statement`](CoreError::Statement) for a setting that PostgreSQL refuses.
    pub async fn begin_with(
        pool: &SystemPool,
        actor: Actor,
        reason: &'static str,
        settings: &'static [(&'static str, &'static str)],
    ) -> Result<Self, CoreError> {
        tracing::debug!(target: "saas.db.system", %actor, reason, "system transaction");
        // The system's policies ask for this setting: outside such a transaction its login sees no tenant's rows.
        let mut begin = match pool.sessions {
            Sessions::Own => "begin; set local saas.system = 'on'".to_owned(),
            Sessions::Shared => "begin; deallocate all; set local saas.system = 'on'".to_owned(),
        };
        for (name, value) in settings {
            begin.push_str(&format!("; set local {name} = '{}'", value.replace('\'', "''")));
        }
        // Settings of the program itself.
        let guard = Guard::begin(&pool.warm, pool.sessions, sqlx::AssertSqlSafe(begin)).await?;
        Ok(Self { guard, actor })
    }

    /// Who acts, for the audit log.
    #[must_use]
    pub const fn actor(&self) -> &Actor {
        &self.actor
    }

    /// Commits. The same errors as [`TenantTx::commit`].
    ///
    /// # Errors
    /// See [`TenantTx::commit`].
    pub async fn commit(self) -> Result<(), CoreError> {
        self.guard.commit().await
    }

    /// Rolls back and waits for it.
    ///
    /// # Errors
    /// When the connection broke; nothing was stored either way.
    pub async fn rollback(self) -> Result<(), CoreError> {
        self.guard.rollback().await
    }
}

macro_rules! is_a_connection {
    ($($name:ident),+) => {$(
        impl Deref for $name {
            type Target = PgConnection;

            fn deref(&self) -> &PgConnection {
                self.guard.connection()
            }
        }

        impl DerefMut for $name {
            fn deref_mut(&mut self) -> &mut PgConnection {
                self.guard.connection_mut()
            }
        }
    )+};
}

is_a_connection!(TenantTx, SystemTx);

impl fmt::Debug for TenantTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantTx").field("tenant", &self.tenant).field("actor", &self.actor).finish_non_exhaustive()
    }
}

impl fmt::Debug for SystemTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemTx").field("actor", &self.actor).finish_non_exhaustive()
    }
}
