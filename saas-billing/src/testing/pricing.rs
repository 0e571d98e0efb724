//! What things cost: tiers, usage, and the rest of a period, to the minor unit.

use chrono::{DateTime, Utc};

use super::{
    engine::Engine,
    world::{Pricing, SimItem, SimLine, SimMeter, SimReading, SimSubscription, SimTier},
};

impl Pricing {
    /// What so many units cost.
    pub(super) fn amount(&self, quantity: u64) -> i64 {
        match self {
            Self::Unit(unit) => units(quantity, *unit),
            Self::Volume(tiers) => {
                let tier = tiers.iter().find(|tier| tier.0.is_none_or(|last| quantity <= last));
                tier.map_or(0, |(_, unit, flat)| units(quantity, *unit).saturating_add(*flat))
            }
            Self::Graduated(tiers) => graduated(tiers, quantity),
        }
    }
}

fn graduated(tiers: &[SimTier], quantity: u64) -> i64 {
    let (mut sum, mut below) = (0_i64, 0_u64);
    for (last, unit, flat) in tiers {
        if quantity <= below && below > 0 {
            break;
        }
        let upto = last.map_or(quantity, |last| last.min(quantity));
        sum = sum.saturating_add(units(upto.saturating_sub(below), *unit)).saturating_add(*flat);
        below = upto;
        if last.is_none_or(|last| quantity <= last) {
            break;
        }
    }
    sum
}

fn units(quantity: u64, unit: i64) -> i64 {
    unit.saturating_mul(i64::try_from(quantity).unwrap_or(i64::MAX))
}

/// The part of an amount that belongs to the rest of a period from `at`, by the second, rounded half away from zero.
pub(super) fn rest(amount: i64, period: (DateTime<Utc>, DateTime<Utc>), at: DateTime<Utc>) -> i64 {
    let whole = i128::from((period.1 - period.0).num_seconds()).max(1);
    let left = i128::from((period.1 - at.clamp(period.0, period.1)).num_seconds());
    let product = i128::from(amount) * left;
    let half = if product < 0 { -whole } else { whole };
    i64::try_from((2 * product + half) / (2 * whole)).unwrap_or(0)
}

impl Engine<'_> {
    /// What a customer used of a meter in a period.
    pub(super) fn used(&self, meter: &str, customer: &str, period: (DateTime<Utc>, DateTime<Utc>)) -> u64 {
        let Some(meter) = self.world.meters.get(meter) else { return 0 };
        let mine = self.counting(meter, customer, period);
        match meter.formula.as_str() {
            "count" => mine.count() as u64,
            "last" => mine.max_by_key(|reading| reading.at).map_or(0, |reading| reading.value),
            _ => mine.map(|reading| reading.value).fold(0, u64::saturating_add),
        }
    }

    /// Whether a reading of this customer counts in the period.
    pub(super) fn has_used(&self, meter: &str, customer: &str, period: (DateTime<Utc>, DateTime<Utc>)) -> bool {
        let meter = self.world.meters.get(meter);
        meter.is_some_and(|meter| self.counting(meter, customer, period).next().is_some())
    }

    fn counting<'a>(
        &'a self,
        meter: &'a SimMeter,
        customer: &'a str,
        (from, to): (DateTime<Utc>, DateTime<Utc>),
    ) -> impl Iterator<Item = &'a SimReading> {
        self.world.readings.iter().filter(move |reading| {
            !reading.void
                && reading.customer == customer
                && reading.event_name == meter.event_name
                && (from..to).contains(&reading.at)
        })
    }

    /// What a whole period of an item costs, less what coupons take off by the hundred; `None` for what is charged by usage.
    pub(super) fn whole(&self, sub: &SimSubscription, item: &SimItem) -> Option<i64> {
        let price = self.world.prices.get(&item.price).filter(|price| price.meter.is_none())?;
        Some(self.less_percentages(&sub.id, price.pricing.amount(item.quantity.unwrap_or(1))))
    }

    /// The credit for what is no longer used and the charge for what is, from `at` to the end of the period. In the classic
    /// mode a credit is counted from what the item would cost now, in the flexible one from what was charged for it; and only
    /// there an item that goes is charged for what was used of its meter
    /// (<https://docs.stripe.com/billing/subscriptions/billing-mode/compare>).
    pub(super) fn prorations(&self, sub: &SimSubscription, after: &[SimItem], at: DateTime<Utc>) -> Vec<SimLine> {
        let mut lines = Vec::new();
        let period = (at.clamp(sub.period.0, sub.period.1), sub.period.1);
        let mut line = |item: &SimItem, amount: i64| {
            let (price, quantity) = (item.price.clone(), item.quantity);
            lines.push(SimLine { price, quantity, amount, proration: true, period });
        };
        let gone = || sub.items.iter().filter(|old| !after.contains(old));
        for old in gone() {
            let charged =
                if sub.flexible { old.charged } else { self.whole(sub, old).map(|whole| (whole, sub.period)) };
            if let Some((amount, span)) = charged {
                line(old, -rest(amount, span, at));
            }
        }
        for new in after.iter().filter(|new| !sub.items.contains(new)) {
            if let Some(whole) = self.whole(sub, new) {
                line(new, rest(whole, sub.period, at));
            }
        }
        if sub.flexible {
            lines.extend(gone().filter_map(|old| self.used_so_far(sub, old)));
        }
        lines
    }

    /// What an item is charged for what was used of its meter in the present period up to now, if anything was.
    pub(super) fn used_so_far(&self, sub: &SimSubscription, item: &SimItem) -> Option<SimLine> {
        let price = self.world.prices.get(&item.price)?;
        let period = (sub.period.0.max(item.since), self.now.min(sub.period.1));
        let used = self.used(price.meter.as_ref()?, &sub.customer, period);
        let (amount, quantity) = (price.pricing.amount(used), Some(used));
        (used > 0).then(|| SimLine { price: price.id.clone(), quantity, amount, proration: false, period })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn tiers_are_entered_one_after_the_other_or_all_at_once() {
        let tiers = vec![(Some(10), 100, 0), (Some(20), 80, 500), (None, 50, 0)];
        let amounts = |pricing: &Pricing| [0, 1, 10, 11, 20, 21].map(|quantity| pricing.amount(quantity));
        assert_eq!(amounts(&Pricing::Graduated(tiers.clone())), [0, 100, 1000, 1580, 2300, 2350]);
        assert_eq!(amounts(&Pricing::Volume(tiers)), [0, 100, 1000, 1380, 2100, 1050]);
    }

    #[test]
    fn the_rest_of_a_period_is_rounded_half_away_from_zero() {
        let period = (at(0), at(2_592_000));
        assert_eq!(rest(2000, period, at(0)), 2000);
        assert_eq!(rest(2000, period, at(1_296_000)), 1000);
        assert_eq!(rest(1, period, at(1_296_000)), 1, "half a cent");
        assert_eq!(rest(-1, period, at(1_296_000)), -1);
        assert_eq!(rest(1, period, at(1_296_001)), 0);
        assert_eq!((rest(2000, period, at(-5)), rest(2000, period, at(2_592_001))), (2000, 0));
    }
}
