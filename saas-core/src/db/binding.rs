//! How a tenant's session is found: the port behind [`TenantTx`](super::TenantTx), and the pooled mode.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use sqlx::{PgPool, postgres::PgPoolOptions};

use super::{
    Place,
    check::{self, Login},
    guard::Guard,
    migrate::{self, Schema},
    warm::Warm,
};
use crate::{CoreError, TenantContext, TenantId};

/// Finds the place of a tenant's rows.
///
/// # Contract
/// - *Fenced*: a connection of the place, once bound, reaches rows of that tenant and of no other.
/// - *Verified*: the place's login is bound by row-level security.
#[async_trait]
pub trait SessionBinding: fmt::Debug + Send + Sync + 'static {
    /// The place of the context's tenant.
    async fn place(&self, ctx: &dyn TenantContext) -> Result<Place, CoreError>;

    /// The database has refused the tenant at the place that this binding gave: whatever it remembers about the tenant is
    /// out of date. It is asked once more.
    fn refused(&self, _: TenantId) {}
}

#[async_trait]
impl SessionBinding for Arc<dyn SessionBinding> {
    async fn place(&self, ctx: &dyn TenantContext) -> Result<Place, CoreError> {
        (**self).place(ctx).await
    }

    fn refused(&self, tenant: TenantId) {
        (**self).refused(tenant);
    }
}

/// Whose the server's sessions are, from which follows what a transaction may find there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sessions {
    /// A session belongs to its connection.
    Own,
    /// A pooler hands sessions from client to client, with the statements that the last one prepared.
    Shared,
}

/// Shared tables behind row-level security: one pool of the application role for all tenants.
#[derive(Debug, Clone)]
pub struct TenantPool {
    pub(super) warm: Warm,
    pub(super) sessions: Sessions,
}

impl TenantPool {
    /// Accepts a pool after checking its login, the server's version and the schema.
    ///
    /// # Errors
    /// - [`PrivilegedRole`](CoreError::PrivilegedRole): the login is superuser, `BYPASSRLS`, owns fenced tables, or is a
    ///   member of such a role or of `saas_system`.
    /// - [`UnsafeServer`](CoreError::UnsafeServer): a release with known leaks.
    /// - [`NotMigrated`](CoreError::NotMigrated): run [`migrate`](super::migrate()) first.
    pub async fn open(pool: PgPool, schemas: &[&Schema]) -> Result<Self, CoreError> {
        let warm = Warm::new(pool);
        examine(&warm, Sessions::Own, Login::Tenant, schemas).await?;
        Ok(Self { warm, sessions: Sessions::Own })
    }

    /// As [`open`](Self::open), for a pool whose server is behind PgBouncer, or its like, in transaction mode. The pool's
    /// connections need `statement_cache_capacity(0)`; a listener needs a connection of its own past the pooler.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_behind_pooler(pool: PgPool, schemas: &[&Schema]) -> Result<Self, CoreError> {
        let warm = Warm::new(pool);
        examine(&warm, Sessions::Shared, Login::Tenant, schemas).await?;
        Ok(Self { warm, sessions: Sessions::Shared })
    }

    /// The pool, for a listener or for metrics.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        self.warm.pool()
    }
}

#[async_trait]
impl SessionBinding for TenantPool {
    async fn place(&self, _: &dyn TenantContext) -> Result<Place, CoreError> {
        Ok(Place::pooled(self))
    }
}

/// The pool of the system role, for workers and operators.
#[derive(Debug, Clone)]
pub struct SystemPool {
    pub(super) warm: Warm,
    pub(super) sessions: Sessions,
}

impl SystemPool {
    /// Accepts a pool after the same checks as [`TenantPool::open`], for the role `saas_system`.
    ///
    /// # Errors
    /// As [`TenantPool::open`].
    pub async fn open(pool: PgPool, schemas: &[&Schema]) -> Result<Self, CoreError> {
        let warm = Warm::new(pool);
        examine(&warm, Sessions::Own, Login::System, schemas).await?;
        Ok(Self { warm, sessions: Sessions::Own })
    }

    /// As [`TenantPool::open_behind_pooler`], for [`SystemTx`](super::SystemTx) alone: what runs single statements on
    /// [`pool`](Self::pool), as the webhook inbox does, needs a pool past the pooler.
    ///
    /// # Errors
    /// As [`TenantPool::open`].
    pub async fn open_behind_pooler(pool: PgPool, schemas: &[&Schema]) -> Result<Self, CoreError> {
        let warm = Warm::new(pool);
        examine(&warm, Sessions::Shared, Login::System, schemas).await?;
        Ok(Self { warm, sessions: Sessions::Shared })
    }

    /// The pool, for a listener or for metrics.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        self.warm.pool()
    }
}

/// In a transaction, so that a pooler keeps to one session.
async fn examine(warm: &Warm, sessions: Sessions, login: Login, schemas: &[&Schema]) -> Result<(), CoreError> {
    let begin = match sessions {
        Sessions::Own => "begin read only",
        Sessions::Shared => "begin read only; deallocate all",
    };
    let mut guard = Guard::begin(warm, sessions, begin).await?;
    check::login(guard.connection_mut(), login).await?;
    migrate::verify(guard.connection_mut(), schemas).await?;
    guard.rollback().await
}

/// Pool options that suit tenant transactions: no ping before a connection is handed out. It would cost a round trip, and
/// a broken connection fails its `BEGIN`, which a caller can repeat.
#[must_use]
pub fn pool_options() -> PgPoolOptions {
    PgPoolOptions::new().test_before_acquire(false)
}
