//! The registry of tenants: the parent row of everything that belongs to one.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{CoreError, InvalidInput, Slug, TenantId};

/// What a new tenant is called.
#[derive(Debug, Clone)]
pub struct NewTenant {
    slug: Slug,
    name: String,
}

impl NewTenant {
    /// A tenant with an address and a display name of 1 to 200 characters.
    ///
    /// # Errors
    /// When the name is empty, too long or holds a control character.
    pub fn new(slug: Slug, name: impl Into<String>) -> Result<Self, InvalidInput> {
        let name = name.into();
        let name = name.trim();
        if !(1..=200).contains(&name.chars().count()) || name.chars().any(char::is_control) {
            return Err(InvalidInput::new(
                "tenant name",
                "is empty, longer than 200 characters or holds a control character",
                "pass a display name such as `Acme Inc.`",
            ));
        }
        Ok(Self { slug, name: name.to_owned() })
    }

    /// The address.
    #[must_use]
    pub const fn slug(&self) -> &Slug {
        &self.slug
    }

    /// The display name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Registers a tenant: its row, its address and its line in the operators' list. Runs as the system role.
///
/// # Errors
/// [`Conflict`](CoreError::Conflict) with the constraint `tenant_slug_pkey` when the address is taken.
pub async fn create_in(
    connection: &mut PgConnection,
    new: &NewTenant,
    now: DateTime<Utc>,
) -> Result<TenantId, CoreError> {
    let tenant = TenantId::mint_at(now);
    sqlx::query(
        "with tenant as (
            insert into saas.tenant (id, slug, name, created_at) values ($1, $2, $3, $4)
         ), overview as (
            insert into saas.tenant_overview (tenant_id, name) values ($1, $3)
         )
         insert into saas.tenant_slug (slug, tenant_id) values ($2, $1)",
    )
    .bind(tenant.as_uuid())
    .bind(new.slug.as_str())
    .bind(&new.name)
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(tenant)
}

/// Finds the tenant at an address. Runs as the system role: an address says nothing yet about who may enter.
///
/// # Errors
/// When the database does not answer.
pub async fn find_by_slug_in(connection: &mut PgConnection, slug: &Slug) -> Result<Option<TenantId>, CoreError> {
    let id = sqlx::query_scalar("select tenant_id from saas.tenant_slug where slug = $1")
        .bind(slug.as_str())
        .fetch_optional(connection)
        .await
        .map_err(CoreError::from_database)?;
    Ok(id.map(TenantId::from_uuid))
}

/// Locks the tenant's row until the transaction ends: the first lock of every change that must not run twice at once.
///
/// # Errors
/// [`NotFound`](CoreError::NotFound) when the tenant does not exist or the transaction is bound to another one.
pub async fn lock_in(connection: &mut PgConnection, tenant: TenantId) -> Result<(), CoreError> {
    sqlx::query_scalar::<_, i32>("select 1 from saas.tenant where id = $1 for no key update")
        .bind(tenant.as_uuid())
        .fetch_optional(connection)
        .await
        .map_err(CoreError::from_database)?
        .map(drop)
        .ok_or(CoreError::NotFound { what: "tenant" })
}

/// Keeps the tenant from being removed until the transaction ends, and hinders nothing else: what a foreign key does for each
/// row, once for all rows of tables that do without one.
///
/// # Errors
/// As [`lock_in`], also for a tenant that is erased or about to be.
pub async fn hold_in(connection: &mut PgConnection, tenant: TenantId) -> Result<(), CoreError> {
    let gone = CoreError::NotFound { what: "tenant" };
    let held: Option<i32> = sqlx::query_scalar("select 1 from saas.tenant where id = $1 for key share")
        .bind(tenant.as_uuid())
        .fetch_optional(&mut *connection)
        .await
        .map_err(CoreError::from_database)?;
    if held.is_none() {
        return Err(gone);
    }
    // With a snapshot of its own, taken after the lock: an erasure that was waited for is seen.
    let erased: bool = sqlx::query_scalar(
        "select exists (
             select from saas.tenant_status
             where tenant_id = $1 and state in ('erasing', 'erased'))",
    )
    .bind(tenant.as_uuid())
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)?;
    if erased { Err(gone) } else { Ok(()) }
}

/// Takes the tenant's row for itself until the transaction ends, as its deletion would: when this returns, no transaction is
/// under way that adds a row that refers to the tenant, or that [holds](hold_in) it. The last look before a tenant is said
/// to be gone; for all else use [`lock_in`], which lets such transactions pass.
///
/// # Errors
/// As [`lock_in`].
pub async fn lock_to_remove_in(connection: &mut PgConnection, tenant: TenantId) -> Result<(), CoreError> {
    sqlx::query_scalar::<_, i32>("select 1 from saas.tenant where id = $1 for update")
        .bind(tenant.as_uuid())
        .fetch_optional(connection)
        .await
        .map_err(CoreError::from_database)?
        .map(drop)
        .ok_or(CoreError::NotFound { what: "tenant" })
}
