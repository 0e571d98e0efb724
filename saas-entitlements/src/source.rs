//! Where the gate reads what a tenant may do.

use std::fmt;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{MeterKey, Revision, TenantId, plan::Window, subscription::PlanAssignment};

use crate::{EntitlementsError, Override, Period};

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

/// A window of a meter whose usage decides whether its tenant may only read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Watched {
    /// The meter that counts.
    pub meter: MeterKey,
    /// The kind of the window.
    pub window: Window,
    /// The window.
    pub period: Period,
    /// The most that may be used of it.
    pub most: u64,
    /// Since when the tenant has the plan.
    pub since: DateTime<Utc>,
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

    /// The same, with the time of the clock that all processes share, read on the way: the gate holds its own to it
    /// ([`GateOptions::with_max_skew`](crate::GateOptions::with_max_skew)). Without such a clock, as here, the gate goes by
    /// its own. What wraps a source passes it on.
    async fn load_dated(&self, tenant: TenantId, now: DateTime<Utc>) -> Result<Dated, EntitlementsError> {
        Ok(Dated { state: self.load(tenant, now).await?, read_at: None })
    }

    /// How much is used of each of these windows, in their order. Asked after [`load`](Self::load), and only about a tenant
    /// that came from another plan to one with a limit whose `over_limit` lets it only read. From then on, a change after which
    /// one of them is beyond its `most`, or no longer, raises the tenant's revision. Answers are recorded where the past is.
    ///
    /// `None`, as here, from a source that does not know what is used: no tenant is then restricted for it.
    async fn watch(
        &self,
        _tenant: TenantId,
        _windows: &[Watched],
        _now: DateTime<Utc>,
    ) -> Result<Option<Vec<u64>>, EntitlementsError> {
        Ok(None)
    }
}

/// What was read, and when by the clock of where it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dated {
    /// The tenant's state; `None` for a tenant that does not exist.
    pub state: Option<TenantState>,
    /// The source's time, at an instant within the read; `None` where it has no clock, or did not say.
    pub read_at: Option<DateTime<Utc>>,
}
