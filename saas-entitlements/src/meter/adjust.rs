//! Grants and corrections, checked against the catalogue. Whoever may call this can change what a tenant owes: it is for
//! operators and for billing, under a context with their name.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use saas_core::{
    IdempotencyKey, InvalidInput, MeterKey, TenantContext, UsageGrantId,
    plan::{Aggregation, Meter},
};

use super::{
    Adjustment, Corrected, Grant, Ledger, NewGrant,
    decide::{MOST, additive, check_instant, check_item, check_name, declared, rule_at, thresholds},
    ledger::checked_reason,
};
use crate::{Entitlements, EntitlementsError};

/// Gives and takes back units, and corrects what was counted.
#[derive(Debug, Clone)]
pub struct Adjustments {
    entitlements: Entitlements,
    ledger: Arc<dyn Ledger>,
}

/// A change of what was counted.
#[derive(Debug, Clone)]
pub struct Correction {
    /// Of what.
    pub meter: MeterKey,
    /// By how much: below 0 for what was counted and not used, above 0 for the reverse.
    pub amount: i64,
    /// Names this one correction, among the uses of the meter, too.
    pub key: IdempotencyKey,
    /// The item that was counted wrongly (amount -1) or left out (1), of a meter that counts items.
    pub item: Option<String>,
    /// The member whose use it corrects, where members have limits.
    pub member: Option<String>,
    /// When what it corrects happened; the window of that instant is changed, also one that is over.
    pub at: DateTime<Utc>,
    /// Why: 1 to 500 characters, without control characters.
    pub reason: String,
}

impl Adjustments {
    /// Adjustments to what `ledger` counts, under the plans of `entitlements`.
    #[must_use]
    pub fn new(entitlements: Entitlements, ledger: Arc<dyn Ledger>) -> Self {
        Self { entitlements, ledger }
    }

    /// Gives units of a meter beside those of the plan. They are burnt once the plan's are used up: by priority, then what
    /// ends first, then the oldest. Safe to repeat with the same id.
    ///
    /// # Errors
    /// - [`Invalid`](saas_core::ErrorKind::Invalid): the meter is unknown, is paid for by another, or does not add up; the
    ///   grant is already over; its id was given with other contents.
    /// - [`Unavailable`](saas_core::ErrorKind::Unavailable) and
    ///   [`OutcomeUnknown`](saas_core::ErrorKind::OutcomeUnknown): repeat with the same id.
    pub async fn give(&self, ctx: &dyn TenantContext, new: &NewGrant) -> Result<Grant, EntitlementsError> {
        let now = self.entitlements.core.clock.now();
        let catalog = self.entitlements.catalog();
        let meter =
            catalog.meter(&new.meter).ok_or_else(|| EntitlementsError::UnknownMeter { key: new.meter.clone() })?;
        additive(meter)?;
        if meter.credit().is_some() {
            let why = "is of a meter that another one pays for";
            return Err(InvalidInput::new("grant", why, "give units of the meter that pays").into());
        }
        if new.expires_at.is_some_and(|end| end <= now) {
            return Err(InvalidInput::new("grant", "is already over", "pass an end in the future").into());
        }
        self.ledger.give(ctx, new, now).await
    }

    /// Takes back what is not burnt of a grant; how much that was, or `None` when no grant in force has the id.
    ///
    /// # Errors
    /// When the reason cannot be kept, or the store does not answer.
    pub async fn revoke(
        &self,
        ctx: &dyn TenantContext,
        grant: UsageGrantId,
        reason: impl Into<String>,
    ) -> Result<Option<u64>, EntitlementsError> {
        let reason = checked_reason("revocation reason", reason.into())?;
        self.ledger.revoke(ctx, grant, &reason, self.entitlements.core.clock.now()).await
    }

    /// The grants of a meter that have units left, as they will be burnt; the first
    /// [`GRANTS_LISTED`](crate::GRANTS_LISTED) of them.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn list_grants(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
    ) -> Result<Vec<Grant>, EntitlementsError> {
        self.ledger.list_grants(ctx, meter, self.entitlements.core.clock.now()).await
    }

    /// Changes what was counted of the plan, exactly once per key, whatever the limit. One that takes more than there is
    /// leaves 0: the event keeps the whole amount, and later uses gain nothing. Units that were burnt from grants stay
    /// burnt; give a grant instead. Of a peak, it moves the peak; a meter that keeps the latest is put right by recording
    /// the level.
    ///
    /// # Errors
    /// - [`Invalid`](saas_core::ErrorKind::Invalid): the amount is 0 or out of range, the instant is in the future, the
    ///   reason cannot be kept, the meter is unknown, keeps the latest or is not in the plan; it counts items and the amount
    ///   is not that of one, which is named; the key was used with another amount or item; the sum would be more than 2^63-1.
    /// - [`Unavailable`](saas_core::ErrorKind::Unavailable) and
    ///   [`OutcomeUnknown`](saas_core::ErrorKind::OutcomeUnknown): repeat with the same key.
    pub async fn correct(
        &self,
        ctx: &dyn TenantContext,
        correction: Correction,
    ) -> Result<Corrected, EntitlementsError> {
        let Correction { meter, amount, key, item, member, at, reason } = correction;
        let reason = checked_reason("correction reason", reason)?;
        let snapshot = self.entitlements.snapshot(ctx.tenant()).await;
        let now = self.entitlements.core.clock.now();
        check_instant(at, now)?;
        let declared = declared(&snapshot, &meter)?;
        check_correctable(declared, amount)?;
        let item = check_item(declared, item.as_deref())?;
        let member = member.map(|member| check_name("member", &member)).transpose()?;
        let cost = declared.credit().map_or(Some(1), |credit| i64::try_from(credit.cost).ok());
        let units =
            cost.and_then(|cost| amount.checked_mul(cost)).filter(|units| (1..=MOST).contains(&units.unsigned_abs()));
        let Some(units) = units else {
            let why = "is 0 or beyond 2^63-1 units";
            return Err(InvalidInput::new("correction", why, "pass what was counted too little, or too much").into());
        };
        let Some((rule, period)) = rule_at(&snapshot, &meter, at)? else {
            let why = "is of a meter that the tenant's plan does not include";
            return Err(InvalidInput::new("correction", why, "correct it under a plan that has the meter").into());
        };
        let counter = snapshot.paying(&meter).clone();
        let (window, limit, thresholds) = (rule.window, rule.limit, thresholds(&rule));
        let adjustment = Adjustment {
            meter,
            counter,
            amount,
            units,
            key,
            item,
            member,
            window,
            period,
            limit,
            thresholds,
            at,
            reason,
        };
        self.ledger.correct(ctx, &adjustment, now).await
    }
}

fn check_correctable(meter: &Meter, amount: i64) -> Result<(), InvalidInput> {
    let (field, why, remedy) = match (meter.aggregation(), amount) {
        (Aggregation::Latest, _) => {
            ("meter", "keeps the latest level, which the next report replaces", "record the level that is right")
        }
        (Aggregation::Unique, amount) if amount.unsigned_abs() != 1 => {
            ("correction", "is not of one item", "pass 1 or -1 for each item")
        }
        (Aggregation::Sum | Aggregation::Count | Aggregation::Unique | Aggregation::Max, _) => return Ok(()),
    };
    Err(InvalidInput::new(field, why, remedy))
}
