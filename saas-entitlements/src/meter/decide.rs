//! Decides, from a snapshot, what a use has to pass and what its outcome means. Pure.

use chrono::{DateTime, Utc};
use saas_core::{
    CoreError, IdempotencyKey, InvalidInput, Limit, MeterKey, PlanVersionRef,
    plan::{Aggregation, Meter as Declared, MeterLimit, Overage},
    subscription::AccessLevel,
};

use super::{Consumption, Denial, Draw, DrawKind, Drawn, Threshold};
use crate::{EntitlementsError, Origin, Period, Snapshot};

/// The most that can be counted in one window.
pub(super) const MOST: u64 = i64::MAX.unsigned_abs();

/// A use that a store may decide about, or the answer without asking one.
pub(super) enum Verdict {
    Draw(Box<Ruled>),
    Denied(Consumption),
}

/// A draw and the rule it was made from.
pub(super) struct Ruled {
    pub(super) draw: Draw,
    pub(super) rule: MeterLimit,
}

/// The window that a meter counts in now, and its rule.
pub(super) fn rule_at(
    snapshot: &Snapshot,
    meter: &MeterKey,
    now: DateTime<Utc>,
) -> Result<Option<(MeterLimit, Period)>, EntitlementsError> {
    let declared = declared(snapshot, meter)?;
    known(snapshot)?;
    let terms = snapshot.terms_of(snapshot.catalog.paying(declared.id()), now);
    Ok(terms.map(|terms| (terms.rule, terms.period)))
}

/// Whether and how a use may be drawn.
pub(super) fn decide(
    snapshot: &Snapshot,
    kind: DrawKind,
    meter: &MeterKey,
    amount: u64,
    key: &IdempotencyKey,
    now: DateTime<Utc>,
) -> Result<Verdict, EntitlementsError> {
    let declared = declared(snapshot, meter)?;
    check_amount(declared, amount)?;
    let ruled = rule_at(snapshot, meter, now)?;
    let denied = |why, upgrade| Ok(Verdict::Denied(Consumption::Denied { why, upgrade }));
    if kind == DrawKind::Consume && snapshot.access() < declared.min_access() {
        return denied(Denial::Standing { access: snapshot.access() }, None);
    }
    let Some((rule, period)) = ruled else {
        return denied(Denial::NotIncluded, upgrade(snapshot, declared, 0, amount));
    };
    let cap = match (rule.limit, rule.overage) {
        (_, _) if kind == DrawKind::Record => MOST,
        (Limit::Max(max), Overage::Block) => max.min(MOST),
        (Limit::Max(max), Overage::Allow | Overage::Bill) => {
            rule.overage_max.map_or(MOST, |beyond| max.saturating_add(beyond).min(MOST))
        }
        (Limit::Unlimited, _) => MOST,
    };
    let units = declared.credit().map_or(Some(amount), |credit| amount.checked_mul(credit.cost));
    let Some(units) = units.filter(|units| *units <= MOST) else {
        let why = "costs more than 2^63-1 units of the meter that pays for it";
        return Err(InvalidInput::new("amount", why, "use less at once").into());
    };
    let paying = snapshot.catalog.meter_by_id(snapshot.catalog.paying(declared.id())).unwrap_or(declared);
    let draw = Draw {
        kind,
        meter: meter.clone(),
        counter: paying.key().clone(),
        amount,
        units,
        key: key.clone(),
        window: rule.window,
        period,
        cap,
        limit: rule.limit,
        thresholds: thresholds(&rule),
        carry: snapshot.carry(paying.id(), &rule, period),
        revision: snapshot.revision(),
    };
    Ok(Verdict::Draw(Box::new(Ruled { draw, rule })))
}

/// What a store's outcome means to the caller. `None`: the rule changed meanwhile, decide again.
pub(super) fn conclude(snapshot: &Snapshot, ruled: &Ruled, drawn: Drawn) -> Option<Consumption> {
    let Ruled { draw, rule } = ruled;
    match drawn {
        Drawn::Counted { before, after, burnt, crossed } => {
            let over = match rule.limit {
                Limit::Unlimited => 0,
                Limit::Max(max) => after.saturating_sub(before.max(max)),
            };
            Some(Consumption::Granted { left: rule.limit.left(after), over, burnt, crossed })
        }
        Drawn::Refused { used, room } => {
            let declared = snapshot.catalog.meter(&draw.meter);
            let upgrade = declared.and_then(|meter| upgrade(snapshot, meter, used, draw.units));
            Some(Consumption::Exhausted { limit: draw.cap, left: room, resets_at: draw.period.end, upgrade })
        }
        Drawn::AlreadyCounted => Some(Consumption::AlreadyCounted),
        Drawn::Outdated { .. } => None,
    }
}

pub(super) fn declared<'a>(snapshot: &'a Snapshot, meter: &MeterKey) -> Result<&'a Declared, EntitlementsError> {
    snapshot.catalog.meter(meter).ok_or_else(|| EntitlementsError::UnknownMeter { key: meter.clone() })
}

/// Counting needs a tenant that is known: no fail policy can say how much somebody has left.
fn known(snapshot: &Snapshot) -> Result<(), EntitlementsError> {
    match snapshot.origin() {
        Origin::Loaded | Origin::LastKnown { .. } => Ok(()),
        Origin::UnknownTenant => Err(CoreError::NotFound { what: "tenant" }.into()),
        Origin::FailPolicy => Err(EntitlementsError::Unavailable { cause: None }),
    }
}

fn check_amount(meter: &Declared, amount: u64) -> Result<(), InvalidInput> {
    additive(meter)?;
    let refuse = |why: &'static str, remedy: &'static str| Err(InvalidInput::new("amount", why, remedy));
    match (meter.aggregation(), amount) {
        (_, 0) => refuse("is 0", "count uses of at least one unit"),
        (_, amount) if amount > MOST => refuse("is more than 2^63-1", "count in larger units"),
        (Aggregation::Count, 2..) => refuse("is more than 1 for a meter that counts uses", "pass 1 for each use"),
        (_, _) => Ok(()),
    }
}

/// A peak, a number of items or a level is no sum: counting it as one would be a wrong number.
pub(super) fn additive(meter: &Declared) -> Result<(), InvalidInput> {
    if meter.aggregation().is_additive() {
        return Ok(());
    }
    let why = "does not add up its uses";
    Err(InvalidInput::new("meter", why, "count with a meter whose aggregation is \"sum\" or \"count\""))
}

pub(super) fn thresholds(rule: &MeterLimit) -> Box<[Threshold]> {
    let Limit::Max(max) = rule.limit else { return Box::default() };
    let units = |percent: u16| {
        let exact = (u128::from(max) * u128::from(percent)).div_ceil(100);
        u64::try_from(exact).unwrap_or(u64::MAX).max(1)
    };
    rule.warn.iter().map(|percent| Threshold { percent: *percent, units: units(*percent) }).collect()
}

/// The lowest plan above the tenant's that would let the use through.
pub(super) fn upgrade(snapshot: &Snapshot, meter: &Declared, used: u64, amount: u64) -> Option<PlanVersionRef> {
    let rank = snapshot.plan_version()?.rank().checked_add(1)?;
    let paying = snapshot.catalog.paying(meter.id());
    let admits = |rule: &MeterLimit| rule.overage != Overage::Block || rule.limit.admits(used, amount);
    let found = snapshot.catalog.cheapest_where(rank, |version| version.limit(paying).is_some_and(admits));
    found.map(|version| version.reference().clone())
}

/// Where access has ended, for `Display`.
pub(super) const fn level(access: AccessLevel) -> &'static str {
    match access {
        AccessLevel::Full => "full",
        AccessLevel::Restricted => "restricted",
        AccessLevel::Suspended => "suspended",
    }
}
