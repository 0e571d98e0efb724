//! What a change would cost, line by line, and what the tenant would have too much of.

use chrono::{DateTime, Utc};
use saas_core::{
    InvalidInput, PlanVersionRef, TenantContext,
    plan::{OverLimitReport, OverLimits},
};
use serde::{Deserialize, Serialize};

use super::{
    change::{PlanChange, When},
    edit::UsagePrice,
    goal::{self, Next, Seen, change_of},
};
use crate::{
    billing::Billing,
    error::BillingError,
    money::{Currency, Money},
    object::{ObjectId, Period, SubscriptionItem, SubscriptionStatus},
    provider::{PaymentProvider, Proration, ProviderError, Reply},
};

/// What a change would come to. Pass it on with [`PlanChange::as_previewed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Preview {
    /// The subscription.
    pub subscription: ObjectId,
    /// The plan after it, where the catalogue knows one.
    pub plan: Option<PlanVersionRef>,
    /// When it would hold.
    #[serde(skip)]
    pub when: When,
    /// From when on, if not at once.
    pub from: Option<DateTime<Utc>>,
    /// The lines of the next invoice.
    pub lines: Vec<PreviewLine>,
    /// Whether those are all; the total counts them all in any case.
    pub all_lines: bool,
    /// Usage prices that go with the next period: what is used at them until then comes on top of the lines.
    pub usage: Vec<ObjectId>,
    /// What the lines come to, with taxes and discounts. Below zero, it becomes credit.
    pub total: Money,
    /// What is to be paid of it, after credit.
    pub due: Money,
    /// The second that proration counts from.
    pub proration_date: Option<DateTime<Utc>>,
    /// What the tenant would have beyond the plan's limits, where somebody was asked.
    pub over_limit: Option<OverLimitReport>,
    #[serde(skip)]
    pub(super) basis: String,
    /// Those of the plan, as they were looked up for it.
    #[serde(skip)]
    pub(super) usage_prices: Option<Vec<UsagePrice>>,
}

/// A line of the invoice that would follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PreviewLine {
    /// Below zero for a credit.
    pub amount: Money,
    /// By what it is charged.
    pub price: Option<ObjectId>,
    /// How many.
    pub quantity: Option<u64>,
    /// For which time. Not said of a period that begins with a change that comes later, at another interval: Stripe's preview counts
    /// it from the moment of asking.
    pub period: Option<Period>,
    /// Whether it is for a part of a period: a credit for what was paid, or a charge for the rest.
    pub proration: bool,
    /// Stripe's words, as they will stand on the invoice.
    pub description: Option<String>,
}

#[derive(Deserialize)]
struct Wire {
    currency: String,
    total: i64,
    amount_due: i64,
    lines: WireLines,
}

#[derive(Deserialize)]
struct WireLines {
    data: Vec<WireLine>,
    #[serde(default)]
    has_more: bool,
}

#[derive(Deserialize)]
struct WireLine {
    amount: i64,
    quantity: Option<u64>,
    description: Option<String>,
    period: Option<WirePeriod>,
    /// Before API version 2025-03-31 (basil).
    proration: Option<bool>,
    price: Option<WirePrice>,
    /// Since then.
    parent: Option<WireParent>,
    pricing: Option<WirePricing>,
}

#[derive(Deserialize)]
struct WirePeriod {
    start: i64,
    end: i64,
}

#[derive(Deserialize)]
struct WirePrice {
    id: ObjectId,
}

#[derive(Deserialize)]
struct WireParent {
    subscription_item_details: Option<WireDetails>,
    invoice_item_details: Option<WireDetails>,
}

#[derive(Deserialize)]
struct WireDetails {
    #[serde(default)]
    proration: bool,
}

#[derive(Deserialize)]
struct WirePricing {
    price_details: Option<WirePriceDetails>,
}

#[derive(Deserialize)]
struct WirePriceDetails {
    price: ObjectId,
}

impl Billing {
    /// Says what a change would cost, as the invoice that would follow, and what the tenant would have beyond the plan's limits.
    /// Changes nothing.
    ///
    /// `limits` is whoever knows what is used, such as `saas_entitlements::Meter`.
    ///
    /// # Errors
    /// As [`change_plan`](Self::change_plan), which would refuse the same; [`Invalid`](BillingError::Invalid) when it changes
    /// nothing.
    pub async fn preview_change(
        &self,
        provider: &dyn PaymentProvider,
        ctx: &dyn TenantContext,
        change: &PlanChange,
        limits: Option<&dyn OverLimits>,
    ) -> Result<Preview, BillingError> {
        let catalog = &self.catalog();
        change.edit.check(catalog)?;
        let change = &self.with_usage(change).await?;
        let seen = self.subscription_of(provider, ctx).await?;
        let when = change.when_for(&seen.subscription, catalog);
        if let Next::Stop(_) = goal::next(&change.goal(when), &seen, catalog, &[])? {
            let remedy = "ask for something else, or for nothing";
            return Err(InvalidInput::new("the change", "changes nothing", remedy).into());
        }
        let target = change.edit.target(&seen.subscription, catalog);
        let plan = target.iter().find_map(|(price, _)| catalog.plan_for_price(price.as_str()));
        let over_limit = match (limits, &plan) {
            (Some(limits), Some(plan)) => Some(limits.report(ctx, plan).await?),
            (Some(_) | None, Some(_) | None) => None,
        };
        // In a trial it is made at once.
        let later = when == When::AtPeriodEnd && seen.subscription.status != SubscriptionStatus::Trialing;
        let goes =
            |item: &&SubscriptionItem| item.price.metered && !target.iter().any(|(price, _)| *price == item.price.id);
        let usage = seen.subscription.items.iter().filter(|_| later).filter(goes);
        let usage = usage.map(|item| item.price.id.clone()).collect();
        let (proration, proration_date) = self.proration(change, when, &seen);
        let asked = change_of(&change.edit, &seen.subscription, catalog, proration, proration_date);
        let mut bill = Bill::read(&provider.preview(&asked).await?)?;
        let periods = seen.subscription.items.iter().filter_map(|item| item.period);
        let from = periods.map(|period| period.end).max().filter(|_| when == When::AtPeriodEnd);
        // Stripe's preview has what comes begin now, and so counts usage from now on.
        let comes = |price: &ObjectId| !seen.subscription.items.iter().any(|item| item.price.id == *price);
        let coming = change.edit.usage.iter().flatten().map(|usage| &usage.price).filter(|price| comes(price));
        let coming: Vec<&ObjectId> = coming.collect();
        if later {
            let is_of_nothing = |line: &PreviewLine| {
                line.amount.minor() == 0 && line.price.as_ref().is_some_and(|price| coming.contains(&price))
            };
            bill.lines.retain(|line| !is_of_nothing(line));
        }
        for line in bill.lines.iter_mut().filter(|line| !line.proration) {
            line.period = line.period.filter(|period| from.is_none_or(|from| period.start >= from));
        }
        Ok(Preview {
            subscription: seen.subscription.id.clone(),
            plan,
            when,
            from,
            lines: bill.lines,
            all_lines: bill.all,
            usage,
            total: bill.total,
            due: bill.due,
            proration_date,
            over_limit,
            basis: goal::basis_of(&seen),
            usage_prices: change.edit.usage.clone(),
        })
    }

    /// How the rest of the period counts, and from when.
    fn proration(&self, change: &PlanChange, when: When, seen: &Seen) -> (Proration, Option<DateTime<Utc>>) {
        let trial = seen.subscription.status == SubscriptionStatus::Trialing;
        if when == When::AtPeriodEnd || trial || change.proration == Proration::None {
            return (Proration::None, None);
        }
        let now = self.clock.now();
        (change.proration, change.proration_date.or_else(|| DateTime::from_timestamp(now.timestamp(), 0)))
    }
}

/// The part of an invoice that a preview shows.
struct Bill {
    lines: Vec<PreviewLine>,
    all: bool,
    total: Money,
    due: Money,
}

impl Bill {
    fn read(reply: &Reply) -> Result<Self, ProviderError> {
        let unreadable = |_| ProviderError::Unreadable { what: "the preview of an invoice" };
        let wire: Wire = serde_json::from_str(reply.object.get()).map_err(unreadable)?;
        let currency: Currency =
            wire.currency.parse().map_err(|_| ProviderError::Unreadable { what: "the currency of a preview" })?;
        let money = |minor| Money::new(minor, currency);
        let all = !wire.lines.has_more;
        let lines = wire.lines.data.into_iter().map(|line| line.read(currency)).collect();
        Ok(Self { lines, all, total: money(wire.total), due: money(wire.amount_due) })
    }
}

impl WireLine {
    fn read(self, currency: Currency) -> PreviewLine {
        let details = self.parent.and_then(|parent| parent.subscription_item_details.or(parent.invoice_item_details));
        let price = self.pricing.and_then(|pricing| pricing.price_details).map(|details| details.price);
        let at = |seconds| DateTime::from_timestamp(seconds, 0);
        PreviewLine {
            amount: Money::new(self.amount, currency),
            price: price.or(self.price.map(|price| price.id)),
            quantity: self.quantity,
            period: self.period.and_then(|period| Some(Period { start: at(period.start)?, end: at(period.end)? })),
            proration: details.map(|details| details.proration).or(self.proration).unwrap_or(false),
            description: self.description,
        }
    }
}
