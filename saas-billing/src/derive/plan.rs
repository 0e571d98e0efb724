//! From prices to a plan of the catalogue.

use std::collections::{BTreeMap, BTreeSet};

use saas_core::{AddOnKey, PlanCatalog, PlanVersionRef};

use super::Alert;
use crate::{
    merge::Merged,
    object::{Subscription, SubscriptionItem},
};

/// What a subscription buys.
pub(super) struct Choice<'a> {
    pub(super) plan: Option<PlanVersionRef>,
    /// Its place in the upgrade order; 0 without a plan.
    pub(super) rank: u32,
    pub(super) item: Option<&'a SubscriptionItem>,
}

/// The plan of the first item, by id, that is sold at a plan's price, one with a quantity before one that is charged by usage;
/// other items are add-ons. When none is, the last
/// price that was a plan's keeps the plan: money is being paid, so it must not turn into the free plan silently.
pub(super) fn choose<'a>(
    merged: &'a Merged<Subscription>,
    catalog: &PlanCatalog,
    alerts: &mut BTreeSet<Alert>,
) -> Choice<'a> {
    let subscription = merged.value();
    let found =
        subscription.items.iter().filter_map(|item| Some((catalog.plan_for_price(item.price.id.as_str())?, item)));
    let mut found: Vec<_> = found.collect();
    found.sort_by_key(|(_, item)| item.quantity.is_none());
    let mut found = found.into_iter();
    if let Some((plan, item)) = found.next() {
        if found.any(|(other, _)| other.plan != plan.plan) {
            alerts.insert(Alert::SeveralPlans { subscription: subscription.id.clone() });
        }
        return Choice { rank: rank(catalog, &plan), plan: Some(plan), item: Some(item) };
    }
    let unknown = subscription
        .items
        .iter()
        .filter(|item| catalog.addon_for_price(item.price.id.as_str()).is_none())
        .map(|item| Alert::UnknownPrice { subscription: subscription.id.clone(), price: item.price.id.clone() });
    alerts.extend(unknown);
    let plan = merged.history().prices().into_iter().find_map(|price| catalog.plan_for_price(price.as_str()));
    Choice { rank: plan.as_ref().map_or(0, |plan| rank(catalog, plan)), plan, item: plan_item(subscription, catalog) }
}

/// The item whose price is a plan's, one with a quantity if there is one: that is where seats are; where none is known, the first that is no add-on's.
pub(crate) fn plan_item<'a>(subscription: &'a Subscription, catalog: &PlanCatalog) -> Option<&'a SubscriptionItem> {
    let price = |item: &SubscriptionItem| catalog.plan_for_price(item.price.id.as_str()).is_some();
    let addon = |item: &SubscriptionItem| catalog.addon_for_price(item.price.id.as_str()).is_some();
    let items = &subscription.items;
    let licensed = items.iter().find(|item| item.quantity.is_some() && price(item));
    licensed.or_else(|| items.iter().find(|item| price(item))).or_else(|| items.iter().find(|item| !addon(item)))
}

/// The add-ons among its items: no more of one than the catalogue allows, which the gate would not take.
pub(super) fn addons(subscription: &Subscription, catalog: &PlanCatalog) -> BTreeMap<AddOnKey, u32> {
    let mut addons: BTreeMap<AddOnKey, u32> = BTreeMap::new();
    for item in &subscription.items {
        let Some(addon) = catalog.addon_for_price(item.price.id.as_str()) else { continue };
        let quantity = u32::try_from(item.quantity.unwrap_or(1)).unwrap_or(u32::MAX);
        if quantity > 0 {
            let had = addons.entry(addon.key().clone()).or_default();
            *had = had.saturating_add(quantity).min(addon.max_quantity());
        }
    }
    addons
}

pub(super) fn rank(catalog: &PlanCatalog, plan: &PlanVersionRef) -> u32 {
    catalog.plan(&plan.plan).map_or(0, |plan| plan.rank())
}
