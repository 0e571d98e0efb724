//! A unit of a tenant's work with the fewest round trips.

use std::time::Duration;

use sqlx::postgres::PgRow;

use super::{
    SessionBinding, TenantTx,
    once::{self, Errand, Literal, Once},
    place::Access,
};
use crate::{CoreError, InvalidInput, TenantContext};

/// What every [`SessionBinding`] can do for a tenant: a unit of work that writes, one that reads, and single
/// statements.
///
/// ```no_run
/// # use saas_core::{*, db::*};
/// # async fn example(tenants: &TenantPool, ctx: &RequestContext) -> Result<(), CoreError> {
/// tenants
///     .write(ctx, async |tx| {
///         sqlx::query("update project set done = true where tenant_id = $1")
///             .bind(tx.tenant().as_uuid())
///             .execute(&mut **tx)
///             .await
///             .map_err(CoreError::from_database)
///     })
///     .await?;
/// # Ok(()) }
/// ```
pub trait TenantWork: SessionBinding {
    /// Runs `work` in a transaction and commits it. Begin and bind take one round trip, and so does the commit.
    ///
    /// An error of `work` rolls back. Dropped half-way, nothing is stored, unless the commit was already on its way.
    ///
    /// # Errors
    /// Those of `work`, of [`TenantTx::begin`] and of [`TenantTx::commit`].
    fn write<T, E, F>(&self, ctx: &dyn TenantContext, work: F) -> impl Future<Output = Result<T, E>>
    where
        E: From<CoreError>,
        F: AsyncFnOnce(&mut TenantTx) -> Result<T, E>;

    /// Runs `work` in a transaction that may only read. Begin and bind take one round trip; the end takes none.
    ///
    /// # Errors
    /// Those of `work` and of [`TenantTx::begin_read_only`].
    fn read<T, E, F>(&self, ctx: &dyn TenantContext, work: F) -> impl Future<Output = Result<T, E>>
    where
        E: From<CoreError>,
        F: AsyncFnOnce(&mut TenantTx) -> Result<T, E>;

    /// Runs one reading statement in a transaction of its own, all in one round trip.
    ///
    /// `statement` is a single statement without a semicolon; `$1` stands for the first of `values`. A session that has not
    /// seen it prepares it first, which takes one round trip more. Values of the rows come in the text format, which
    /// `Row::get` reads for numbers, text, booleans, uuids and timestamps.
    ///
    /// # Errors
    /// [`Invalid`](CoreError::Invalid) for a statement with a semicolon or a text with NUL; otherwise as
    /// [`begin_read_only`](TenantTx::begin_read_only).
    fn read_once(
        &self,
        ctx: &dyn TenantContext,
        statement: &'static str,
        values: &[Literal<'_>],
    ) -> impl Future<Output = Result<Vec<PgRow>, CoreError>> + Send;

    /// Runs one writing statement in a transaction of its own, all in one round trip, commit included. Statement, values and
    /// rows are those of [`read_once`](Self::read_once).
    ///
    /// Dropped half-way, it may have been stored.
    ///
    /// # Errors
    /// As [`read_once`](Self::read_once) and [`TenantTx::commit`]. After
    /// [`OutcomeUnknown`](CoreError::OutcomeUnknown) only a statement that recognises its repetition can be repeated.
    fn write_once(
        &self,
        ctx: &dyn TenantContext,
        statement: &'static str,
        values: &[Literal<'_>],
    ) -> impl Future<Output = Result<Vec<PgRow>, CoreError>> + Send;

    /// Runs errands of several tenants in one transaction, all in one round trip, commit included: each of them bound to its
    /// own tenant, in the order in which they are passed. All are stored or none. Returns the rows of each.
    ///
    /// One transaction holds the locks of all of them, so whoever takes the same locks has to keep to one order, and nobody's
    /// lock is waited for longer than `patience`, for the sake of the others.
    ///
    /// # Errors
    /// [`Invalid`](CoreError::Invalid) where the tenants are not at one place that they share: nothing was done, each goes by
    /// itself. Otherwise as [`write_once`](Self::write_once).
    fn write_errands(
        &self,
        errands: &[&Errand],
        patience: Duration,
    ) -> impl Future<Output = Result<Vec<Vec<PgRow>>, CoreError>> + Send;

    /// Runs one errand as [`write_once`](Self::write_once) does.
    ///
    /// # Errors
    /// Those of [`write_once`](Self::write_once).
    fn write_errand(&self, errand: &Errand) -> impl Future<Output = Result<Vec<PgRow>, CoreError>> + Send;
}

impl<B: SessionBinding> TenantWork for B {
    async fn write<T, E, F>(&self, ctx: &dyn TenantContext, work: F) -> Result<T, E>
    where
        E: From<CoreError>,
        F: AsyncFnOnce(&mut TenantTx) -> Result<T, E>,
    {
        let mut tx = TenantTx::begin(self, ctx).await?;
        let done = work(&mut tx).await?;
        tx.commit().await?;
        Ok(done)
    }

    async fn read<T, E, F>(&self, ctx: &dyn TenantContext, work: F) -> Result<T, E>
    where
        E: From<CoreError>,
        F: AsyncFnOnce(&mut TenantTx) -> Result<T, E>,
    {
        let mut tx = TenantTx::begin_read_only(self, ctx).await?;
        work(&mut tx).await
    }

    async fn read_once(
        &self,
        ctx: &dyn TenantContext,
        statement: &'static str,
        values: &[Literal<'_>],
    ) -> Result<Vec<PgRow>, CoreError> {
        once_at_home(self, ctx, Access::Read, &Once::new(statement, values)?).await
    }

    async fn write_once(
        &self,
        ctx: &dyn TenantContext,
        statement: &'static str,
        values: &[Literal<'_>],
    ) -> Result<Vec<PgRow>, CoreError> {
        once_at_home(self, ctx, Access::Write, &Once::new(statement, values)?).await
    }

    async fn write_errands(&self, errands: &[&Errand], patience: Duration) -> Result<Vec<Vec<PgRow>>, CoreError> {
        let Some((first, others)) = errands.split_first() else { return Ok(Vec::new()) };
        let place = self.place(first.ctx()).await?;
        // Kept, with what they hold, until all is done.
        let mut places = Vec::with_capacity(others.len());
        for other in others {
            places.push(self.place(other.ctx()).await?);
        }
        if !places.iter().chain([&place]).all(|other| place.is_shared_with(other)) {
            return Err(InvalidInput::new("errands", "are not of one place", "send each by itself").into());
        }
        once::run_errands(&place, errands, patience).await
    }

    async fn write_errand(&self, errand: &Errand) -> Result<Vec<PgRow>, CoreError> {
        once_at_home(self, errand.ctx(), Access::Write, errand.once()).await
    }
}

/// Runs a statement where the tenant is at home, also where it has just moved to.
async fn once_at_home(
    binding: &dyn SessionBinding,
    ctx: &dyn TenantContext,
    access: Access,
    once: &Once,
) -> Result<Vec<PgRow>, CoreError> {
    let place = binding.place(ctx).await?;
    let done = once::run(&place, ctx, access, once).await;
    let Err(CoreError::Moved { .. }) = done else { return done };
    drop(place);
    binding.refused(ctx.tenant());
    once::run(&binding.place(ctx).await?, ctx, access, once).await
}
