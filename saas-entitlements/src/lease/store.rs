//! The port behind [`Leases`](crate::Leases): units that are lent, reported, and given back.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{LeaseToken, MeterKey, Revision, TenantContext, plan::Window};

use crate::{Draw, EntitlementsError, Period};

/// A use that is to be counted at once, and units to be lent beside it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Ask {
    /// What is counted at once, from one unit (for a lease that is topped up, from none), and the rule that it is counted and lent under.
    pub draw: Draw,
    /// Units of the counter per unit of the meter, from 1.
    pub cost: u64,
    /// The lease that is topped up, or made.
    pub lease: LeaseToken,
    /// 0 for a lease that is to be made. Otherwise the number of a report that is part of this.
    pub number: u64,
    /// Units used of the lease in all, as in a report.
    pub spent: u64,
    /// Who asks, for people who look at the table.
    pub holder: Box<str>,
    /// The most units of the counter that may be out with all holders together.
    pub exposed: u64,
    /// Units to be lent beside those that are counted, at most; 0 for none.
    pub want: u64,
    /// How long the lease lives without a report.
    pub life: Duration,
}

/// What a holder has used of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Of which lease.
    pub lease: LeaseToken,
    /// Ascending per lease, from 1: an older report than the last one counts for nothing.
    pub number: u64,
    /// Units used of it in all.
    pub spent: u64,
    /// Whether it is the last: what is not used is given back.
    pub ending: bool,
    /// How long the lease lives without another report.
    pub life: Duration,
}

/// What became of an [`Ask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Borrowed {
    /// What was needed is counted, what was used of the lease too, and so many units are lent: what was wanted, or fewer, or
    /// none.
    Lent {
        /// Units of the counter, beside what the lease had left.
        units: u64,
        /// Used in the window.
        used: u64,
        /// Whether the last direct use of the window was under another limit, or there was none: what goes with that is
        /// still to be done by [`LeaseStore::announce`].
        relimited: bool,
    },
    /// What was needed does not fit, and nothing was counted or lent, nor reported.
    Refused {
        /// Used in the window, with what the ask says was used of the lease.
        used: u64,
        /// Held by others, who may give some of it back.
        held: u64,
    },
    /// The lease is over: somebody else ended it, a later report is there, or the store has given it up. What was needed is not
    /// counted and nothing was lent; what the ask says was used of the lease counts as used. Ask with another.
    Fenced,
    /// The tenant has another revision. Nothing was counted or lent, nor reported: decide again.
    Outdated {
        /// The present revision.
        revision: Revision,
    },
}

/// What became of a [`Report`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Reported {
    /// It counts, and the lease lives on.
    Kept {
        /// Whether somebody was refused within the last second what would fit if all holders gave back.
        wanted: bool,
        /// Used in the window.
        used: u64,
    },
    /// It counts, and what was not used is given back.
    Settled {
        /// Used in the window.
        used: u64,
    },
    /// The lease was ended by somebody else, and what had not been reported counts as used.
    Fenced,
}

/// What a window has, at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Balance {
    /// Used.
    pub used: u64,
    /// Out with holders and reservations.
    pub held: u64,
}

/// Lends units of a tenant's limit.
///
/// # Contract
/// - *Never more than the cap*: `used + held + need` is at most the cap whenever something is counted or lent.
/// - *Bounded exposure*: what is out with all holders of a counter is at most `exposed` after every borrow that lends.
/// - *Conserved*: units lent = reported + held + returned + stranded, at every instant.
/// - *Fenced*: once a lease that was not reported for its life is ended, no report of it counts and nothing tops it up. What it
///   had not reported counts as used: whether it was, nobody can know.
/// - *Idempotent*: a repeated report moves nothing, and of reports and borrows with a lower number than one that counted none
///   does.
/// - *Current*: a store that knows revisions lends only at the ask's own.
/// - *Announced once*: each threshold that is reached is in one answer of `announce` per window and limit, whatever runs at
///   once.
/// - *Certain*: an error of the kind [`Unavailable`](saas_core::ErrorKind::Unavailable) or
///   [`Invalid`](saas_core::ErrorKind::Invalid) says that nothing was counted, lent or reported. Where that is not known it is
///   [`OutcomeUnknown`](saas_core::ErrorKind::OutcomeUnknown).
/// - *Isolated*: reads and writes only the context's tenant.
#[async_trait]
pub trait LeaseStore: fmt::Debug + Send + Sync + 'static {
    /// Counts what is needed and what was used of the lease, and lends beside it; ends overdue leases of others first.
    async fn borrow(
        &self,
        ctx: &dyn TenantContext,
        ask: &Ask,
        now: DateTime<Utc>,
    ) -> Result<Borrowed, EntitlementsError>;

    /// Counts what was used of a lease, and prolongs or ends it.
    async fn report(
        &self,
        ctx: &dyn TenantContext,
        report: &Report,
        now: DateTime<Utc>,
    ) -> Result<Reported, EntitlementsError>;

    /// Does what goes with uses that reach a threshold, or that are the first under a draw's limit, for those that were counted
    /// without it: answers the percentages that nobody had announced. Counts nothing, and does nothing where the tenant has
    /// another revision by now.
    async fn announce(
        &self,
        ctx: &dyn TenantContext,
        draw: &Draw,
        now: DateTime<Utc>,
    ) -> Result<Vec<u16>, EntitlementsError>;

    /// Ends the tenant's overdue leases; answers how many units count as used by that.
    async fn reclaim(&self, ctx: &dyn TenantContext, now: DateTime<Utc>) -> Result<u64, EntitlementsError>;

    /// What a window has, for display: only a borrow decides.
    async fn balance(
        &self,
        ctx: &dyn TenantContext,
        counter: &MeterKey,
        window: Window,
        period: Period,
    ) -> Result<Balance, EntitlementsError>;
}
