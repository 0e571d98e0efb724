//! How a tenant's session is found: the port behind [`TenantTx`](super::TenantTx), and the pooled mode.

use std::fmt;

use async_trait::async_trait;
use sqlx::{PgPool, postgres::PgPoolOptions};

use super::{
    Place,
    check::{self, Login},
    migrate::{self, Schema},
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

/// Shared tables behind row-level security: one pool of the application role for all tenants.
#[derive(Debug, Clone)]
pub struct TenantPool {
    pool: PgPool,
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
        check::login(&pool, Login::Tenant).await?;
        migrate::verify(&pool, schemas).await?;
        Ok(Self { pool })
    }

    /// The pool, for a listener or for metrics.
    #[must_use]
    pub const fn pool(&self) -> &PgPool {
        &self.pool
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
    pool: PgPool,
}

impl SystemPool {
    /// Accepts a pool after the same checks as [`TenantPool::open`], for the role `saas_system`.
    ///
    /// # Errors
    /// As [`TenantPool::open`].
    pub async fn open(pool: PgPool, schemas: &[&Schema]) -> Result<Self, CoreError> {
        check::login(&pool, Login::System).await?;
        migrate::verify(&pool, schemas).await?;
        Ok(Self { pool })
    }

    /// The pool, for a listener or for metrics.
    #[must_use]
    pub const fn pool(&self) -> &PgPool {
        &self.pool
    }
}

/// Pool options that suit tenant transactions: no ping before a connection is handed out. It would cost a round trip, and
/// a broken connection fails its `BEGIN`, which a caller can repeat.
#[must_use]
pub fn pool_options() -> PgPoolOptions {
    PgPoolOptions::new().test_before_acquire(false)
}
