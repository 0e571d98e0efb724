//! What a snapshot says about the lending of a meter. Pure.

use chrono::{DateTime, Utc};
use saas_core::{
    CoreError, IdempotencyKey, InvalidInput, Limit, MeterKey, Revision,
    plan::{Aggregation, Window},
};

use crate::{
    Carry, Denial, Draw, DrawKind, EntitlementsError, Origin, Period, Snapshot, Terms, Threshold,
    meter::{cap, thresholds},
};

const MOST: u64 = i64::MAX.unsigned_abs();

/// What units are lent under. Another one ends the lease.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) meter: MeterKey,
    pub(super) counter: MeterKey,
    pub(super) cost: u64,
    pub(super) window: Window,
    pub(super) period: Period,
    pub(super) cap: u64,
    pub(super) revision: Revision,
    aggregation: Aggregation,
    limit: Limit,
    thresholds: Box<[Threshold]>,
    carry: Option<Carry>,
}

/// How a meter is used at an instant.
pub(super) enum Way {
    /// From leases.
    Lent(Rule),
    /// One by one, for this reason.
    Direct(InvalidInput),
    Denied(Denial),
}

/// How `amount` of a meter can be used.
pub(super) fn way_of(
    snapshot: &Snapshot,
    meter: &MeterKey,
    amount: u64,
    now: DateTime<Utc>,
) -> Result<Way, EntitlementsError> {
    let declared =
        snapshot.catalog.meter(meter).ok_or_else(|| EntitlementsError::UnknownMeter { key: meter.clone() })?;
    let refuse = |field, why, remedy| Err(InvalidInput::new(field, why, remedy).into());
    let direct =
        |why| Ok(Way::Direct(InvalidInput::new("meter", why, "use `Meter::consume`, or give these leases a `Meter`")));
    match (declared.aggregation(), amount) {
        (Aggregation::Max | Aggregation::Unique | Aggregation::Latest, _) => {
            return direct("is not a sum, so its units cannot be lent");
        }
        (_, 0) => return refuse("amount", "is 0", "count uses of at least one unit"),
        (Aggregation::Count, 2..) => {
            return refuse("amount", "is more than 1 for a meter that counts uses", "pass 1 for each use");
        }
        (Aggregation::Sum | Aggregation::Count, _) => {}
    }
    let cost = declared.credit().map_or(1, |credit| credit.cost);
    if amount.checked_mul(cost).is_none_or(|units| units > MOST) {
        return refuse("amount", "is more than 2^63-1 units", "count in larger units");
    }
    match snapshot.origin() {
        Origin::Loaded | Origin::LastKnown { .. } => {}
        Origin::UnknownTenant => return Err(CoreError::NotFound { what: "tenant" }.into()),
        Origin::FailPolicy => return Err(EntitlementsError::Unavailable { cause: None }),
    }
    if snapshot.access() < declared.min_access() {
        return Ok(Way::Denied(Denial::Standing { access: snapshot.access() }));
    }
    let paying = snapshot.catalog.paying(declared.id());
    let Some(Terms { rule: limit, period }) = snapshot.terms_of(paying, now) else {
        return Ok(Way::Denied(Denial::NotIncluded));
    };
    if limit.per_member.is_some() {
        return direct("is limited per member, which a process that borrows for all of them cannot decide");
    }
    Ok(Way::Lent(Rule {
        meter: meter.clone(),
        counter: snapshot.paying(meter).clone(),
        cost,
        window: limit.window,
        period,
        cap: cap(&limit),
        revision: snapshot.revision(),
        aggregation: declared.aggregation(),
        limit: limit.limit,
        thresholds: thresholds(&limit),
        carry: snapshot.carry(paying, &limit, period),
    }))
}

impl Rule {
    /// A draw of so many units of the counter.
    pub(super) fn draw(&self, units: u64, key: IdempotencyKey, now: DateTime<Utc>) -> Draw {
        Draw {
            kind: DrawKind::Consume,
            meter: self.meter.clone(),
            counter: self.counter.clone(),
            aggregation: self.aggregation,
            amount: units / self.cost.max(1),
            units,
            key,
            item: None,
            member: None,
            at: now,
            window: self.window,
            period: self.period,
            cap: self.cap,
            member_cap: None,
            limit: self.limit,
            thresholds: self.thresholds.clone(),
            carry: self.carry.clone(),
            revision: self.revision,
        }
    }

    /// The usage at which the next threshold is reached after that of `used`; the largest number for none.
    pub(super) fn next_threshold(&self, used: u64) -> u64 {
        let next = self.thresholds.iter().map(|threshold| threshold.units).filter(|units| *units > used).min();
        next.unwrap_or(u64::MAX)
    }

    /// Whether the window is over: nobody acts on warnings of it, and what was left before it was carried past it.
    pub(super) fn is_over(&self, now: DateTime<Utc>) -> bool {
        self.period.end.is_some_and(|end| end <= now)
    }
}
