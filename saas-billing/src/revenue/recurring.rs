//! What recurs of a tenant's subscriptions, as spans of time: no clock inside.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::net;
use crate::{
    money::Currency,
    object::{Discount, ObjectId, Subscription, SubscriptionStatus},
};

/// What recurs, each part for a span of time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Recurring(Vec<Span>);

/// An amount per month for a span of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Of which subscription.
    pub subscription: ObjectId,
    /// Minor units per month, discounts taken off, before tax.
    pub minor: i64,
    /// Of which currency.
    pub currency: Currency,
    /// From when; `None` from the beginning.
    pub from: Option<DateTime<Utc>>,
    /// Until when; `None` without end.
    pub until: Option<DateTime<Utc>>,
}

impl Recurring {
    /// Adds what a subscription brings. A trial, a pause and what was never paid bring nothing; a debt counts as long as the
    /// policy gives access, which is asked when the sum is ([`at`](Self::at) leaves it to
    /// [`Derived::revenue_at`](crate::derive::Derived::revenue_at)).
    ///
    /// `of_customer` is the discount of the customer, which holds where the subscription has none of its own.
    pub(crate) fn add(&mut self, subscription: &Subscription, of_customer: Option<&Discount>) {
        let earning = match subscription.status {
            SubscriptionStatus::Active | SubscriptionStatus::PastDue | SubscriptionStatus::Unpaid => {
                subscription.pause.is_none()
            }
            SubscriptionStatus::Incomplete
            | SubscriptionStatus::IncompleteExpired
            | SubscriptionStatus::Trialing
            | SubscriptionStatus::Canceled
            | SubscriptionStatus::Paused
            | SubscriptionStatus::Other(_) => false,
        };
        if !earning {
            return;
        }
        let whole = if subscription.discounts.is_empty() {
            of_customer.map(std::slice::from_ref).unwrap_or_default()
        } else {
            &subscription.discounts
        };
        let boundaries = net::boundaries(subscription, whole);
        let ends_at = ends_at(subscription);
        for index in 0..=boundaries.len() {
            let from = index.checked_sub(1).and_then(|before| boundaries.get(before)).copied();
            let next = boundaries.get(index).copied();
            let until = next.into_iter().chain(ends_at).min();
            if from.zip(until).is_some_and(|(from, until)| until <= from) {
                continue;
            }
            for (currency, minor) in net::at(subscription, whole, from) {
                self.0.push(Span { subscription: subscription.id.clone(), minor, currency, from, until });
            }
        }
    }

    /// Minor units per month and currency at an instant.
    #[must_use]
    pub fn at(&self, at: DateTime<Utc>) -> BTreeMap<Currency, i64> {
        let mut sums = BTreeMap::new();
        for span in &self.0 {
            let sum: &mut i64 = sums.entry(span.currency).or_default();
            if span.from.is_none_or(|from| from <= at) && span.until.is_none_or(|until| at < until) {
                *sum = sum.saturating_add(span.minor);
            }
        }
        sums
    }

    /// The next instant after `at` at which time alone changes it.
    #[must_use]
    pub fn next_boundary(&self, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.0.iter().flat_map(|span| [span.from, span.until]).flatten().filter(|boundary| *boundary > at).min()
    }

    /// The spans.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.0
    }
}

/// When it ends by itself, as the gate sees it.
fn ends_at(subscription: &Subscription) -> Option<DateTime<Utc>> {
    let period_end = || subscription.items.iter().filter_map(|item| item.period).map(|period| period.end).max();
    subscription.cancel_at.or_else(|| period_end().filter(|_| subscription.cancel_at_period_end))
}
