//! Monthly recurring revenue of a subscription: list price, before discounts and taxes.

use serde::{Deserialize, Serialize};

use crate::object::{Interval, Price, Subscription, SubscriptionStatus};

/// An amount per month in one currency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revenue {
    /// Minor units per month.
    pub minor: i64,
    /// Lower-case ISO 4217.
    pub currency: String,
}

/// The monthly revenue of the items with a fixed price. A trial, a pause or an unpaid subscription brings none; past due
/// still counts, as it is the policy that decides when a debt is a loss. `None` when nothing has a fixed price, or when the
/// items differ in currency, which Stripe does not allow.
pub(super) fn monthly(subscription: &Subscription) -> Option<Revenue> {
    let earning = match subscription.status {
        SubscriptionStatus::Active | SubscriptionStatus::PastDue => subscription.pause.is_none(),
        SubscriptionStatus::Incomplete
        | SubscriptionStatus::IncompleteExpired
        | SubscriptionStatus::Trialing
        | SubscriptionStatus::Unpaid
        | SubscriptionStatus::Canceled
        | SubscriptionStatus::Paused
        | SubscriptionStatus::Other(_) => false,
    };
    let mut sum: Option<Revenue> = None;
    for item in subscription.items.iter().filter(|_| earning) {
        let (Some(currency), Some(minor)) = (&item.price.currency, per_month(&item.price, item.quantity.unwrap_or(1)))
        else {
            continue;
        };
        match &mut sum {
            None => sum = Some(Revenue { minor, currency: currency.clone() }),
            Some(sum) if sum.currency == *currency => sum.minor = sum.minor.checked_add(minor)?,
            Some(_) => return None,
        }
    }
    sum
}

/// Minor units per month, half a unit rounded up. A year has 12 months, 52 weeks and 365 days.
fn per_month(price: &Price, quantity: u64) -> Option<i64> {
    let (times, over): (i128, i128) = match price.interval.as_ref()? {
        Interval::Day => (365, 12),
        Interval::Week => (52, 12),
        Interval::Month => (1, 1),
        Interval::Year => (1, 12),
        Interval::Other(_) => return None,
    };
    let over = over.checked_mul(i128::from(price.interval_count.max(1)))?;
    let yearly = i128::from(price.unit_amount?).checked_mul(i128::from(quantity))?.checked_mul(times)?;
    i64::try_from(yearly.checked_mul(2)?.checked_add(over)?.div_euclid(over.checked_mul(2)?)).ok()
}
