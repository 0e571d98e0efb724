//! What a snapshot says about the lending of a meter. Pure.

use chrono::{DateTime, Utc};
use saas_core::{
    CoreError, InvalidInput, Limit, MeterKey, Revision,
    plan::{Aggregation, Overage, Window},
};

use crate::{Denial, EntitlementsError, Origin, Period, Snapshot, Terms};

const MOST: u64 = i64::MAX.unsigned_abs();

/// What units are lent under. Another one ends the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) counter: MeterKey,
    pub(super) cost: u64,
    pub(super) window: Window,
    pub(super) period: Period,
    pub(super) cap: u64,
    pub(super) revision: Revision,
}

/// The rule of a meter at an instant, or why the tenant has none.
pub(super) fn rule_at(
    snapshot: &Snapshot,
    meter: &MeterKey,
    now: DateTime<Utc>,
) -> Result<Result<Rule, Denial>, EntitlementsError> {
    let declared =
        snapshot.catalog.meter(meter).ok_or_else(|| EntitlementsError::UnknownMeter { key: meter.clone() })?;
    match snapshot.origin() {
        Origin::Loaded | Origin::LastKnown { .. } => {}
        Origin::UnknownTenant => return Err(CoreError::NotFound { what: "tenant" }.into()),
        Origin::FailPolicy => return Err(EntitlementsError::Unavailable { cause: None }),
    }
    if snapshot.access() < declared.min_access() {
        return Ok(Err(Denial::Standing { access: snapshot.access() }));
    }
    let Some(Terms { rule: limit, period }) = snapshot.terms_of(snapshot.catalog.paying(declared.id()), now) else {
        return Ok(Err(Denial::NotIncluded));
    };
    if limit.per_member.is_some() {
        let why = "is limited per member, which a process that borrows for all of them cannot decide";
        return Err(InvalidInput::new("meter", why, "use `Meter::consume`").into());
    }
    let cap = match (limit.limit, limit.overage) {
        (Limit::Max(max), Overage::Block) => max.min(MOST),
        (Limit::Max(max), Overage::Allow | Overage::Bill) => {
            limit.overage_max.map_or(MOST, |beyond| max.saturating_add(beyond).min(MOST))
        }
        (Limit::Unlimited, _) => MOST,
    };
    Ok(Ok(Rule {
        counter: snapshot.paying(meter).clone(),
        cost: declared.credit().map_or(1, |credit| credit.cost),
        window: limit.window,
        period,
        cap,
        revision: snapshot.revision(),
    }))
}

/// Whether so much may be used at once of a meter that can be lent.
pub(super) fn check(snapshot: &Snapshot, meter: &MeterKey, amount: u64) -> Result<(), EntitlementsError> {
    let declared =
        snapshot.catalog.meter(meter).ok_or_else(|| EntitlementsError::UnknownMeter { key: meter.clone() })?;
    let refuse = |field, why, remedy| Err(InvalidInput::new(field, why, remedy).into());
    match (declared.aggregation(), amount) {
        (Aggregation::Max | Aggregation::Unique | Aggregation::Latest, _) => {
            refuse("meter", "is not a sum, so its units cannot be lent", "use `Meter::consume`")
        }
        (_, 0) => refuse("amount", "is 0", "count uses of at least one unit"),
        (Aggregation::Count, 2..) => {
            refuse("amount", "is more than 1 for a meter that counts uses", "pass 1 for each use")
        }
        (Aggregation::Sum | Aggregation::Count, _) => {
            let cost = declared.credit().map_or(1, |credit| credit.cost);
            match amount.checked_mul(cost) {
                Some(units) if units <= MOST => Ok(()),
                Some(_) | None => refuse("amount", "is more than 2^63-1 units", "count in larger units"),
            }
        }
    }
}
