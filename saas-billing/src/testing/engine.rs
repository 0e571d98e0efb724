//! How the simulated Stripe behaves: renewals, charges, retries, trials, and the events they cause.

use chrono::{DateTime, Months, TimeDelta, Utc};
use serde_json::Value;

use super::{
    payload::{self, NewEvent, PayloadShape},
    world::{AfterRetries, SimEvent, SimInvoice, SimSubscription, World},
};
use crate::object::ObjectKind;

/// Days after the first failure at which Stripe tries again.
const RETRY_DAYS: [i64; 3] = [3, 5, 7];

/// The rules, at one instant.
pub(super) struct Engine<'a> {
    pub(super) world: &'a mut World,
    pub(super) shape: PayloadShape,
    pub(super) livemode: bool,
    pub(super) after_retries: AfterRetries,
    pub(super) now: DateTime<Utc>,
}

impl Engine<'_> {
    /// Writes an event about an object as it is now. An `updated` event without a change is none.
    pub(super) fn emit(&mut self, event_type: &str, kind: ObjectKind, id: &str) {
        let Some(object) = self.render(kind, id) else { return };
        let before = self.world.shown.insert(id.to_owned(), object.clone());
        let previous = before.as_ref().and_then(|before| payload::previous_attributes(before, &object));
        let is_update = event_type.ends_with(".updated");
        if is_update && previous.is_none() {
            return;
        }
        let event_id = self.world.mint("evt");
        let previous = previous.filter(|_| is_update);
        let new = NewEvent { id: &event_id, event_type, created: self.now, livemode: self.livemode, object, previous };
        let event = SimEvent { body: payload::event(self.shape, new), id: event_id, event_type: event_type.to_owned() };
        self.world.events.push(event.clone());
        self.world.queue.push(event);
    }

    /// An object as the API shows it now.
    pub(super) fn render(&self, kind: ObjectKind, id: &str) -> Option<Value> {
        let (world, shape, live) = (&self.world, self.shape, self.livemode);
        Some(match kind {
            ObjectKind::Customer => payload::customer(world.customers.get(id)?, live),
            ObjectKind::CheckoutSession => {
                let session = world.sessions.get(id)?;
                payload::session(session, world.prices.get(&session.price)?, live)
            }
            ObjectKind::Subscription => {
                let subscription = world.subscriptions.get(id)?;
                payload::subscription(shape, subscription, world.prices.get(&subscription.price)?, live)
            }
            ObjectKind::Invoice => payload::invoice(shape, world.invoices.get(id)?, live),
            ObjectKind::Charge | ObjectKind::Refund | ObjectKind::Dispute | ObjectKind::CreditNote => return None,
        })
    }

    /// The next instant up to `end` at which something happens by itself.
    pub(super) fn next_step(&self, end: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let subscriptions = self.world.subscriptions.values().filter_map(Self::due);
        let invoices = self.world.invoices.values().filter_map(|invoice| invoice.next_step);
        subscriptions.chain(invoices).filter(|at| *at <= end).min()
    }

    fn due(sub: &SimSubscription) -> Option<DateTime<Utc>> {
        match sub.status {
            "trialing" if !sub.trial_warned => sub.trial_end.map(|end| end - TimeDelta::days(3)),
            "trialing" => sub.trial_end,
            "active" | "past_due" | "unpaid" => Some(sub.period.1),
            _ => None,
        }
    }

    /// Does what is due now.
    pub(super) fn step(&mut self) {
        let now = self.now;
        let is_due = |at: Option<DateTime<Utc>>| at.is_some_and(|at| at <= now);
        let due: Vec<String> =
            self.world.subscriptions.values().filter(|sub| is_due(Self::due(sub))).map(|sub| sub.id.clone()).collect();
        for id in due {
            self.step_subscription(&id);
        }
        let due: Vec<(String, bool)> = self
            .world
            .invoices
            .values()
            .filter(|invoice| is_due(invoice.next_step))
            .map(|invoice| (invoice.id.clone(), invoice.status == "draft"))
            .collect();
        for (id, draft) in due {
            if draft {
                self.finalize(&id);
            }
            self.charge(&id);
        }
    }

    fn step_subscription(&mut self, id: &str) {
        let Some(sub) = self.world.subscriptions.get_mut(id) else { return };
        if sub.status == "trialing" && !sub.trial_warned {
            sub.trial_warned = true;
            self.emit("customer.subscription.trial_will_end", ObjectKind::Subscription, id);
        } else if sub.status == "trialing" {
            let payable = self.world.customers.get(&sub.customer).is_some_and(|customer| customer.has_payment_method);
            if sub.cancel_at_period_end {
                self.end(id);
            } else if payable {
                sub.status = "active";
                sub.anchor = self.now;
                sub.cycle = 0;
                self.renew(id);
            } else {
                sub.status = "paused";
                self.emit("customer.subscription.updated", ObjectKind::Subscription, id);
            }
        } else if sub.cancel_at_period_end {
            self.end(id);
        } else {
            sub.cycle += 1;
            self.renew(id);
        }
    }

    /// Opens the next period with a draft invoice that becomes final an hour later.
    fn renew(&mut self, id: &str) {
        let Some(next_step) = self.open_period(id) else { return };
        let invoice = self.bill(id, "subscription_cycle");
        if let Some(invoice) = invoice {
            if let Some(invoice) = self.world.invoices.get_mut(&invoice) {
                invoice.next_step = next_step;
            }
            self.emit("customer.subscription.updated", ObjectKind::Subscription, id);
        }
    }

    /// Sets the period from the anchor; answers when its invoice becomes final, never while nothing is collected.
    fn open_period(&mut self, id: &str) -> Option<Option<DateTime<Utc>>> {
        let sub = self.world.subscriptions.get_mut(id)?;
        let interval = self.world.prices.get(&sub.price)?.interval.clone();
        sub.period = (later(sub.anchor, &interval, sub.cycle), later(sub.anchor, &interval, sub.cycle + 1));
        Some((sub.status != "unpaid").then(|| self.now + TimeDelta::hours(1)))
    }

    /// Drafts an invoice for one period.
    pub(super) fn bill(&mut self, subscription: &str, reason: &'static str) -> Option<String> {
        let id = self.world.mint("in");
        let sub = self.world.subscriptions.get_mut(subscription)?;
        let price = self.world.prices.get(&sub.price)?;
        sub.latest_invoice = Some(id.clone());
        let invoice = SimInvoice {
            id: id.clone(),
            customer: sub.customer.clone(),
            subscription: sub.id.clone(),
            status: "draft",
            reason,
            amount: price.unit_amount.saturating_mul(i64::try_from(sub.quantity).unwrap_or(i64::MAX)),
            currency: price.currency.clone(),
            attempts: 0,
            created: self.now,
            finalized_at: None,
            paid_at: None,
            voided_at: None,
            uncollectible_at: None,
            next_step: None,
        };
        self.world.invoices.insert(id.clone(), invoice);
        self.emit("invoice.created", ObjectKind::Invoice, &id);
        Some(id)
    }

    pub(super) fn finalize(&mut self, id: &str) {
        let Some(invoice) = self.world.invoices.get_mut(id) else { return };
        invoice.status = "open";
        invoice.finalized_at = Some(self.now);
        self.emit("invoice.finalized", ObjectKind::Invoice, id);
    }

    /// Tries to charge an open invoice.
    pub(super) fn charge(&mut self, id: &str) {
        let now = self.now;
        let Some(invoice) = self.world.invoices.get_mut(id).filter(|invoice| invoice.status == "open") else { return };
        invoice.attempts += 1;
        let payer = self.world.customers.get(&invoice.customer);
        if payer.is_some_and(|customer| customer.has_payment_method && !customer.declines) {
            return self.settle(id);
        }
        let first = invoice.finalized_at.unwrap_or(now);
        let retry = usize::try_from(invoice.attempts).ok().and_then(|attempts| RETRY_DAYS.get(attempts - 1));
        invoice.next_step = retry.map(|days| first + TimeDelta::days(*days));
        let (given_up, subscription) = (invoice.next_step.is_none(), invoice.subscription.clone());
        self.emit("invoice.payment_failed", ObjectKind::Invoice, id);
        if given_up && self.after_retries == AfterRetries::Cancel {
            return self.end(&subscription);
        }
        let unpaid = given_up && self.after_retries == AfterRetries::Unpaid;
        self.set_status(&subscription, if unpaid { "unpaid" } else { "past_due" });
    }

    /// Marks an invoice paid, and the subscription active with it.
    pub(super) fn settle(&mut self, id: &str) {
        let now = self.now;
        let Some(invoice) = self.world.invoices.get_mut(id) else { return };
        invoice.status = "paid";
        invoice.paid_at = Some(now);
        invoice.next_step = None;
        let subscription = invoice.subscription.clone();
        self.emit("invoice.paid", ObjectKind::Invoice, id);
        self.emit("invoice.payment_succeeded", ObjectKind::Invoice, id);
        self.set_status(&subscription, "active");
    }

    fn set_status(&mut self, id: &str, status: &'static str) {
        let Some(sub) = self.world.subscriptions.get_mut(id).filter(|sub| sub.ended_at.is_none()) else { return };
        sub.status = status;
        self.emit("customer.subscription.updated", ObjectKind::Subscription, id);
    }

    /// Ends a subscription for good.
    pub(super) fn end(&mut self, id: &str) {
        let now = self.now;
        let Some(sub) = self.world.subscriptions.get_mut(id).filter(|sub| sub.ended_at.is_none()) else { return };
        sub.status = "canceled";
        sub.canceled_at = sub.canceled_at.or(Some(now));
        sub.ended_at = Some(now);
        self.emit("customer.subscription.deleted", ObjectKind::Subscription, id);
    }
}

/// `count` intervals after `anchor`, keeping its day of the month where the month has one.
pub(super) fn later(anchor: DateTime<Utc>, interval: &str, count: u32) -> DateTime<Utc> {
    let months = |months: u32| anchor.checked_add_months(Months::new(months)).unwrap_or(anchor);
    match interval {
        "day" => anchor + TimeDelta::days(i64::from(count)),
        "week" => anchor + TimeDelta::weeks(i64::from(count)),
        "year" => months(count.saturating_mul(12)),
        _ => months(count),
    }
}
