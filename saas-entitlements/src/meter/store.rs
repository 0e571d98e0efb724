//! The port behind [`Meter`](crate::Meter): one atomic step of counting.

use std::fmt;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{
    IdempotencyKey, Limit, MeterKey, Revision, TenantContext,
    plan::{Aggregation, Window},
};

use crate::{Carry, EntitlementsError, Period};

/// One use that is to be counted: the decision's inputs, ready-made.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Draw {
    /// Whether it is asked about, or has happened.
    pub kind: DrawKind,
    /// What is used.
    pub meter: MeterKey,
    /// What counts it: the meter itself, or the one whose units pay for it.
    pub counter: MeterKey,
    /// How uses become the counter's number.
    pub aggregation: Aggregation,
    /// How much is used, up to `i64::MAX`; the level, of a peak and of what keeps the latest.
    pub amount: u64,
    /// The same in units of the counter.
    pub units: u64,
    /// Names this one use.
    pub key: IdempotencyKey,
    /// What is counted once in a window, of a meter that counts items: 1 to 255 characters.
    pub item: Option<Box<str>>,
    /// The member of the tenant that uses it.
    pub member: Option<Box<str>>,
    /// When it happens, in the period.
    pub at: DateTime<Utc>,
    /// The kind of window it counts in.
    pub window: Window,
    /// The window it counts in.
    pub period: Period,
    /// The most that may be used of the plan in the window, this use included, up to `i64::MAX`. `i64::MAX` where nothing
    /// is refused.
    pub cap: u64,
    /// The most that the member may use in the window, this use included; `None` for no such limit.
    pub member_cap: Option<u64>,
    /// The limit that the thresholds are percentages of; it may be beyond `cap`, or let more through.
    pub limit: Limit,
    /// What to announce once in the window for this limit, ascending.
    pub thresholds: Box<[Threshold]>,
    /// What may be left of earlier windows and is to be there before the first use of this one.
    pub carry: Option<Carry>,
    /// The tenant's revision at which cap and window were decided.
    pub revision: Revision,
}

/// Whether a use is asked about, or has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DrawKind {
    /// It happens if it is counted.
    Consume,
    /// It has happened.
    Record,
}

impl DrawKind {
    /// The name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Consume => "consume",
            Self::Record => "record",
        }
    }
}

/// A point that is announced when usage reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// Percent of the limit.
    pub percent: u16,
    /// The same in units: reached when this much is used.
    pub units: u64,
}

impl Threshold {
    /// A percentage of a limit, rounded up; what is not used at all reaches none.
    #[must_use]
    pub fn of(limit: u64, percent: u16) -> Self {
        let exact = (u128::from(limit) * u128::from(percent)).div_ceil(100);
        Self { percent, units: u64::try_from(exact).unwrap_or(u64::MAX).max(1) }
    }
}

/// What became of a [`Draw`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Drawn {
    /// It was counted.
    Counted {
        /// Used of the plan in the window before it, overage included; the peak, the number of items or the level.
        before: u64,
        /// The same with it.
        after: u64,
        /// Units of it that were taken from grants.
        burnt: u64,
        /// Percentages that are reached and were not announced before in this window for this limit.
        crossed: Vec<u16>,
    },
    /// It did not fit, and nothing was counted.
    Refused {
        /// Used of the plan in the window.
        used: u64,
        /// The most that would have fitted, of the plan, its overage and grants.
        room: u64,
    },
    /// It did not fit into what its member may use, which is less than what the tenant has left. Nothing was counted.
    MemberRefused {
        /// Used by the member in the window.
        used: u64,
        /// The most that would have fitted.
        room: u64,
    },
    /// This key was counted before, with the same amount and item.
    AlreadyCounted,
    /// The tenant has another revision than the draw was decided at. Nothing was counted: decide again.
    Outdated {
        /// The present revision.
        revision: Revision,
    },
}

/// Counts uses against caps.
///
/// # Contract
/// - *Atomic*: concurrent calls never count more than cap and grants in total, and a refused draw leaves nothing behind.
/// - *In order*: units come from the plan up to its limit, then from grants (lowest priority number, then what ends first,
///   then the oldest), then from the plan's overage up to the cap.
/// - *Whole*: a draw is counted in full or not at all.
/// - *By its aggregation*: a peak adds what it is above the one before, an item 1 when it is new in the window, a level
///   what it differs from the one before unless that is of a later instant. What adds nothing is counted whatever the caps.
/// - *By member, too*: a draw with a `member_cap` is counted only where tenant and member have room, in the same step; what
///   a member used before the first such draw of a window counts.
/// - *Idempotent*: a repeated `key` of a meter moves nothing and is answered [`Drawn::AlreadyCounted`]; with another
///   amount or item it is [`KeyReused`](saas_core::CoreError::KeyReused). A key of a refused draw is free again.
/// - *Carried over*: before the first use of a window, what is left of those that the draw names is a grant, once for each
///   of them and no more in all than it says. What was carried over is no longer of the window that left it.
/// - *Announced once*: each threshold that is reached is in `crossed` of one draw per window and limit, whatever runs at
///   once and however the limit changes in between. A level that fell below one announces it again.
/// - *Current*: a store that knows revisions counts only at the draw's own.
/// - *Fenced*: reads and writes only the context's tenant.
#[async_trait]
pub trait CounterStore: fmt::Debug + Send + Sync + 'static {
    /// Counts one draw at `now`.
    async fn consume(
        &self,
        ctx: &dyn TenantContext,
        draw: &Draw,
        now: DateTime<Utc>,
    ) -> Result<Drawn, EntitlementsError>;

    /// What is used in a window.
    async fn used(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        window: Window,
        period: Period,
    ) -> Result<u64, EntitlementsError>;

    /// What a member used in a window, grants included.
    async fn used_by(
        &self,
        ctx: &dyn TenantContext,
        member: &str,
        meter: &MeterKey,
        window: Window,
        period: Period,
    ) -> Result<u64, EntitlementsError>;
}

impl Draw {
    /// The percentages that a usage of `used` units has reached.
    #[must_use]
    pub fn reached(&self, used: u64) -> Vec<u16> {
        let reached = |threshold: &&Threshold| threshold.units <= used;
        self.thresholds.iter().filter(reached).map(|threshold| threshold.percent).collect()
    }
}
