//! What one subscription brings per month at an instant: list prices times quantities, less what recurs of the discounts.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::{
    money::{Currency, Ratio, Rounding},
    object::{CouponDuration, Discount, DiscountTerms, Interval, Price, Subscription, SubscriptionItem},
};

/// Months over intervals: how often an interval comes in a month. A year has 12 months, 52 weeks and 365 days.
fn per_month(price: &Price) -> Option<Ratio> {
    let (times, over): (i128, i128) = match price.interval.as_ref()? {
        Interval::Day => (365, 12),
        Interval::Week => (52, 12),
        Interval::Month => (1, 1),
        Interval::Year => (1, 12),
        Interval::Other(_) => return None,
    };
    Ratio::new(times, over.checked_mul(i128::from(price.interval_count.max(1)))?)
}

/// The fixed price of an item per month, in its currency. What is metered, tiered or priced once does not recur for certain.
fn list(item: &SubscriptionItem) -> Option<(Currency, Ratio)> {
    let price = &item.price;
    if price.metered {
        return None;
    }
    let currency = price.currency.as_deref()?.parse().ok()?;
    let amount = i128::from(price.unit_amount?).checked_mul(i128::from(item.quantity.unwrap_or(1)))?;
    Some((currency, Ratio::whole(amount).checked_mul(per_month(price)?)?))
}

/// The instants at which a discount begins or ends.
pub(super) fn boundaries(subscription: &Subscription, whole: &[Discount]) -> Vec<DateTime<Utc>> {
    let all = subscription.items.iter().flat_map(|item| &item.discounts).chain(whole);
    let terms = all.filter_map(|discount| discount.terms.as_ref()).filter(|terms| recurs(terms));
    let mut boundaries: Vec<_> = terms.flat_map(|terms| [terms.start, terms.end]).flatten().collect();
    boundaries.sort_unstable();
    boundaries.dedup();
    boundaries
}

/// What a coupon of one invoice takes off does not recur.
fn recurs(terms: &DiscountTerms) -> bool {
    match terms.duration {
        CouponDuration::Forever | CouponDuration::Repeating => true,
        CouponDuration::Once | CouponDuration::Other(_) => false,
    }
}

/// Minor units per month and currency at `at`; before the first boundary for `None`. `whole` is what is taken off the sum.
/// Rounded once per subscription, half to even.
pub(super) fn at(
    subscription: &Subscription,
    whole: &[Discount],
    at: Option<DateTime<Utc>>,
) -> BTreeMap<Currency, i64> {
    let mut sums: BTreeMap<Currency, (Ratio, Ratio)> = BTreeMap::new();
    for item in &subscription.items {
        let Some(((currency, amount), often)) = list(item).zip(per_month(&item.price)) else { continue };
        let Some(amount) = take_off(amount, &item.discounts, (currency, often), at) else { continue };
        let (sum, most_often) = sums.entry(currency).or_insert((Ratio::ZERO, often));
        if let Some(more) = sum.checked_add(amount) {
            *sum = more;
        }
        // An amount off each invoice comes as often as the invoices do.
        if often.checked_sub(*most_often).is_some_and(|difference| difference.or_zero() != Ratio::ZERO) {
            *most_often = often;
        }
    }
    let net = |(currency, (sum, often)): (Currency, (Ratio, Ratio))| {
        let net = take_off(sum, whole, (currency, often), at)?;
        Some((currency, i64::try_from(net.round(Rounding::HalfEven)).ok()?))
    };
    sums.into_iter().filter_map(net).collect()
}

/// One after the other, as Stripe takes them off; never below nothing.
fn take_off(
    amount: Ratio,
    discounts: &[Discount],
    (currency, often): (Currency, Ratio),
    at: Option<DateTime<Utc>>,
) -> Option<Ratio> {
    let mut left = amount;
    for terms in discounts.iter().filter_map(|discount| discount.terms.as_ref()).filter(|terms| recurs(terms)) {
        if !is_running(terms, at) {
            continue;
        }
        if let Some(millionths) = terms.millionths_off {
            left = left.checked_mul(Ratio::new(1_000_000_i128.checked_sub(i128::from(millionths))?, 1_000_000)?)?;
        }
        let same_currency = terms.currency.as_deref().and_then(|code| code.parse().ok()) == Some(currency);
        if let Some(off) = terms.amount_off.filter(|_| same_currency) {
            left = left.checked_sub(Ratio::whole(i128::from(off)).checked_mul(often)?)?.or_zero();
        }
    }
    Some(left)
}

fn is_running(terms: &DiscountTerms, at: Option<DateTime<Utc>>) -> bool {
    match at {
        Some(at) => terms.start.is_none_or(|start| start <= at) && terms.end.is_none_or(|end| at < end),
        None => terms.start.is_none(),
    }
}
