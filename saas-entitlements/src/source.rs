//! Where the gate reads what a tenant may do.

use std::fmt;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{Revision, TenantId, subscription::PlanAssignment};

use crate::{EntitlementsError, Override};

/// Everything that decides what one tenant may do, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantState {
    /// The tenant's revision, read before everything else.
    pub revision: Revision,
    /// The plan, as the source of plans knows it.
    pub assignment: PlanAssignment,
    /// The overrides that are in force or will be.
    pub overrides: Vec<Override>,
    /// The cohorts that it is in, for features that are being rolled out.
    pub cohorts: Vec<Box<str>>,
}

/// Reads what decides about a tenant.
///
/// # Contract
/// - *Revision first*: the state is at least as new as the revision that comes with it. Reading the revision last would
///   let an old state pass for a new one.
/// - *Current*: a read that starts after a change was committed sees the change. A replica that lags does not qualify.
/// - *Cancel-safe*: the future may be dropped at any point.
#[async_trait]
pub trait SnapshotSource: fmt::Debug + Send + Sync + 'static {
    /// The tenant's state at `now`; `None` for a tenant that does not exist.
    async fn load(&self, tenant: TenantId, now: DateTime<Utc>) -> Result<Option<TenantState>, EntitlementsError>;
}
