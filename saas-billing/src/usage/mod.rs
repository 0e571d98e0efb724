//! Usage to Stripe: from the batches of a usage pipeline to meter events, each counted once.
//!
//! [`Billing::accept_usage`](crate::Billing::accept_usage) puts rows on record; [`send_usage`](crate::Billing::send_usage), called
//! by a worker, hands them to Stripe, one by one or by the stream. Promises that a row is sent under one identifier, its own,
//! that one without an answer is not sent blindly once Stripe has forgotten the identifier, and that what cannot be counted
//! (too old, taken and rejected later, a correction that comes too late) is kept with its reason
//! ([`usage_problems`](crate::Billing::usage_problems)). What Stripe says of readings afterwards comes by events
//! ([`read_usage_reports`](crate::Billing::read_usage_reports)), and totals are compared by the day
//! ([`compare_usage`](crate::Billing::compare_usage)). What is charged for, and how it adds up, is the price list's.

mod compare;
mod report;
mod send;

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
pub(crate) use compare::{DayOfUse, DifferingDay, comparable, differing_days};
pub use compare::{UsageCursor, UsageTotal};
pub use report::{UsageReports, UsageTrouble};
use saas_core::{Actor, MeterKey, Page, PageSize, SystemTx, TenantId, UsageEventId};
use serde::Serialize;

use crate::{
    billing::{ACTOR, Billing},
    catalog::PriceList,
    error::BillingError,
    postgres::{usage, usage_report},
    provider::Aggregation,
};

/// Stripe counts nothing that is older (<https://docs.stripe.com/api/billing/meter-event/create>).
pub(crate) const OLDEST: TimeDelta = TimeDelta::days(35);
/// Nor what lies further ahead.
pub(crate) const NEWEST: TimeDelta = TimeDelta::minutes(5);
/// Stripe remembers identifiers for at least 24 hours, and takes readings back within 24: with a margin for the way there.
pub(crate) const REMEMBERED: TimeDelta = TimeDelta::hours(23);
/// How long rows are kept once Stripe has them: as long as anything about them can still come.
const KEPT: TimeDelta = TimeDelta::days(45);

/// One row of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageItem {
    /// Made when the use was recorded.
    pub id: UsageEventId,
    /// Whose.
    pub tenant: TenantId,
    /// What counted it.
    pub meter: MeterKey,
    /// How much it says; of a meter of levels, the level.
    pub amount: i64,
    /// What it added to the counter; below 0 for a correction.
    pub units: i64,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// The first instant of the window that it counts in.
    pub window_start: DateTime<Utc>,
}

/// What usage is told of, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsagePolicy {
    pub(crate) meters: BTreeMap<MeterKey, Aggregation>,
    pub(crate) corrections: Corrections,
    pub(crate) streamed: bool,
}

/// What becomes of a correction that takes something back. Stripe takes no negative readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Corrections {
    /// A reading of the same window that Stripe got within 23 hours is cancelled, and what remains of it is sent. Where there is
    /// none large enough, it is reported.
    #[default]
    Cancel,
    /// It is reported, for a person to give a credit.
    Report,
}

impl UsagePolicy {
    /// Usage of the meters that the list charges for, in single calls; corrections cancel where they can.
    #[must_use]
    pub fn of(list: &PriceList) -> Self {
        let meter = |meter: &crate::provider::NewMeter| Some((meter.event_name.parse().ok()?, meter.aggregation));
        let meters = list.meters().iter().filter_map(meter).collect();
        Self { meters, corrections: Corrections::default(), streamed: false }
    }

    /// Treats corrections otherwise.
    #[must_use]
    pub const fn with_corrections(mut self, corrections: Corrections) -> Self {
        self.corrections = corrections;
        self
    }

    /// Hands readings over a hundred at a time, for more than some dozens a second. What is wrong with one is then told by an
    /// event only.
    #[must_use]
    pub const fn with_stream(mut self) -> Self {
        self.streamed = true;
        self
    }

    pub(crate) fn is_of_levels(&self, meter: &str) -> bool {
        self.meters.iter().any(|(key, how)| key.as_str() == meter && *how == Aggregation::Last)
    }
}

/// What a step of sending did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageSent {
    /// Rows that Stripe has now.
    pub sent: usize,
    /// Corrections that have taken something back; counted in `sent`, too.
    pub taken_back: usize,
    /// Rows whose tenant has no customer yet.
    pub waiting: usize,
    /// Rows that will never count; see [`Billing::usage_problems`].
    pub refused: usize,
    /// Rows that come again later.
    pub put_off: usize,
    /// Why the step ended early: the code of Stripe's error.
    pub stopped: Option<&'static str>,
}

impl UsageSent {
    /// How many rows it looked at.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.sent + self.waiting + self.refused + self.put_off
    }
}

/// A row that does not count, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UsageProblem {
    /// Its id, and Stripe's identifier.
    pub id: UsageEventId,
    /// Whose.
    pub tenant: TenantId,
    /// Of what.
    pub meter: String,
    /// How much.
    pub amount: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// Whether Stripe took it, and said later that it does not count.
    pub was_taken: bool,
    /// Why.
    pub reason: String,
}

/// How far usage is on its way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UsageHealth {
    /// Rows to be sent.
    pub pending: u64,
    /// The oldest of them: an alarm at 30 days leaves five to mend.
    pub oldest_pending: Option<DateTime<Utc>>,
    /// Rows of tenants without a customer.
    pub waiting: u64,
    /// Rows that Stripe took and does not count.
    pub rejected: u64,
    /// Rows that Stripe never took and never will.
    pub refused: u64,
}

/// What was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UsageForgotten {
    /// Rows that Stripe has had for long.
    pub sent: u64,
    /// Rows of tenants that never had a customer to charge.
    pub uncharged: u64,
}

impl Billing {
    /// Puts rows on record, to be sent. A row that is there already changes nothing; rows of meters that are not charged for are
    /// left out. What this has answered with `Ok` is durable.
    ///
    /// # Errors
    /// When the database does not answer: hand the same rows over again.
    pub async fn accept_usage(&self, policy: &UsagePolicy, items: &[UsageItem]) -> Result<(), BillingError> {
        let charged = items.iter().filter_map(|item| {
            let amount = match policy.meters.get(&item.meter)? {
                Aggregation::Last => item.amount,
                Aggregation::Sum | Aggregation::Count => item.units,
            };
            Some((item, amount)).filter(|(_, amount)| *amount != 0 || policy.is_of_levels(item.meter.as_str()))
        });
        let rows: Vec<(&UsageItem, i64)> = charged.collect();
        if rows.is_empty() {
            return Ok(());
        }
        let mut tx = SystemTx::begin(&self.system, ACTOR, "put usage on record for Stripe").await?;
        usage::insert(&mut tx, &self.scope, &rows, self.clock.now()).await?;
        Ok(tx.commit().await?)
    }

    /// Rows that do not count, by tenant and id.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn usage_problems(
        &self,
        actor: &Actor,
        after: Option<(TenantId, UsageEventId)>,
        size: PageSize,
    ) -> Result<Page<UsageProblem, (TenantId, UsageEventId)>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "list usage that Stripe does not count").await?;
        let problems = usage::problems(&mut tx, &self.scope, after, i64::from(size.get()) + 1).await?;
        tx.commit().await?;
        Ok(Page::from_rows(problems, size, |last: &UsageProblem| (last.tenant, last.id)))
    }

    /// How far usage is on its way.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn usage_health(&self) -> Result<UsageHealth, BillingError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "look how far usage is on its way").await?;
        let health = usage::health(&mut tx, &self.scope).await?;
        tx.commit().await?;
        Ok(health)
    }

    /// Deletes up to `limit` rows that Stripe has had for 45 days, or whose tenant had no customer for 45, and reports that were read
    /// then. Rows that need a person stay.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn forget_usage(&self, limit: u16) -> Result<UsageForgotten, BillingError> {
        let before = self.clock.now() - KEPT;
        let mut tx = SystemTx::begin(&self.system, ACTOR, "delete usage that Stripe has had for long").await?;
        let forgotten = usage::forget(&mut tx, &self.scope, before, i64::from(limit)).await?;
        usage_report::forget(&mut tx, &self.scope, before).await?;
        tx.commit().await?;
        Ok(forgotten)
    }
}
