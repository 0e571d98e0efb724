//! Another plan, another number of seats, add-ons: now, or from the next period on.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, btree_map::Entry},
};

use chrono::{DateTime, Utc};
use saas_core::{IdempotencyKey, InvalidInput, PlanCatalog, SystemTx, TenantContext, plan::PlanVersion};

use super::{
    Change, Goal,
    drive::About,
    edit::{Edit, UsagePrice},
    preview::Preview,
};
use crate::{
    billing::{ACTOR, Billing},
    derive::plan_item,
    error::BillingError,
    object::{ObjectId, Subscription},
    postgres::{
        price::{self, Sold},
        request::Requested,
    },
    provider::{OnFailedPayment, PaymentProvider, Proration},
};

/// When a change is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Now. What the rest of the period costs is on an invoice that is due at once.
    Now,
    /// From the next period on. The present one was paid for, and stays as it is.
    AtPeriodEnd,
}

impl When {
    /// As the record of a request says.
    fn asked(what: &str) -> Option<Self> {
        [Self::Now, Self::AtPeriodEnd].into_iter().find(|when| when.what() == what)
    }

    const fn what(self) -> &'static str {
        match self {
            Self::Now => "change_items",
            Self::AtPeriodEnd => "schedule_items",
        }
    }
}

/// What shall be otherwise. What it does not name stays.
#[must_use]
#[derive(Debug, Clone)]
pub struct PlanChange {
    pub(super) edit: Edit,
    pub(super) when: Option<When>,
    pub(super) proration: Proration,
    pub(super) proration_date: Option<DateTime<Utc>>,
    pub(super) on_failed_payment: OnFailedPayment,
    pub(super) basis: Option<String>,
}

impl PlanChange {
    fn of(edit: Edit) -> Self {
        Self {
            edit,
            when: None,
            proration: Proration::InvoiceNow,
            proration_date: None,
            on_failed_payment: OnFailedPayment::Wait,
            basis: None,
        }
    }

    /// To the plan that this price buys. Its quantity stays.
    pub fn to_price(price: ObjectId) -> Self {
        Self::of(Edit { price: Some(price), ..Edit::default() })
    }

    /// To so many units of the plan: seats.
    pub fn to_quantity(quantity: u64) -> Self {
        Self::of(Edit { quantity: Some(quantity), ..Edit::default() })
    }

    /// To so many units of the plan, unless there are more.
    pub(crate) fn to_at_least(quantity: u64) -> Self {
        Self::of(Edit { quantity: Some(quantity), at_least: true, ..Edit::default() })
    }

    /// To so many of an add-on, by its price; to none of it with 0.
    pub fn to_addon(price: ObjectId, quantity: u64) -> Self {
        Self::of(Edit { addons: vec![(price, quantity)], ..Edit::default() })
    }

    /// And so many units of the plan.
    pub const fn with_quantity(mut self, quantity: u64) -> Self {
        self.edit.quantity = Some(quantity);
        self
    }

    /// And so many of an add-on, by its price; none of it with 0.
    pub fn with_addon(mut self, price: ObjectId, quantity: u64) -> Self {
        self.edit.addons.push((price, quantity));
        self
    }

    /// When it is to hold. Otherwise a plan of lower rank comes with the next period, and all else at once.
    pub const fn with_when(mut self, when: When) -> Self {
        self.when = Some(when);
        self
    }

    /// What becomes of the rest of the period, if it is to hold now. Otherwise it is on an invoice that is due at once.
    pub const fn with_proration(mut self, proration: Proration) -> Self {
        self.proration = proration;
        self
    }

    /// What happens if the payment that it causes fails. Otherwise it waits for the payment, and is dropped without it.
    pub const fn with_on_failed_payment(mut self, on_failed_payment: OnFailedPayment) -> Self {
        self.on_failed_payment = on_failed_payment;
        self
    }

    /// As it was shown to the tenant: to the same second, so that the invoice has the very lines, and only if the
    /// subscription is still what the preview was about.
    pub fn as_previewed(mut self, preview: &Preview) -> Self {
        self.when = Some(preview.when);
        self.proration_date = preview.proration_date;
        self.basis = Some(preview.basis.clone());
        self.edit.usage.clone_from(&preview.usage_prices);
        self
    }

    /// When it holds, for a subscription.
    pub(super) fn when_for(&self, subscription: &Subscription, catalog: &PlanCatalog) -> When {
        self.when.unwrap_or_else(|| direction(&self.edit, subscription, catalog))
    }

    /// Whether a request on record is this change.
    pub(crate) fn is_of(&self, when: When, request: &Requested) -> bool {
        request.fingerprint == self.goal(when).fingerprint().as_str()
    }

    pub(super) fn goal(&self, when: When) -> Goal {
        match when {
            When::Now => Goal::ItemsNow {
                edit: self.edit.clone(),
                proration: self.proration,
                proration_date: self.proration_date,
                on_failed_payment: self.on_failed_payment,
                basis: self.basis.clone(),
            },
            When::AtPeriodEnd => Goal::ItemsNext { edit: self.edit.clone(), basis: self.basis.clone() },
        }
    }
}

/// A plan of lower rank comes later, so that nobody loses what is paid for.
fn direction(edit: &Edit, subscription: &Subscription, catalog: &PlanCatalog) -> When {
    let rank = |price: &ObjectId| {
        let bought = catalog.plan_for_price(price.as_str())?;
        Some(catalog.plan(&bought.plan)?.rank())
    };
    let present = plan_item(subscription, catalog).and_then(|item| rank(&item.price.id));
    match (edit.price.as_ref().and_then(rank), present) {
        (Some(wanted), Some(present)) if wanted.cmp(&present) == Ordering::Less => When::AtPeriodEnd,
        (Some(_) | None, Some(_) | None) => When::Now,
    }
}

/// Of each meter of a plan the price that is charged as often as the plan, in its currency.
fn usage_beside(plan: &Sold, sold: &[Sold]) -> Result<Vec<UsagePrice>, InvalidInput> {
    let mut usage: BTreeMap<(&Option<String>, &str), UsagePrice> = BTreeMap::new();
    let fits = |one: &&Sold| one.is_usage() && one.currency == plan.currency && one.every == plan.every;
    for one in sold.iter().filter(fits) {
        match usage.entry((&one.meter, &one.name)) {
            Entry::Vacant(new) => drop(new.insert(UsagePrice { price: one.id.clone(), former: Vec::new() })),
            Entry::Occupied(known) => known.into_mut().former.push(one.id.clone()),
        }
    }
    let lacks = |one: &&Sold| one.is_usage() && !usage.keys().any(|(meter, _)| **meter == one.meter);
    if let Some(other) = sold.iter().find(lacks) {
        let why =
            format!("is of a plan whose usage price {:?} is not sold in this currency at this interval", other.name);
        let remedy = "sell the usage so, too, or by an add-on of its own";
        return Err(InvalidInput::new(format!("the price {}", plan.id), why, remedy));
    }
    Ok(usage.into_values().collect())
}

impl Billing {
    /// Changes what the tenant's subscription is charged for.
    ///
    /// `key` names this attempt: a repeat finds what came of the first, also after a crash. What the tenant may do changes when
    /// Stripe confirms, in the transaction that learns of it. A change whose payment fails waits for it, changes nothing
    /// meanwhile, and is rolled back without it; ask again with the same key to learn which.
    ///
    /// # Errors
    /// - [`NoSubscription`](BillingError::NoSubscription): there is nothing to change.
    /// - [`StateForbids`](BillingError::StateForbids): says what is in the way, and what to do first.
    /// - [`Invalid`](BillingError::Invalid): the catalogue has no such price, or does not sell it.
    /// - [`KeyReused`](saas_core::CoreError::KeyReused): the key came with another request.
    /// - [`Provider`](BillingError::Provider): Stripe refuses, or does not answer, which is retryable: call again with the same key.
    ///   If anything was sent, the outbox goes on by itself; if the first look at Stripe failed, nothing was sent, nothing is left
    ///   behind and the key is free.
    pub async fn change_plan(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        change: &PlanChange,
        key: &IdempotencyKey,
    ) -> Result<Change, BillingError> {
        change.edit.check(&self.catalog())?;
        // A repeat asks for what was asked then, whatever is sold or of higher rank by now.
        let known = self.known_request(ctx, key).await?;
        let change = &match self.with_usage(change).await {
            Err(BillingError::Invalid(_)) if known.is_some() => change.clone(),
            looked_up => looked_up?,
        };
        let when = match change.when.or(known.and_then(|known| When::asked(&known.what))) {
            Some(when) => when,
            None => change.when_for(&self.subscription_of(provider, ctx).await?.subscription, &self.catalog()),
        };
        self.request(provider, ctx, (&change.goal(when), About::Subscription), key).await
    }

    /// The change with the usage prices of the plan that it changes to: those that are sold in the currency of its price, and
    /// charged as often. Without them, where the catalogue names a price that was never applied.
    pub(super) async fn with_usage(&self, change: &PlanChange) -> Result<PlanChange, BillingError> {
        let (mut change, catalog) = (change.clone(), self.catalog());
        let Some(price) = change.edit.price.as_ref().filter(|_| change.edit.usage.is_none()) else { return Ok(change) };
        let version = catalog.plan_for_price(price.as_str());
        let version = version.and_then(|plan| catalog.version(&plan.plan, Some(plan.version)));
        let names: Vec<&str> = version.into_iter().flat_map(PlanVersion::prices).collect();
        let mut tx = SystemTx::begin(&self.system, ACTOR, "look up the usage prices of a plan").await?;
        let sold = price::sold(&mut tx, &self.scope, &names).await?;
        tx.commit().await?;
        let Some(wanted) = sold.iter().find(|one| one.id == *price) else { return Ok(change) };
        let is_known = |name: &&str| sold.iter().any(|one| one.name == **name && one.per.is_some());
        if !names.iter().all(is_known) {
            return Ok(change);
        }
        if wanted.is_usage() && !sold.iter().all(Sold::is_usage) {
            let remedy = "pass the price of the plan's fee, which brings it along";
            let why = "is for the usage of a plan that has a fee, too";
            return Err(InvalidInput::new(format!("the price {price}"), why, remedy).into());
        }
        change.edit.usage = Some(usage_beside(wanted, &sold)?);
        Ok(change)
    }

    /// Withdraws a change that is scheduled or waits for its payment. The invoice of the latter is voided.
    ///
    /// # Errors
    /// As [`change_plan`](Self::change_plan).
    pub async fn withdraw_change(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        key: &IdempotencyKey,
    ) -> Result<Change, BillingError> {
        self.request(provider, ctx, (&Goal::AsIs, About::Subscription), key).await
    }
}
