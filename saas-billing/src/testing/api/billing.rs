//! Subscriptions, schedules, invoices.

use serde_json::Value;

use super::{ApiError, Outcome, REFUSED, Request};
use crate::{
    object::ObjectKind,
    testing::{
        change::{Failing, Prorate, Unmade},
        checkout::{Beginning, subscribe},
        payload::{self, PayloadShape},
        world::{SimInvoice, SimItem, SimPhase, SimSchedule, SimSubscription},
    },
};

const PRORATE: [(&str, Prorate); 3] =
    [("always_invoice", Prorate::Now), ("create_prorations", Prorate::Next), ("none", Prorate::Never)];
const FAILING: [(&str, Failing); 3] = [
    ("pending_if_incomplete", Failing::Wait),
    ("error_if_incomplete", Failing::Refuse),
    ("allow_incomplete", Failing::Owe),
];
const CREATING: [(&str, Failing); 3] = [
    ("default_incomplete", Failing::Wait),
    ("error_if_incomplete", Failing::Refuse),
    ("allow_incomplete", Failing::Owe),
];

/// A subscription has one item of a price.
fn once_each(items: &[SimItem]) -> Result<(), ApiError> {
    let twice = items.iter().enumerate().find(|(n, item)| items.iter().take(*n).any(|other| other.price == item.price));
    twice.map_or(Ok(()), |(_, item)| {
        let message = format!("Cannot add multiple subscription items with the same plan: {}", item.price);
        Err(ApiError::new(400, REFUSED, "", message))
    })
}

impl Request<'_, '_> {
    /// A subscription that has not ended.
    fn live(&self, id: &str) -> Result<SimSubscription, ApiError> {
        let sub = self.engine.world.subscriptions.get(id).ok_or_else(|| ApiError::not_found("subscription", id))?;
        if sub.ended_at.is_some() {
            return Err(ApiError::not_found("subscription", id));
        }
        Ok(sub.clone())
    }

    pub(super) fn create_subscription(mut self) -> Outcome {
        let customer = self.payer("customer")?;
        let lines = self.priced("items")?;
        let trial_days = self.params.number("trial_period_days")?.unwrap_or(0);
        let failing = self.params.word("payment_behavior", &CREATING)?.unwrap_or(Failing::Owe);
        let (metadata, flexible) = (self.params.map("metadata"), self.flexible("billing_mode[type]")?);
        let (discount, automatic_tax) = (self.discount()?, self.params.flag("automatic_tax[enabled]")? == Some(true));
        std::mem::take(&mut self.params).finish()?;
        let payer = self.engine.world.customers.get(&customer);
        let pays = trial_days > 0 || payer.is_some_and(|payer| payer.has_payment_method && !payer.declines);
        if !pays && failing == Failing::Refuse {
            return Err(ApiError::declined());
        }
        let beginning = Beginning { customer, lines, trial_days, flexible, discount, automatic_tax, metadata };
        let made = subscribe(self.engine, beginning);
        let (id, _) = made.ok_or_else(|| ApiError::invalid("parameter_invalid_empty", "items"))?;
        self.done(ObjectKind::Subscription, &id)
    }

    pub(super) fn list_subscriptions(mut self) -> Outcome {
        let (customer, status) = (self.params.take("customer"), self.params.take("status"));
        let fits = |sub: &SimSubscription| {
            customer.as_ref().is_none_or(|customer| sub.customer == *customer)
                && match status.as_deref() {
                    Some("all") => true,
                    Some(status) => sub.status == status,
                    None => sub.ended_at.is_none(),
                }
        };
        let ids = Self::all(&self.engine.world.subscriptions, fits);
        self.many(ObjectKind::Subscription, "/v1/subscriptions", ids)
    }

    pub(super) fn subscription(self, id: &str) -> Outcome {
        let (shape, expanded) = (self.shape, self.params.expands("discounts"));
        let live = self.engine.livemode;
        let found = self.engine.world.subscriptions.get(id).filter(|_| expanded);
        let whole = found.map(|sub| payload::expanded_subscription(shape, sub, self.engine.world, live));
        let shown = self.one(ObjectKind::Subscription, id)?;
        Ok(whole.unwrap_or(shown))
    }

    /// The items after a change that names some of them.
    fn items_after(&mut self, sub: &SimSubscription, name: &str) -> Result<Vec<SimItem>, ApiError> {
        let mut items = sub.items.clone();
        for entry in self.params.entries(name) {
            let field = |field: &str| format!("{entry}[{field}]");
            let price = self.params.take(&field("price"));
            if let Some(price) = &price
                && !self.engine.world.prices.contains_key(price)
            {
                return Err(ApiError::no_such("price", price, &field("price")));
            }
            let quantity: Option<u64> = self.params.number(&field("quantity"))?;
            let deleted = self.params.flag(&field("deleted"))? == Some(true);
            match self.params.take(&field("id")) {
                Some(id) => {
                    let at = items.iter().position(|item| item.id == id);
                    let at = at.ok_or_else(|| ApiError::no_such("subscription_item", &id, &field("id")))?;
                    if deleted {
                        items.remove(at);
                    } else {
                        let metered = |price: &str| {
                            self.engine.world.prices.get(price).is_some_and(|price| price.meter.is_some())
                        };
                        if let Some(price) = price.filter(|price| *price != items[at].price) {
                            if metered(&price) {
                                items[at].quantity = None;
                            } else if metered(&items[at].price) {
                                items[at].quantity = Some(1);
                            }
                            (items[at].price, items[at].since) = (price, self.engine.now);
                        }
                        items[at].quantity = quantity.or(items[at].quantity);
                    }
                }
                None => {
                    let price = price.ok_or_else(|| ApiError::missing(&field("price")))?;
                    let metered = self.engine.world.prices.get(&price).is_some_and(|price| price.meter.is_some());
                    let id = self.engine.world.mint("si");
                    let (quantity, since) = (quantity.or((!metered).then_some(1)), self.engine.now);
                    items.push(SimItem { id, price, quantity, since, charged: None });
                }
            }
        }
        if items.is_empty() {
            return Err(ApiError::new(400, REFUSED, "", "A subscription must have at least one active plan."));
        }
        once_each(&items)?;
        Ok(items)
    }

    pub(super) fn change_subscription(mut self, id: &str) -> Outcome {
        let sub = self.live(id)?;
        let prorate = self.params.word("proration_behavior", &PRORATE)?.unwrap_or(Prorate::Next);
        let at = self.params.instant("proration_date")?.unwrap_or(self.engine.now);
        let failing = self.params.word("payment_behavior", &FAILING)?.unwrap_or(Failing::Owe);
        let items = self.items_after(&sub, "items")?;
        let stays = |old: &SimItem| items.iter().any(|item| item.id == old.id);
        if failing == Failing::Wait && !sub.items.iter().all(stays) && sub.status != "trialing" {
            // <https://docs.stripe.com/billing/subscriptions/pending-updates-reference>: of items, price and quantity.
            return Err(ApiError::invalid("parameter_unknown", "items[deleted]"));
        }
        let at_end = self.params.flag("cancel_at_period_end")?;
        let pause = match self.params.take("pause_collection") {
            Some(_) => Some(None),
            None => match self.params.take("pause_collection[behavior]") {
                Some(behavior) if ["void", "keep_as_draft", "mark_uncollectible"].contains(&behavior.as_str()) => {
                    Some(Some((behavior, self.params.instant("pause_collection[resumes_at]")?)))
                }
                Some(_) => {
                    return Err(ApiError::invalid("parameter_invalid_string_enum", "pause_collection[behavior]"));
                }
                None => None,
            },
        };
        let discount = self.discount()?;
        std::mem::take(&mut self.params).finish()?;
        if at_end.is_some() && sub.schedule.is_some() {
            let message = "The subscription is managed by the subscription schedule, and updating any cancelation behavior directly is not allowed.";
            return Err(ApiError::new(400, REFUSED, "", message));
        }
        if let Some(discount) = discount {
            self.engine.discount(id, discount);
        }
        if items != sub.items {
            self.engine.change(id, items, prorate, failing, at).map_err(|why| match why {
                Unmade::Declined => ApiError::declined(),
                Unmade::Unknown => ApiError::not_found("subscription", id),
            })?;
        }
        if let Some(sub) = self.engine.world.subscriptions.get_mut(id) {
            sub.cancel_at_period_end = at_end.unwrap_or(sub.cancel_at_period_end);
            if let Some(pause) = pause {
                sub.pause = pause;
            }
        }
        self.engine.emit("customer.subscription.updated", ObjectKind::Subscription, id);
        self.done(ObjectKind::Subscription, id)
    }

    pub(super) fn cancel_subscription(mut self, id: &str) -> Outcome {
        let sub = self.live(id)?;
        let prorate = self.params.flag("prorate")? == Some(true);
        let invoice_now = self.params.flag("invoice_now")? == Some(true);
        std::mem::take(&mut self.params).finish()?;
        if prorate && sub.status == "active" {
            let mut lines = self.engine.prorations(&sub, &[], self.engine.now);
            if invoice_now && !sub.flexible {
                lines.extend(sub.items.iter().filter_map(|item| self.engine.used_so_far(&sub, item)));
            }
            if invoice_now && let Some(invoice) = self.engine.draft(id, "subscription_update", lines) {
                self.engine.finalize(&invoice);
                self.engine.charge(&invoice);
            }
        }
        self.engine.end(id);
        self.done(ObjectKind::Subscription, id)
    }

    pub(super) fn resume_subscription(mut self, id: &str) -> Outcome {
        // Since version 2026-09-30 an object.
        let is_typed = self.version.is_empty() || self.version.as_str() >= "2026-09-30";
        let name = if is_typed { "billing_cycle_anchor[type]" } else { "billing_cycle_anchor" };
        let _ = self.params.word(name, &[("now", ())])?;
        std::mem::take(&mut self.params).finish()?;
        if self.live(id)?.status != "paused" {
            return Err(ApiError::new(400, REFUSED, "", "Only paused subscriptions can be resumed."));
        }
        self.engine.resume(id);
        self.done(ObjectKind::Subscription, id)
    }

    pub(super) fn attach_schedule(mut self) -> Outcome {
        let subscription = self.params.need("from_subscription")?;
        std::mem::take(&mut self.params).finish()?;
        let sub = self.live(&subscription)?;
        if sub.schedule.is_some() {
            return Err(ApiError::new(400, REFUSED, "", "The subscription is already managed by a schedule."));
        }
        let id = self.engine.attach_schedule(&subscription);
        let id = id.ok_or_else(|| ApiError::not_found("subscription", &subscription))?;
        self.schedule(&id)
    }

    fn schedule(&self, id: &str) -> Outcome {
        let schedule = self.engine.world.schedules.get(id);
        schedule
            .map(|schedule| payload::schedule(schedule, self.engine.livemode))
            .ok_or_else(|| ApiError::not_found("subscription_schedule", id))
    }

    pub(super) fn list_schedules(mut self) -> Outcome {
        let customer = self.params.take("customer");
        let fits = |schedule: &SimSchedule| customer.as_ref().is_none_or(|customer| schedule.customer == *customer);
        let ids = Self::all(&self.engine.world.schedules, fits);
        let shown = ids.into_iter().filter_map(|id| Some((id.clone(), self.schedule(&id).ok()?))).collect();
        self.page("/v1/subscription_schedules", shown)
    }

    fn active_schedule(&self, id: &str) -> Result<SimSchedule, ApiError> {
        let schedule = self.engine.world.schedules.get(id);
        let schedule = schedule.ok_or_else(|| ApiError::not_found("subscription_schedule", id))?;
        if schedule.status != "active" {
            let message = "You cannot change a subscription schedule that is not active.";
            return Err(ApiError::new(400, REFUSED, "", message));
        }
        Ok(schedule.clone())
    }

    pub(super) fn plan_phases(mut self, id: &str) -> Outcome {
        let known = self.active_schedule(id)?;
        let _ = self.params.word("end_behavior", &[("release", ()), ("cancel", ())])?;
        let mut phases: Vec<SimPhase> = Vec::new();
        for entry in self.params.entries("phases") {
            let field = |field: &str| format!("{entry}[{field}]");
            let start = self.params.instant(&field("start_date"))?.or(phases.last().map(|phase| phase.end));
            let start = start.ok_or_else(|| ApiError::missing(&field("start_date")))?;
            let items = self.priced(&field("items"))?;
            let end = self.params.instant(&field("end_date"))?.unwrap_or_else(|| self.engine.one_period(&items, start));
            let prorate = self.params.word(&field("proration_behavior"), &PRORATE)? != Some(Prorate::Never);
            if end <= start || phases.last().is_some_and(|last| last.end != start) {
                return Err(ApiError::invalid("parameter_invalid", &field("start_date")));
            }
            let mut discounts = Vec::new();
            for one in self.params.entries(&field("discounts")) {
                let of = format!("{one}[discount]");
                let id = self.params.take(&of).ok_or_else(|| ApiError::missing(&of))?;
                let sub = self.engine.world.subscriptions.get(&known.subscription);
                if !sub.is_some_and(|sub| sub.discounts.iter().any(|discount| discount.id == id)) {
                    return Err(ApiError::no_such("discount", &id, &of));
                }
                discounts.push(id);
            }
            phases.push(SimPhase { start, end, items, prorate, discounts: Some(discounts) });
        }
        std::mem::take(&mut self.params).finish()?;
        let present = known.phases.get(known.at).map(|phase| phase.start);
        if phases.first().map(|phase| phase.start) != present {
            return Err(ApiError::invalid("parameter_invalid", "phases[0][start_date]"));
        }
        let kept = phases.first().and_then(|phase| phase.discounts.clone());
        if let Some(schedule) = self.engine.world.schedules.get_mut(id) {
            (schedule.phases, schedule.at) = (phases, 0);
        }
        self.engine.keep_discounts(&known.subscription, kept.as_deref());
        self.engine.announce_schedule("subscription_schedule.updated", id);
        self.schedule(id)
    }

    pub(super) fn release_schedule(mut self, id: &str) -> Outcome {
        std::mem::take(&mut self.params).finish()?;
        self.active_schedule(id)?;
        self.engine.release(id, "subscription_schedule.released");
        self.schedule(id)
    }

    pub(super) fn preview(mut self) -> Outcome {
        let subscription = self.params.need("subscription")?;
        let sub = self.live(&subscription)?;
        let prorate = self.params.word("subscription_details[proration_behavior]", &PRORATE)?.unwrap_or(Prorate::Next);
        let at = self.params.instant("subscription_details[proration_date]")?.unwrap_or(self.engine.now);
        let minted = self.engine.world.minted;
        let items = self.items_after(&sub, "subscription_details[items]");
        // A preview leaves nothing behind.
        self.engine.world.minted = minted;
        let items = items?;
        std::mem::take(&mut self.params).finish()?;
        let invoice = self.engine.preview(&sub, &items, prorate, at);
        let invoice = invoice.ok_or_else(|| ApiError::not_found("subscription", &subscription))?;
        let mut object = payload::invoice(self.shape, &invoice, self.engine.world, self.engine.livemode);
        object["id"] = Value::from(format!("upcoming_{}", invoice.id));
        Ok(object)
    }

    pub(super) fn list_invoices(mut self) -> Outcome {
        let (customer, status) = (self.params.take("customer"), self.params.take("status"));
        let subscription = self.params.take("subscription");
        let fits = |invoice: &SimInvoice| {
            customer.as_ref().is_none_or(|customer| invoice.customer == *customer)
                && subscription.as_ref().is_none_or(|id| invoice.subscription == *id)
                && status.as_deref().is_none_or(|status| invoice.status == status)
        };
        let ids = Self::all(&self.engine.world.invoices, fits);
        let expanded = self.expands_payments();
        let elsewhere = Self::all(&self.engine.world.invoices, |invoice: &SimInvoice| invoice.paid_elsewhere);
        let mut page = self.many(ObjectKind::Invoice, "/v1/invoices", ids)?;
        for shown in page["data"].as_array_mut().into_iter().flatten().filter(|_| expanded) {
            let was_elsewhere = elsewhere.iter().any(|id| shown["id"] == id.as_str());
            payload::expand_invoice(shown, was_elsewhere);
        }
        Ok(page)
    }

    pub(super) fn invoice(self, id: &str) -> Outcome {
        let elsewhere = self.engine.world.invoices.get(id).is_some_and(|invoice| invoice.paid_elsewhere);
        let expanded = self.expands_payments();
        let mut shown = self.one(ObjectKind::Invoice, id)?;
        if expanded {
            payload::expand_invoice(&mut shown, elsewhere);
        }
        Ok(shown)
    }

    /// Whether a call asks what was paid by other means; versions before do not know that.
    fn expands_payments(&self) -> bool {
        self.shape == PayloadShape::Current && self.params.expands("amount_paid_off_stripe")
    }

    fn open_invoice(&mut self, id: &str) -> Result<SimInvoice, ApiError> {
        std::mem::take(&mut self.params).finish()?;
        let invoice = self.engine.world.invoices.get(id).ok_or_else(|| ApiError::not_found("invoice", id))?;
        if !matches!(invoice.status, "open" | "uncollectible") {
            return Err(ApiError::new(400, REFUSED, "invoice_not_open", "The invoice is not open."));
        }
        Ok(invoice.clone())
    }

    pub(super) fn pay_invoice(mut self, id: &str) -> Outcome {
        let invoice = self.open_invoice(id)?;
        if let Some(invoice) = self.engine.world.invoices.get_mut(id) {
            invoice.status = "open";
        }
        self.engine.charge(id);
        let paid = self.engine.world.invoices.get(id).is_some_and(|invoice| invoice.status == "paid");
        if !paid {
            if let Some(sim) = self.engine.world.invoices.get_mut(id) {
                (sim.status, sim.next_step) = (invoice.status, invoice.next_step);
            }
            return Err(ApiError::declined());
        }
        self.done(ObjectKind::Invoice, id)
    }

    pub(super) fn close_invoice(mut self, id: &str, uncollectible: bool) -> Outcome {
        self.open_invoice(id)?;
        self.engine.close(id, uncollectible);
        self.done(ObjectKind::Invoice, id)
    }
}
