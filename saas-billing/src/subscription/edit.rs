//! Another plan, another number of seats, other add-ons: as edits of what a subscription has, so that an edit that is made
//! changes nothing more. Pure.

use saas_core::{InvalidInput, PlanCatalog};
use serde::{Deserialize, Serialize};

use super::goal::on_sale;
use crate::{
    derive::plan_item,
    error::BillingError,
    object::{ObjectId, Subscription},
    provider::ItemChange,
};

/// What of the items is to be otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Edit {
    /// The price of the plan's item.
    pub(crate) price: Option<ObjectId>,
    /// How many of it.
    pub(crate) quantity: Option<u64>,
    /// More than that are as good: who buys one for himself takes nobody else's away.
    #[serde(default)]
    pub(crate) at_least: bool,
    /// The usage prices of the plan that is changed to, in whose place those of the present plan go; `None`: they stay as they
    /// are. Looked up when the change is asked for, so that a repeat of it is the same whatever is sold by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Vec<UsagePrice>>,
    /// How many of each add-on's price; none of it for 0.
    pub(crate) addons: Vec<(ObjectId, u64)>,
}

/// A usage price of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UsagePrice {
    /// What is sold now.
    pub(crate) price: ObjectId,
    /// What was sold in its place before, charged as often: whoever pays one of these goes on paying it.
    pub(crate) former: Vec<ObjectId>,
}

impl UsagePrice {
    fn is(&self, price: &ObjectId) -> bool {
        self.price == *price || self.former.contains(price)
    }
}

impl Edit {
    /// Refuses what the catalogue does not have, before anything is asked.
    pub(crate) fn check(&self, catalog: &PlanCatalog) -> Result<(), InvalidInput> {
        if let Some(price) = &self.price
            && catalog.plan_for_price(price.as_str()).is_none()
        {
            return Err(InvalidInput::new(
                format!("the price {price}"),
                "is of no plan",
                "add it to a plan's `prices` in the catalogue, or pass one that is there",
            ));
        }
        if self.quantity == Some(0) {
            let remedy = "pass one or more, or cancel the subscription";
            return Err(InvalidInput::new("the quantity", "is nothing", remedy));
        }
        for (n, (price, quantity)) in self.addons.iter().enumerate() {
            let Some(addon) = catalog.addon_for_price(price.as_str()) else {
                let remedy = "add it to an add-on's `prices` in the catalogue, or pass one that is there";
                return Err(InvalidInput::new(format!("the price {price}"), "is of no add-on", remedy));
            };
            if *quantity > u64::from(addon.max_quantity()) {
                let why = format!("is more than the {} that a tenant can have", addon.max_quantity());
                return Err(InvalidInput::new(format!("the quantity of `{}`", addon.key()), why, "pass fewer"));
            }
            if self.addons.iter().take(n).any(|(other, _)| other == price) {
                return Err(InvalidInput::new(format!("the price {price}"), "is named twice", "name it once"));
            }
        }
        Ok(())
    }

    /// Refuses a plan that is not for sale, except to whom it was sold.
    pub(super) fn may_be_sold(&self, subscription: &Subscription, catalog: &PlanCatalog) -> Result<(), BillingError> {
        let Some(wanted) = self.price.as_ref().and_then(|price| catalog.plan_for_price(price.as_str())) else {
            return Ok(());
        };
        let present = plan_item(subscription, catalog).and_then(|item| catalog.plan_for_price(item.price.id.as_str()));
        let version = catalog.version(&wanted.plan, Some(wanted.version));
        if present.as_ref() == Some(&wanted) || version.is_some_and(|version| on_sale(version.state())) {
            return Ok(());
        }
        let remedy = "pass a price of a version that is active";
        Err(InvalidInput::new(format!("the version {wanted}"), "is not for sale", remedy).into())
    }

    /// What has to be changed of the items; empty when all is so.
    pub(super) fn changes(&self, subscription: &Subscription, catalog: &PlanCatalog) -> Vec<ItemChange> {
        let mut changes = Vec::new();
        let usage = self.price.as_ref().and_then(|price| Some((price, self.usage.as_ref()?)));
        let is_usage = usage.is_some_and(|(price, usage)| usage.iter().any(|one| one.is(price)));
        match plan_item(subscription, catalog) {
            // What is charged by usage has its own rule.
            Some(item) if is_usage && item.price.metered => {}
            Some(item) if is_usage => changes.push(ItemChange::Remove { item: item.id.clone() }),
            Some(item) if usage.is_some() && item.price.metered => {
                let add = |price| ItemChange::Add { price, quantity: self.quantity };
                changes.extend(self.price.clone().map(add));
            }
            Some(item) => {
                let price = self.price.clone().filter(|price| *price != item.price.id);
                let quantity = self.quantity.filter(|quantity| match item.quantity {
                    Some(present) if self.at_least => present < *quantity,
                    present => present != Some(*quantity),
                });
                if price.is_some() || quantity.is_some() {
                    // Another price would begin with one of it.
                    let quantity = quantity.or(item.quantity);
                    changes.push(ItemChange::Set { item: item.id.clone(), price, quantity });
                }
            }
            None if is_usage => {}
            None => {
                let add = |price| ItemChange::Add { price, quantity: self.quantity };
                changes.extend(self.price.clone().map(add));
            }
        }
        if let Some((_, usage)) = usage {
            changes.extend(exchanged(subscription, catalog, usage));
        }
        for (price, quantity) in &self.addons {
            let item = subscription.items.iter().find(|item| item.price.id == *price);
            match (item, *quantity) {
                (None, 0) => {}
                (Some(item), 0) => changes.push(ItemChange::Remove { item: item.id.clone() }),
                (Some(item), quantity) if item.price.metered || item.quantity == Some(quantity) => {}
                (Some(item), quantity) => {
                    let (item, quantity) = (item.id.clone(), Some(quantity));
                    changes.push(ItemChange::Set { item, price: None, quantity });
                }
                (None, quantity) => changes.push(ItemChange::Add { price: price.clone(), quantity: Some(quantity) }),
            }
        }
        changes
    }

    /// The items that there are then, by price.
    pub(super) fn target(&self, subscription: &Subscription, catalog: &PlanCatalog) -> Vec<(ObjectId, Option<u64>)> {
        let mut items: Vec<(ObjectId, ObjectId, Option<u64>)> =
            subscription.items.iter().map(|item| (item.id.clone(), item.price.id.clone(), item.quantity)).collect();
        let mut added = Vec::new();
        for change in self.changes(subscription, catalog) {
            match change {
                ItemChange::Add { price, quantity } => added.push((price, quantity)),
                ItemChange::Remove { item } => items.retain(|(id, ..)| *id != item),
                ItemChange::Set { item, price, quantity } => {
                    for (id, of, count) in &mut items {
                        if *id == item {
                            *of = price.clone().unwrap_or_else(|| of.clone());
                            *count = quantity.or(*count);
                        }
                    }
                }
            }
        }
        items.into_iter().map(|(_, price, quantity)| (price, quantity)).chain(added).collect()
    }
}

/// The changes that leave these of the usage prices of plans, and no others.
fn exchanged(subscription: &Subscription, catalog: &PlanCatalog, wanted: &[UsagePrice]) -> Vec<ItemChange> {
    let is_wanted = |price: &ObjectId| wanted.iter().any(|one| one.is(price));
    let of_plan = |price: &ObjectId| catalog.plan_for_price(price.as_str()).is_some();
    let metered = subscription.items.iter().filter(|item| item.price.metered);
    let (stay, others): (Vec<_>, Vec<_>) = metered.partition(|item| is_wanted(&item.price.id));
    let mut go = others.into_iter().filter(|item| of_plan(&item.price.id)).map(|item| item.id.clone());
    let missing = wanted.iter().filter(|one| !stay.iter().any(|item| one.is(&item.price.id)));
    let mut changes: Vec<ItemChange> = missing
        .map(|one| one.price.clone())
        .map(|price| match go.next() {
            Some(item) => ItemChange::Set { item, price: Some(price), quantity: None },
            None => ItemChange::Add { price, quantity: None },
        })
        .collect();
    changes.extend(go.map(|item| ItemChange::Remove { item }));
    changes
}
