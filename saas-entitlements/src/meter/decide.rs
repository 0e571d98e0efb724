//! Decides, from a snapshot, what a use has to pass and what its outcome means. Pure.

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    Actor, CoreError, InvalidInput, Limit, MeterKey, PlanVersionRef,
    plan::{Aggregation, Meter as Declared, MeterLimit, Overage},
    subscription::AccessLevel,
};

use super::{Consumption, Denial, Draw, DrawKind, Drawn, LimitOf, Threshold, uses::Use};
use crate::{EntitlementsError, Origin, Period, Snapshot};

/// The most that can be counted in one window.
pub(crate) const MOST: u64 = i64::MAX.unsigned_abs();

/// How far in the future a use may say it happened: what clocks of different machines may differ by.
pub(crate) const CLOCKS_DIFFER: TimeDelta = TimeDelta::minutes(5);

/// A use that a store may decide about, or the answer without asking one.
pub(crate) enum Verdict {
    Draw(Box<Ruled>),
    Denied(Consumption),
}

/// A draw and the rule it was made from.
pub(crate) struct Ruled {
    pub(crate) draw: Draw,
    pub(crate) rule: MeterLimit,
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

/// Whether and how a use by `actor` may be drawn.
pub(crate) fn decide(
    snapshot: &Snapshot,
    kind: DrawKind,
    of: &Use<'_>,
    actor: &Actor,
    now: DateTime<Utc>,
) -> Result<Verdict, EntitlementsError> {
    let declared = declared(snapshot, &of.meter)?;
    check_amount(declared, of.amount)?;
    let item = check_item(declared, of.item)?;
    let member = match of.member {
        Some(member) => Some(check_name("member", member)?),
        None => actor.person().map(|person| person.to_string().into()),
    };
    let at = of.at.unwrap_or(now);
    check_instant(at, now + CLOCKS_DIFFER)?;
    let ruled = rule_at(snapshot, &of.meter, at)?;
    let denied = |why, upgrade| Ok(Verdict::Denied(Consumption::Denied { why, upgrade }));
    if kind == DrawKind::Consume && snapshot.access() < declared.min_access() {
        return denied(Denial::Standing { access: snapshot.access() }, None);
    }
    let units = declared.credit().map_or(Some(of.amount), |credit| of.amount.checked_mul(credit.cost));
    let Some(units) = units.filter(|units| *units <= MOST) else {
        let why = "costs more than 2^63-1 units of the meter that pays for it";
        return Err(InvalidInput::new("amount", why, "use less at once").into());
    };
    let Some((rule, period)) = ruled else {
        return denied(Denial::NotIncluded, upgrade(snapshot, declared, |rule| admits(rule, 0, units)));
    };
    let paying = snapshot.catalog.meter_by_id(snapshot.catalog.paying(declared.id())).unwrap_or(declared);
    check_open(paying, period, now)?;
    let is_over = period.end.is_some_and(|end| end <= now);
    let asked = kind == DrawKind::Consume;
    let member_cap = rule.per_member.filter(|_| asked).map(|units| units.min(MOST));
    if member_cap.is_some() && member.is_none() {
        let why = "is not named, though the plan limits what each may use";
        return Err(InvalidInput::new("member", why, "name it with `Use::with_member`, or act as one").into());
    }
    let draw = Draw {
        kind,
        meter: of.meter.clone(),
        counter: paying.key().clone(),
        aggregation: paying.aggregation(),
        amount: of.amount,
        units,
        key: of.key.clone(),
        item,
        member,
        at,
        window: rule.window,
        period,
        cap: if asked { cap(&rule) } else { MOST },
        member_cap,
        limit: rule.limit,
        // Nobody acts on the warnings of a window that is over, and what was left before it was carried past it.
        thresholds: if is_over { Box::default() } else { thresholds(&rule) },
        carry: if is_over { None } else { snapshot.carry(paying.id(), &rule, period) },
        revision: snapshot.revision(),
    };
    Ok(Verdict::Draw(Box::new(Ruled { draw, rule })))
}

/// The most that may be used in a window, overage included.
pub(crate) fn cap(rule: &MeterLimit) -> u64 {
    match (rule.limit, rule.overage) {
        (Limit::Max(max), Overage::Block) => max.min(MOST),
        (Limit::Max(max), Overage::Allow | Overage::Bill) => {
            rule.overage_max.map_or(MOST, |beyond| max.saturating_add(beyond).min(MOST))
        }
        (Limit::Unlimited, _) => MOST,
    }
}

/// Whether something can have happened then: windows are counted from 1970 on.
pub(crate) fn check_instant(at: DateTime<Utc>, latest: DateTime<Utc>) -> Result<(), InvalidInput> {
    let refuse = |why| Err(InvalidInput::new("instant", why, "pass when it happened, and set the clock right"));
    if at > latest {
        return refuse("is in the future");
    }
    if at < DateTime::UNIX_EPOCH { refuse("is before 1970") } else { Ok(()) }
}

/// Whether the window still takes uses: it is open, or over for less than the grace of the meter.
fn check_open(paying: &Declared, period: Period, now: DateTime<Utc>) -> Result<(), EntitlementsError> {
    let Some(ended_at) = period.end.filter(|end| *end <= now) else { return Ok(()) };
    let late_hours = paying.late_hours();
    if now - ended_at < TimeDelta::hours(i64::from(late_hours)) {
        return Ok(());
    }
    Err(EntitlementsError::TooLate { ended_at, late_hours })
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
            // A level takes the place of what is used; a unit comes on top.
            let used = match draw.aggregation {
                Aggregation::Max | Aggregation::Latest => 0,
                Aggregation::Sum | Aggregation::Count | Aggregation::Unique => used,
            };
            let fits = |rule: &MeterLimit| admits(rule, used, draw.units);
            Some(exhausted(snapshot, draw, LimitOf::Tenant, draw.cap, room, fits))
        }
        Drawn::MemberRefused { used, room } => {
            let fits = |rule: &MeterLimit| rule.per_member.is_none_or(|max| Limit::Max(max).admits(used, draw.units));
            let limit = draw.member_cap.unwrap_or(MOST);
            Some(exhausted(snapshot, draw, LimitOf::Member, limit, room, fits))
        }
        Drawn::AlreadyCounted => Some(Consumption::AlreadyCounted),
        Drawn::Outdated { .. } => None,
    }
}

fn exhausted(
    snapshot: &Snapshot,
    draw: &Draw,
    of: LimitOf,
    limit: u64,
    left: u64,
    fits: impl Fn(&MeterLimit) -> bool,
) -> Consumption {
    let declared = snapshot.catalog.meter(&draw.meter);
    let upgrade = declared.and_then(|meter| upgrade(snapshot, meter, fits));
    Consumption::Exhausted { of, limit, left, resets_at: draw.period.end, upgrade }
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

pub(crate) fn check_amount(meter: &Declared, amount: u64) -> Result<(), InvalidInput> {
    let refuse = |why: &'static str, remedy: &'static str| Err(InvalidInput::new("amount", why, remedy));
    match (meter.aggregation(), amount) {
        (_, amount) if amount > MOST => refuse("is more than 2^63-1", "count in larger units"),
        // A level of nothing is one.
        (Aggregation::Max | Aggregation::Latest, _) => Ok(()),
        (_, 0) => refuse("is 0", "count uses of at least one unit"),
        (Aggregation::Count, 2..) => refuse("is more than 1 for a meter that counts uses", "pass 1 for each use"),
        (Aggregation::Unique, 2..) => refuse("is more than 1 for a meter that counts items", "pass 1 for each item"),
        (Aggregation::Sum | Aggregation::Count | Aggregation::Unique, _) => Ok(()),
    }
}

/// A meter that counts items has to know which, and no other has a place for one.
pub(crate) fn check_item(meter: &Declared, item: Option<&str>) -> Result<Option<Box<str>>, InvalidInput> {
    match (meter.aggregation(), item) {
        (Aggregation::Unique, Some(item)) => Ok(Some(check_name("item", item)?)),
        (Aggregation::Unique, None) => {
            let why = "is not named, though the meter counts different items";
            Err(InvalidInput::new("item", why, "name the item"))
        }
        (_, Some(_)) => {
            let why = "is named for a meter that does not count items";
            Err(InvalidInput::new("item", why, "leave it out, or count with aggregation \"unique\""))
        }
        (_, None) => Ok(None),
    }
}

/// A text that can be kept beside a use, and be found again: 1 to 255 characters, none of control.
pub(crate) fn check_name(field: &'static str, name: &str) -> Result<Box<str>, InvalidInput> {
    if (1..=255).contains(&name.chars().count()) && !name.chars().any(char::is_control) {
        return Ok(name.into());
    }
    let why = "is empty, longer than 255 characters or holds a control character";
    Err(InvalidInput::new(field, why, "pass an id"))
}

/// A peak, a number of items or a level is no sum: counting it as one would be a wrong number.
pub(crate) fn additive(meter: &Declared) -> Result<(), InvalidInput> {
    if meter.aggregation().is_additive() {
        return Ok(());
    }
    let why = "does not add up its uses";
    Err(InvalidInput::new("meter", why, "count with a meter whose aggregation is \"sum\" or \"count\""))
}

pub(crate) fn thresholds(rule: &MeterLimit) -> Box<[Threshold]> {
    let Limit::Max(max) = rule.limit else { return Box::default() };
    rule.warn.iter().map(|percent| Threshold::of(max, *percent)).collect()
}

/// Whether a plan lets so much more through, overage included as far as its cap goes.
pub(super) fn admits(rule: &MeterLimit, used: u64, more: u64) -> bool {
    Limit::Max(cap(rule)).admits(used, more)
}

/// The lowest plan above the tenant's that would let the use through.
pub(super) fn upgrade(
    snapshot: &Snapshot,
    meter: &Declared,
    fits: impl Fn(&MeterLimit) -> bool,
) -> Option<PlanVersionRef> {
    let rank = snapshot.plan_version()?.rank().checked_add(1)?;
    let paying = snapshot.catalog.paying(meter.id());
    let found = snapshot.catalog.cheapest_where(rank, |version| version.limit(paying).is_some_and(&fits));
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

#[cfg(test)]
mod tests {
    use saas_core::PlanCatalog;

    use super::*;

    /// The rule of `limits.calls` as a catalogue writes it.
    fn rule(limit: &str) -> MeterLimit {
        let catalog = format!(
            "default_plan = 'pro'\n[meters]\ncalls = {{ aggregation = 'sum' }}\n[plans.pro]\nrank = 0\n\
             [[plans.pro.versions]]\nversion = 1\nlimits.calls = {{ {limit} }}"
        );
        let catalog = PlanCatalog::from_toml(&catalog).unwrap();
        let calls = catalog.meter(&MeterKey::from_static("calls")).unwrap().id();
        catalog.default_version().limit(calls).unwrap().clone()
    }

    #[test]
    fn a_plan_is_named_only_where_its_cap_on_overage_lets_the_use_through() {
        let blocks = rule("max = 100, window = 'day', overage = 'block'");
        assert!(admits(&blocks, 90, 10) && !admits(&blocks, 90, 11));
        let capped = rule("max = 100, window = 'day', overage = 'bill', overage_max = 20");
        assert!(admits(&capped, 90, 30) && !admits(&capped, 90, 31));
        let billed = rule("max = 100, window = 'day', overage = 'bill'");
        assert!(admits(&billed, 90, MOST - 90) && !admits(&billed, 90, MOST), "no more than can be counted");
        assert!(admits(&rule("max = 'unlimited', window = 'day'"), 90, 1_000_000));
    }
}
