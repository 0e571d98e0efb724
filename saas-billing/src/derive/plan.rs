//! From prices to a plan of the catalogue.

use std::{collections::BTreeSet, fmt};

use saas_core::PlanKey;
use serde::{Deserialize, Serialize};

use super::Alert;
use crate::{
    merge::Merged,
    object::{Subscription, SubscriptionItem},
};

/// One version of a plan of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PlanVersion {
    /// The plan.
    pub plan: PlanKey,
    /// Its version.
    pub version: u32,
}

/// Knows which plan a Stripe price belongs to. The catalogue is one.
pub trait PriceBook: fmt::Debug + Send + Sync + 'static {
    /// The plan version that is sold at `price`, or `None` when no plan is (an add-on, or a price made by hand).
    fn plan_of_price(&self, price: &str) -> Option<PlanVersion>;
}

/// What a subscription buys.
pub(super) struct Choice<'a> {
    pub(super) plan: Option<PlanVersion>,
    pub(super) item: Option<&'a SubscriptionItem>,
}

/// The plan of the first item, by id, that is sold at a plan's price; other items are add-ons. When none is, the last
/// price that was a plan's keeps the plan: money is being paid, so it must not turn into the free plan silently.
pub(super) fn choose<'a>(
    merged: &'a Merged<Subscription>,
    book: &dyn PriceBook,
    alerts: &mut BTreeSet<Alert>,
) -> Choice<'a> {
    let subscription = merged.value();
    let mut found =
        subscription.items.iter().filter_map(|item| Some((book.plan_of_price(item.price.id.as_str())?, item)));
    if let Some((plan, item)) = found.next() {
        if found.any(|(other, _)| other.plan != plan.plan) {
            alerts.insert(Alert::SeveralPlans { subscription: subscription.id.clone() });
        }
        return Choice { plan: Some(plan), item: Some(item) };
    }
    let unknown = subscription
        .items
        .iter()
        .map(|item| Alert::UnknownPrice { subscription: subscription.id.clone(), price: item.price.id.clone() });
    alerts.extend(unknown);
    let plan = merged.history().prices().into_iter().find_map(|price| book.plan_of_price(price.as_str()));
    Choice { plan, item: subscription.items.first() }
}
