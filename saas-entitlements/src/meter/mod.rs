//! Counting uses against limits, exactly once each and never beyond a hard limit.
//!
//! [`Meter::consume`] is the only question about what is left that has a safe answer: asking first and using afterwards
//! lets two callers take the last unit. The limit comes from the tenant's [`Snapshot`]; the store checks in the same
//! statement that the tenant's revision is still the snapshot's, so a limit that was lowered is in force for every
//! statement that starts after the commit.

mod adjust;
#[cfg(feature = "testing")]
pub mod conformance;
mod decide;
mod hold;
mod ledger;
mod over;
mod reserve;
#[cfg(feature = "testing")]
pub mod reserve_conformance;
mod store;
mod uses;

use std::{fmt, sync::Arc};

pub use adjust::{Adjustments, Correction};
use chrono::{DateTime, Utc};
pub use hold::{Hold, Holding, ReservationStore, Settled};
pub use ledger::{Adjustment, Corrected, GRANTS_LISTED, Grant, GrantSource, Ledger, NewGrant};
pub use reserve::{Reservation, Reservations, Reserved, Settlement};
use saas_core::{IdempotencyKey, Limit, MeterKey, PlanVersionRef, TenantContext, subscription::AccessLevel};
use serde::Serialize;
pub use store::{CounterStore, Draw, DrawKind, Drawn, Threshold};
pub use uses::Use;

use self::decide::{Verdict, additive, check_name, conclude, decide, declared, rule_at};
pub(crate) use self::decide::{cap, thresholds};

/// What a use has to pass, for those who record many at once.
#[cfg(feature = "postgres")]
pub(crate) mod check {
    pub(crate) use super::decide::{
        CLOCKS_DIFFER, MOST, Verdict, additive, check_amount, check_instant, check_item, check_name, decide,
    };
}
#[cfg(feature = "postgres")]
use crate::Snapshot;
use crate::{Entitlements, EntitlementsError, Period};

/// How often a use is decided again because the tenant's revision moved in between.
const ATTEMPTS: usize = 4;

/// What became of a use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
#[must_use = "a use that was not granted must not happen"]
pub enum Consumption {
    /// It was counted: go ahead.
    Granted {
        /// What is left of the plan's own in the window, grants apart; 0 beyond a limit that lets more through.
        left: Limit,
        /// Units of this use beyond limit and grants; 0 unless the plan lets more through.
        over: u64,
        /// Units of this use that were taken from grants.
        burnt: u64,
        /// Warning thresholds, in percent, that this use was the first in the window to reach under this limit.
        crossed: Vec<u16>,
    },
    /// It does not fit, and nothing was counted.
    Exhausted {
        /// Whose limit it is: of the two, the one with less left.
        of: LimitOf,
        /// The limit.
        limit: u64,
        /// What is left, grants included, in units of the meter that pays: less than the use would have added.
        left: u64,
        /// When the window ends; `None` for never.
        resets_at: Option<DateTime<Utc>>,
        /// The lowest plan that would have let it through.
        upgrade: Option<PlanVersionRef>,
    },
    /// The tenant may not use this meter at all, and nothing was counted.
    Denied {
        /// Why.
        why: Denial,
        /// The lowest plan that would have let it through.
        upgrade: Option<PlanVersionRef>,
    },
    /// This key was counted before: the work of that use may be done, or has been.
    AlreadyCounted,
}

impl Consumption {
    /// Whether the work may be done.
    #[must_use]
    pub const fn is_granted(&self) -> bool {
        match self {
            Self::Granted { .. } | Self::AlreadyCounted => true,
            Self::Exhausted { .. } | Self::Denied { .. } => false,
        }
    }
}

/// Whose limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitOf {
    /// The tenant's.
    Tenant,
    /// The member's, within the tenant's.
    Member,
}

/// Why a tenant may not use a meter at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "why", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Denial {
    /// Its plan does not include the meter.
    NotIncluded,
    /// Its standing takes the meter away.
    Standing {
        /// What the standing leaves.
        access: AccessLevel,
    },
}

/// A sentence for a log or a page, such as `limit of 1000 reached, 3 left until 2026-02-01 00:00:00 UTC; \`pro@1\` has more`.
impl fmt::Display for Consumption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = match self {
            Self::Granted { left, over, burnt, crossed } => {
                match left {
                    Limit::Unlimited => f.write_str("granted, without limit")?,
                    Limit::Max(left) => write!(f, "granted, {left} left")?,
                }
                if *burnt > 0 {
                    write!(f, ", {burnt} of a grant")?;
                }
                if *over > 0 {
                    write!(f, ", {over} beyond the limit")?;
                }
                for percent in crossed {
                    write!(f, ", {percent} % of the limit reached")?;
                }
                &None
            }
            Self::Exhausted { of, limit, left, resets_at, upgrade } => {
                f.write_str(match of {
                    LimitOf::Tenant => "limit",
                    LimitOf::Member => "member's limit",
                })?;
                write!(f, " of {limit} reached, {left} left")?;
                if let Some(resets_at) = resets_at {
                    write!(f, " until {resets_at}")?;
                }
                upgrade
            }
            Self::Denied { why: Denial::NotIncluded, upgrade } => {
                f.write_str("not included in the plan")?;
                upgrade
            }
            Self::Denied { why: Denial::Standing { access }, upgrade } => {
                write!(f, "access is {}", decide::level(*access))?;
                upgrade
            }
            Self::AlreadyCounted => {
                f.write_str("already counted")?;
                &None
            }
        };
        match hint {
            Some(version) => write!(f, "; `{version}` has more"),
            None => Ok(()),
        }
    }
}

/// How much of a meter is used, at one instant. For display: only [`Meter::consume`] decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Used in the window.
    pub used: u64,
    /// The limit.
    pub limit: Limit,
    /// The window.
    pub period: Period,
}

/// Counts uses of tenants.
#[derive(Debug, Clone)]
pub struct Meter {
    entitlements: Entitlements,
    store: Arc<dyn CounterStore>,
}

impl Meter {
    /// A meter that takes limits from `entitlements` and counts in `store`.
    #[must_use]
    pub fn new(entitlements: Entitlements, store: Arc<dyn CounterStore>) -> Self {
        Self { entitlements, store }
    }

    /// Uses `amount` units, all or nothing, exactly once per `key`. Where the plan limits each member, it is the acting
    /// member's.
    ///
    /// Safe to repeat with the same key after any error, a timeout and a crash included.
    ///
    /// # Errors
    /// - [`Invalid`](saas_core::ErrorKind::Invalid): the amount is 0, too large, or not 1 for a meter that counts uses or
    ///   items; the meter is unknown, or counts items, and none is named; the plan limits each member, and none acts; the
    ///   key was used with another amount or item.
    /// - [`NotFound`](saas_core::ErrorKind::NotFound): no such tenant.
    /// - [`Unavailable`](saas_core::ErrorKind::Unavailable): nothing was decided; repeat with the same key.
    /// - [`OutcomeUnknown`](saas_core::ErrorKind::OutcomeUnknown): it may have been counted; repeat with the same key.
    #[tracing::instrument(name = "saas.entitlements.meter.consume", level = "debug", skip_all, fields(tenant = %ctx.tenant(), %meter, amount))]
    pub async fn consume(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        amount: u64,
        key: &IdempotencyKey,
    ) -> Result<Consumption, EntitlementsError> {
        self.draw(ctx, DrawKind::Consume, &Use::new(meter.clone(), amount, key)).await
    }

    /// As [`consume`](Self::consume), of an item, by a member or at an instant that the use names.
    ///
    /// What adds nothing is granted whatever the limit: a level that is no new peak, an item that was used before in the
    /// window, a level that falls.
    ///
    /// # Errors
    /// As [`consume`](Self::consume), and when the instant is more than five minutes ahead, or before 1970.
    /// [`TooLate`](EntitlementsError::TooLate) when its window takes no more uses: nothing was counted, unless an earlier try
    /// with this key was. [`Adjustments::correct`] counts it all the same; under this very key, once.
    #[tracing::instrument(name = "saas.entitlements.meter.consume", level = "debug", skip_all, fields(tenant = %ctx.tenant(), meter = %of.meter, amount = of.amount))]
    pub async fn consume_use(&self, ctx: &dyn TenantContext, of: &Use<'_>) -> Result<Consumption, EntitlementsError> {
        self.draw(ctx, DrawKind::Consume, of).await
    }

    /// Counts `amount` units that were used already, exactly once per `key`, whatever the limit and the standing: plan and
    /// grants as far as they go, the rest beyond the limit. Thresholds are announced as for any use.
    ///
    /// [`Denied`](Consumption::Denied) where the plan does not include the meter: there is no window to count in. Where the
    /// sum would be more than 2^63-1, [`Exhausted`](Consumption::Exhausted). Neither has counted anything.
    ///
    /// # Errors
    /// As [`consume`](Self::consume).
    #[tracing::instrument(name = "saas.entitlements.meter.record", level = "debug", skip_all, fields(tenant = %ctx.tenant(), %meter, amount))]
    pub async fn record(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        amount: u64,
        key: &IdempotencyKey,
    ) -> Result<Consumption, EntitlementsError> {
        self.draw(ctx, DrawKind::Record, &Use::new(meter.clone(), amount, key)).await
    }

    /// As [`record`](Self::record), of an item, by a member or at an instant that the use names. A member's limit does not
    /// refuse it either; it counts against what the member may still use.
    ///
    /// # Errors
    /// As [`consume_use`](Self::consume_use).
    #[tracing::instrument(name = "saas.entitlements.meter.record", level = "debug", skip_all, fields(tenant = %ctx.tenant(), meter = %of.meter, amount = of.amount))]
    pub async fn record_use(&self, ctx: &dyn TenantContext, of: &Use<'_>) -> Result<Consumption, EntitlementsError> {
        self.draw(ctx, DrawKind::Record, of).await
    }

    async fn draw(
        &self,
        ctx: &dyn TenantContext,
        kind: DrawKind,
        of: &Use<'_>,
    ) -> Result<Consumption, EntitlementsError> {
        for _ in 0..ATTEMPTS {
            let snapshot = self.entitlements.snapshot(ctx.tenant()).await;
            // After it: the first load may have found the clock to be wrong.
            let now = self.entitlements.core.clock.now();
            let ruled = match decide(&snapshot, kind, of, ctx.actor(), now)? {
                Verdict::Draw(ruled) => ruled,
                Verdict::Denied(denied) => return Ok(denied),
            };
            let drawn = self.store.consume(ctx, &ruled.draw, now).await?;
            if let Drawn::Outdated { revision } = drawn {
                // The store's transaction was its own, so what it saw is committed.
                self.entitlements.hear(ctx.tenant(), revision);
            }
            if let Some(consumption) = conclude(&snapshot, &ruled, drawn) {
                return Ok(consumption);
            }
        }
        Err(EntitlementsError::Unavailable { cause: None })
    }

    /// What is used of a meter now; `None` where the tenant does not have it.
    ///
    /// # Errors
    /// As [`consume`](Self::consume).
    pub async fn usage(&self, ctx: &dyn TenantContext, meter: &MeterKey) -> Result<Option<Usage>, EntitlementsError> {
        let snapshot = self.entitlements.snapshot(ctx.tenant()).await;
        let now = self.entitlements.core.clock.now();
        let Some((rule, period)) = rule_at(&snapshot, meter, now)? else { return Ok(None) };
        let used = self.store.used(ctx, snapshot.paying(meter), rule.window, period).await?;
        Ok(Some(Usage { used, limit: rule.limit, period }))
    }

    /// What a member used now of a meter whose uses add up, beside what each member may; `None` where the tenant does not
    /// have the meter.
    ///
    /// # Errors
    /// As [`consume`](Self::consume).
    pub async fn usage_of_member(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        member: &str,
    ) -> Result<Option<Usage>, EntitlementsError> {
        let snapshot = self.entitlements.snapshot(ctx.tenant()).await;
        let now = self.entitlements.core.clock.now();
        additive(declared(&snapshot, meter)?)?;
        let member = check_name("member", member)?;
        let Some((rule, period)) = rule_at(&snapshot, meter, now)? else { return Ok(None) };
        let used = self.store.used_by(ctx, &member, snapshot.paying(meter), rule.window, period).await?;
        Ok(Some(Usage { used, limit: rule.per_member.map_or(Limit::Unlimited, Limit::Max), period }))
    }
}

#[cfg(feature = "postgres")]
impl Meter {
    /// As [`consume`](Self::consume), in the caller's transaction: the use is counted if and only if that commits.
    ///
    /// The snapshot is the caller's, taken before the transaction was opened: loading one here would ask for a second
    /// connection while holding the first. The counter's row stays locked until the transaction ends.
    ///
    /// # Errors
    /// As [`consume`](Self::consume), and [`Outdated`](EntitlementsError::Outdated) when the snapshot is: nothing was
    /// written; roll back, take a new snapshot and repeat.
    pub async fn consume_in(
        &self,
        tx: &mut saas_core::TenantTx,
        snapshot: &Snapshot,
        meter: &MeterKey,
        amount: u64,
        key: &IdempotencyKey,
    ) -> Result<Consumption, EntitlementsError> {
        self.consume_use_in(tx, snapshot, &Use::new(meter.clone(), amount, key)).await
    }

    /// As [`consume_use`](Self::consume_use), in the caller's transaction, as [`consume_in`](Self::consume_in).
    ///
    /// # Errors
    /// As both.
    pub async fn consume_use_in(
        &self,
        tx: &mut saas_core::TenantTx,
        snapshot: &Snapshot,
        of: &Use<'_>,
    ) -> Result<Consumption, EntitlementsError> {
        if snapshot.tenant() != tx.tenant() {
            return Err(saas_core::InvalidInput::new(
                "snapshot",
                "is of another tenant than the transaction",
                "take the snapshot of the transaction's tenant",
            )
            .into());
        }
        let now = self.entitlements.core.clock.now();
        let ruled = match decide(snapshot, DrawKind::Consume, of, tx.actor(), now)? {
            Verdict::Draw(ruled) => ruled,
            Verdict::Denied(denied) => return Ok(denied),
        };
        let drawn = crate::postgres::consume_in(tx, &ruled.draw, now).await?;
        let revision = match drawn {
            Drawn::Outdated { revision } => {
                // Not an announcement: the caller's own transaction may have raised it, and may roll back.
                self.entitlements.core.reread(tx.tenant(), snapshot.revision());
                revision
            }
            Drawn::Counted { .. } | Drawn::Refused { .. } | Drawn::MemberRefused { .. } | Drawn::AlreadyCounted => {
                saas_core::Revision::NONE
            }
        };
        let outdated = EntitlementsError::Outdated { revision };
        conclude(snapshot, &ruled, drawn).ok_or(outdated)
    }
}
