//! One use that is to be recorded in bulk, checked against the catalogue before anything is counted.

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    Actor, IdempotencyKey, InvalidInput, MeterKey, PlanCatalog, TenantId,
    plan::{MeterId, Window},
};

use crate::{
    DrawKind, EntitlementsError, Period, Snapshot, Use,
    meter::check::{
        CLOCKS_DIFFER, MOST, Verdict, additive, check_amount, check_instant, check_item, check_name, decide,
    },
};

/// One use that is to be recorded, with its window decided, of a meter whose uses add up. Made by
/// [`new`](Self::new) or [`in_window`](Self::in_window), which check it.
#[derive(Debug, Clone)]
pub struct UsageRecord {
    pub(super) tenant: TenantId,
    pub(super) actor: Actor,
    pub(super) meter: MeterKey,
    /// What counts it: the meter itself, or the one whose units pay for it.
    pub(super) counter: MeterKey,
    pub(super) amount: u64,
    /// The amount in units of the counter.
    pub(super) units: u64,
    pub(super) window: Window,
    pub(super) period: Period,
    pub(super) at: DateTime<Utc>,
    pub(super) key: IdempotencyKey,
    pub(super) member: Option<Box<str>>,
}

impl UsageRecord {
    /// A use by `actor`, in the window that the tenant's plan counts it in at its instant, as
    /// [`Meter::record_use`](crate::Meter::record_use) would count it.
    ///
    /// # Errors
    /// - [`UnknownMeter`](EntitlementsError::UnknownMeter): the catalogue lacks the meter.
    /// - [`Invalid`](saas_core::ErrorKind::Invalid): its uses do not add up; the amount is 0, too large, or not 1 for a meter
    ///   that counts uses; an item is named; the instant is in the future or before 1970; or the tenant's plan does not have
    ///   the meter, so that only [`in_window`](Self::in_window) can say where it counts.
    /// - [`TooLate`](EntitlementsError::TooLate): its window takes no more uses.
    /// - [`NotFound`](saas_core::ErrorKind::NotFound) and [`Unavailable`](saas_core::ErrorKind::Unavailable): there is no such
    ///   tenant, or nothing is known about it at present.
    pub fn new(
        snapshot: &Snapshot,
        of: &Use<'_>,
        actor: &Actor,
        now: DateTime<Utc>,
    ) -> Result<Self, EntitlementsError> {
        if let Some(declared) = snapshot.catalog.meter(&of.meter) {
            additive(declared)?;
        }
        let Verdict::Draw(ruled) = decide(snapshot, DrawKind::Record, of, actor, now)? else {
            let remedy = "say with `UsageRecord::in_window` in which window it counts";
            return Err(InvalidInput::new("meter", "is not in the tenant's plan", remedy).into());
        };
        let draw = ruled.draw;
        Ok(Self {
            tenant: snapshot.tenant(),
            actor: actor.clone(),
            meter: draw.meter,
            counter: draw.counter,
            amount: draw.amount,
            units: draw.units,
            window: draw.window,
            period: draw.period,
            at: draw.at,
            key: draw.key,
            member: draw.member,
        })
    }

    /// A use by `actor`, in a window that the caller decides: of a meter that no plan limits, or without asking the gate.
    ///
    /// # Errors
    /// As [`new`](Self::new) about meter, amount, item and instant; and [`Invalid`](saas_core::ErrorKind::Invalid) where the
    /// window is none of its kind, does not hold the instant, or is of another kind than every plan that limits the meter
    /// counts in.
    pub fn in_window(
        catalog: &PlanCatalog,
        tenant: TenantId,
        of: &Use<'_>,
        actor: &Actor,
        (window, period): (Window, Period),
        now: DateTime<Utc>,
    ) -> Result<Self, EntitlementsError> {
        let unknown = || EntitlementsError::UnknownMeter { key: of.meter.clone() };
        let declared = catalog.meter(&of.meter).ok_or_else(unknown)?;
        additive(declared)?;
        check_amount(declared, of.amount)?;
        check_item(declared, of.item)?;
        let member = match of.member {
            Some(member) => Some(check_name("member", member)?),
            None => actor.person().map(|person| person.to_string().into()),
        };
        let at = of.at.unwrap_or(now);
        check_instant(at, now + CLOCKS_DIFFER)?;
        let cost = declared.credit().map_or(1, |credit| credit.cost);
        let Some(units) = of.amount.checked_mul(cost).filter(|units| *units <= MOST) else {
            let why = "costs more than 2^63-1 units of the meter that pays for it";
            return Err(InvalidInput::new("amount", why, "record less at once").into());
        };
        let paying = catalog.paying(declared.id());
        check_window(catalog, paying, window, period, at)?;
        let counter = catalog.meter_by_id(paying).unwrap_or(declared).key().clone();
        Ok(Self {
            tenant,
            actor: actor.clone(),
            meter: of.meter.clone(),
            counter,
            amount: of.amount,
            units,
            window,
            period,
            at,
            key: of.key.clone(),
            member,
        })
    }

    /// Whose it is.
    #[must_use]
    pub const fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// By whom.
    #[must_use]
    pub const fn actor(&self) -> &Actor {
        &self.actor
    }

    /// What was used.
    #[must_use]
    pub const fn meter(&self) -> &MeterKey {
        &self.meter
    }

    /// How much it adds to the counter.
    #[must_use]
    pub const fn units(&self) -> u64 {
        self.units
    }

    /// The window it counts in.
    #[must_use]
    pub const fn period(&self) -> Period {
        self.period
    }

    /// When it happened.
    #[must_use]
    pub const fn at(&self) -> DateTime<Utc> {
        self.at
    }

    /// Names this one use.
    #[must_use]
    pub const fn key(&self) -> &IdempotencyKey {
        &self.key
    }
}

/// A window of its kind that holds the instant, and that a plan would count in.
fn check_window(
    catalog: &PlanCatalog,
    counter: MeterId,
    window: Window,
    period: Period,
    at: DateTime<Utc>,
) -> Result<(), InvalidInput> {
    let refuse = |why| Err(InvalidInput::new("window", why, "take the one of `Snapshot::terms` or `period_at`"));
    let mut limits =
        catalog.plans().iter().flat_map(|plan| plan.versions()).filter_map(|version| version.limit(counter));
    let first = limits.next();
    if first.is_some_and(|first| first.window != window && limits.all(|limit| limit.window != window)) {
        return refuse("is of another kind than that of every plan that limits the meter");
    }
    // A zone's clocks may have an hour more; a change of plan may have begun it later.
    let longest = match window {
        Window::Lifetime => {
            let is_whole = period == Period { start: DateTime::UNIX_EPOCH, end: None };
            return if is_whole { Ok(()) } else { refuse("is not the whole of time, from 1970 on without end") };
        }
        Window::Hour => TimeDelta::hours(1),
        Window::Day => TimeDelta::hours(25),
        Window::Week => TimeDelta::hours(7 * 24 + 1),
        Window::Month => TimeDelta::hours(31 * 24 + 1),
        Window::Year => TimeDelta::hours(366 * 24 + 1),
    };
    match period.end {
        None => refuse("has no end"),
        Some(end) if end - period.start > longest => refuse("is longer than its kind"),
        Some(end) if at < period.start || end <= at => refuse("does not hold the instant of the use"),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CATALOG: &str = r#"
        default_plan = "free"
        [meters]
        calls = { aggregation = "sum" }
        clicks = { aggregation = "count" }
        credits = { aggregation = "sum" }
        images = { aggregation = "sum", credit = { of = "credits", cost = 4 } }
        peak = { aggregation = "max" }
        disk = { aggregation = "latest" }
        files = { aggregation = "unique" }
        [plans.free]
        rank = 0
        [[plans.free.versions]]
        version = 1
        limits.credits = { max = 100, window = "month", overage = "block" }
    "#;

    fn at(rfc3339: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(rfc3339).unwrap().to_utc()
    }

    fn period(start: &str, end: &str) -> Period {
        Period { start: at(start), end: Some(at(end)) }
    }

    #[test]
    fn what_the_catalogue_would_not_count_is_refused_with_a_reason() {
        let catalog = PlanCatalog::from_toml(CATALOG).unwrap();
        let now = at("2026-03-10T09:00:00Z");
        let (tenant, actor) = (TenantId::mint_at(now), Actor::system("test"));
        let key: IdempotencyKey = "one".parse().unwrap();
        let of = |meter: &'static str, amount| Use::new(MeterKey::from_static(meter), amount, &key);
        let day = (Window::Day, period("2026-03-10T00:00:00Z", "2026-03-11T00:00:00Z"));
        let month = (Window::Month, period("2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z"));
        let record = |of: &Use<'_>, window| UsageRecord::in_window(&catalog, tenant, of, &actor, window, now);

        let image = record(&of("images", 3), month).unwrap();
        assert_eq!((image.counter.as_str(), image.units), ("credits", 12), "the meter that pays counts what it costs");
        assert!(record(&of("calls", 1), day).is_ok() && record(&of("calls", 1), month).is_ok(), "no plan limits it");

        let refused = |of: &Use<'_>, window, code: &str, why: &str| {
            let error = record(of, window).unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().contains(why), "{error}");
        };
        refused(&of("nothing", 1), day, "unknown_meter", "nothing");
        for meter in ["peak", "disk", "files"] {
            refused(&of(meter, 1), day, "invalid_input", "does not add up");
        }
        refused(&of("calls", 0), day, "invalid_input", "is 0");
        refused(&of("calls", u64::MAX), day, "invalid_input", "2^63-1");
        refused(&of("images", u64::MAX / 4), month, "invalid_input", "2^63-1");
        refused(&of("clicks", 2), day, "invalid_input", "more than 1");
        refused(&of("calls", 1).with_item("a"), day, "invalid_input", "item");
        refused(&of("calls", 1).with_instant(now + TimeDelta::minutes(6)), day, "invalid_input", "future");
        refused(&of("images", 1), day, "invalid_input", "another kind");
        refused(&of("calls", 1), (Window::Day, month.1), "invalid_input", "longer");
        refused(&of("calls", 1), (Window::Lifetime, month.1), "invalid_input", "without end");
        let endless = Period { start: DateTime::UNIX_EPOCH, end: None };
        refused(&of("calls", 1), (Window::Day, endless), "invalid_input", "no end");
        refused(&of("calls", 1).with_instant(now - TimeDelta::days(1)), day, "invalid_input", "hold the instant");
    }
}
