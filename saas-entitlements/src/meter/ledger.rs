//! The port behind [`Adjustments`](crate::Adjustments): grants and corrections.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{IdempotencyKey, InvalidInput, Limit, MeterKey, TenantContext, UsageGrantId, plan::Window};
use serde::{Deserialize, Serialize};

use super::{CounterStore, Threshold, decide::MOST};
#[cfg(any(feature = "postgres", feature = "testing"))]
use super::{Draw, DrawKind};
use crate::{EntitlementsError, Period};
#[cfg(any(feature = "postgres", feature = "testing"))]
use saas_core::plan::Aggregation;

/// Where the units of a grant come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GrantSource {
    /// The tenant paid for them.
    Bought,
    /// An operator gave them.
    Given,
    /// They were left over at the end of a window. Made by the store, not by [`Adjustments`](crate::Adjustments).
    Rollover,
}

impl GrantSource {
    /// The name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bought => "bought",
            Self::Given => "given",
            Self::Rollover => "rollover",
        }
    }
}

/// Units that are to be given to a tenant beside those of its plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewGrant {
    pub(crate) id: UsageGrantId,
    pub(crate) meter: MeterKey,
    pub(crate) units: u64,
    pub(crate) source: GrantSource,
    pub(crate) reason: String,
    pub(crate) priority: i16,
    pub(crate) expires_at: Option<DateTime<Utc>>,
}

impl NewGrant {
    /// A grant of `units` (1 to 2^63-1) without an end. The id makes it one grant, however often it is given: mint it where
    /// the purchase is kept.
    ///
    /// # Errors
    /// When the units are 0 or too many, the source is `Rollover`, or the reason is not 1 to 500 characters without control characters.
    pub fn new(
        id: UsageGrantId,
        meter: MeterKey,
        units: u64,
        source: GrantSource,
        reason: impl Into<String>,
    ) -> Result<Self, InvalidInput> {
        if !(1..=MOST).contains(&units) {
            return Err(InvalidInput::new("grant", "has 0 units or more than 2^63-1", "give at least one unit"));
        }
        if source == GrantSource::Rollover {
            let why = "says that it was left over, which only the end of a window can say";
            return Err(InvalidInput::new("grant", why, "name it bought or given"));
        }
        let reason = checked_reason("grant reason", reason.into())?;
        Ok(Self { id, meter, units, source, reason, priority: 0, expires_at: None })
    }

    /// Burns it before grants of a higher number, and after those of a lower one. 0 unless set.
    #[must_use]
    pub const fn with_priority(mut self, priority: i16) -> Self {
        self.priority = priority;
        self
    }

    /// Takes back at that instant what is not burnt by then.
    #[must_use]
    pub const fn with_expiry(mut self, expires_at: DateTime<Utc>) -> Self {
        self.expires_at = Some(expires_at);
        self
    }
}

/// Units of a tenant beside those of its plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Grant {
    /// Its name.
    pub id: UsageGrantId,
    /// Of what.
    pub meter: MeterKey,
    /// How many were given.
    pub units: u64,
    /// How many of them are used.
    pub burnt: u64,
    /// Lower numbers are burnt first.
    pub priority: i16,
    /// Why it was given.
    pub reason: String,
    /// Since when.
    pub created_at: DateTime<Utc>,
    /// Until when, exclusive; `None` for ever.
    pub expires_at: Option<DateTime<Utc>>,
}

/// A signed change of what was counted, ready for a store.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Adjustment {
    /// What was used.
    pub meter: MeterKey,
    /// What counts it: the meter itself, or the one whose units pay for it.
    pub counter: MeterKey,
    /// By how much, -2^63+1 to 2^63-1, not 0.
    pub amount: i64,
    /// The same in units of the counter.
    pub units: i64,
    /// Names this one correction, among the uses of the meter, too.
    pub key: IdempotencyKey,
    /// The item that was counted or left out, of a meter that counts items.
    pub item: Option<Box<str>>,
    /// The member whose use it corrects.
    pub member: Option<Box<str>>,
    /// The kind of window it belongs to.
    pub window: Window,
    /// The window it belongs to.
    pub period: Period,
    /// The limit that the thresholds are percentages of.
    pub limit: Limit,
    /// What to announce once in the window for this limit, ascending.
    pub thresholds: Box<[Threshold]>,
    /// When what it corrects happened.
    pub at: DateTime<Utc>,
    /// Why.
    pub reason: String,
}

#[cfg(any(feature = "postgres", feature = "testing"))]
impl Adjustment {
    /// What stands for it where warnings are given: a use that has happened.
    pub(crate) fn as_draw(&self) -> Draw {
        Draw {
            kind: DrawKind::Record,
            meter: self.meter.clone(),
            counter: self.counter.clone(),
            // A level is not corrected, and nothing else announces by its aggregation.
            aggregation: Aggregation::Sum,
            amount: self.amount.unsigned_abs(),
            units: self.units.unsigned_abs(),
            key: self.key.clone(),
            item: self.item.clone(),
            member: self.member.clone(),
            at: self.at,
            window: self.window,
            period: self.period,
            cap: MOST,
            member_cap: None,
            limit: self.limit,
            thresholds: self.thresholds.clone(),
            carry: None,
            revision: saas_core::Revision::NONE,
        }
    }
}

/// What became of a correction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Corrected {
    /// It was made.
    Counted {
        /// Used of the plan in the window before it.
        before: u64,
        /// Used of the plan in the window with it: at least 0.
        after: u64,
    },
    /// This key was counted before, with the same amount.
    AlreadyCounted,
}

/// Changes what tenants have and have used, by decision of an operator or of billing.
///
/// # Contract
/// - *Idempotent*: a grant's id gives it once; a correction's key makes it once. Either with other contents is
///   [`KeyReused`](saas_core::CoreError::KeyReused).
/// - *Never more by correction*: one below what is used takes what there is, of the member where it names one, and leaves
///   nothing negative that later uses could fill up. An item is taken out only where it is in, and put in where it is not.
/// - *Traceable*: a store with an audit log writes who, why and what in the same transaction.
/// - *Fenced*: reads and writes only the context's tenant.
#[async_trait]
pub trait Ledger: CounterStore {
    /// Gives units. The answer is the grant as it is, also when it was there before.
    async fn give(
        &self,
        ctx: &dyn TenantContext,
        new: &NewGrant,
        now: DateTime<Utc>,
    ) -> Result<Grant, EntitlementsError>;

    /// Takes back what is not burnt of a grant; how much that was, or `None` when there is none in force by that id.
    async fn revoke(
        &self,
        ctx: &dyn TenantContext,
        grant: UsageGrantId,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<Option<u64>, EntitlementsError>;

    /// The grants of a meter that have units left, as they will be burnt; the first [`GRANTS_LISTED`] of them.
    async fn list_grants(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        now: DateTime<Utc>,
    ) -> Result<Vec<Grant>, EntitlementsError>;

    /// Makes a correction.
    async fn correct(
        &self,
        ctx: &dyn TenantContext,
        adjustment: &Adjustment,
        now: DateTime<Utc>,
    ) -> Result<Corrected, EntitlementsError>;
}

/// How many grants [`Ledger::list_grants`] answers at most.
pub const GRANTS_LISTED: usize = 100;

/// A reason that can be kept: 1 to 500 characters, none of control.
pub(super) fn checked_reason(what: &'static str, reason: String) -> Result<String, InvalidInput> {
    let trimmed = reason.trim();
    if !(1..=500).contains(&trimmed.chars().count()) || trimmed.chars().any(char::is_control) {
        let why = "is empty, longer than 500 characters or holds a control character";
        return Err(InvalidInput::new(what, why, "say in a sentence why"));
    }
    Ok(trimmed.to_owned())
}
