//! How the simulated Stripe behaves: renewals, charges, retries, trials, and the events they cause.

use chrono::{DateTime, Months, TimeDelta, Utc};
use serde_json::Value;

use super::{
    payload::{self, NewEvent, PayloadShape},
    world::{AfterRetries, SimEvent, SimInvoice, SimItem, SimLine, SimSubscription, World},
};
use crate::object::ObjectKind;

/// Days after the first failure at which Stripe tries again.
const RETRY_DAYS: [i64; 3] = [3, 5, 7];

/// How long Stripe waits for the first payment.
const FIRST_PAYMENT: TimeDelta = TimeDelta::hours(23);

/// The rules, at one instant.
pub(super) struct Engine<'a> {
    pub(super) world: &'a mut World,
    pub(super) shape: PayloadShape,
    pub(super) livemode: bool,
    pub(super) after_retries: AfterRetries,
    pub(super) now: DateTime<Utc>,
    /// The idempotency key of the request that is the cause, as events show it.
    pub(super) cause: Option<String>,
}

impl Engine<'_> {
    /// Writes an event about an object as it is now. An `updated` event without a change is none.
    pub(super) fn emit(&mut self, event_type: &str, kind: ObjectKind, id: &str) {
        let Some(object) = self.render(kind, id) else { return };
        let before = self.world.shown.insert(id.to_owned(), object.clone());
        let previous = before.as_ref().and_then(|before| payload::previous_attributes(before, &object));
        if event_type.ends_with(".updated") && previous.is_none() {
            return;
        }
        let is_update = event_type.ends_with(".updated") || event_type == "charge.refunded";
        self.announce(event_type, object, previous.filter(|_| is_update));
    }

    /// Writes an event about any object.
    pub(super) fn announce(&mut self, event_type: &str, object: Value, previous: Option<Value>) {
        let id = self.world.mint("evt");
        let (created, livemode, cause) = (self.now, self.livemode, self.cause.as_deref());
        let new = NewEvent { id: &id, event_type, created, livemode, object, previous, cause };
        let body = payload::event(self.shape, new);
        let event = SimEvent { body, id, event_type: event_type.to_owned(), created };
        self.world.events.push(event.clone());
        self.world.queue.push(event);
    }

    /// An object as events show it now.
    pub(super) fn render(&self, kind: ObjectKind, id: &str) -> Option<Value> {
        self.show(self.shape, kind, id)
    }

    /// An object in a given shape.
    pub(super) fn show(&self, shape: PayloadShape, kind: ObjectKind, id: &str) -> Option<Value> {
        let (world, live) = (&*self.world, self.livemode);
        Some(match kind {
            ObjectKind::Customer => payload::customer(world.customers.get(id)?, live),
            ObjectKind::CheckoutSession => payload::session(world.sessions.get(id)?, world, live),
            ObjectKind::Subscription => payload::subscription(shape, world.subscriptions.get(id)?, world, live),
            ObjectKind::Invoice => payload::invoice(shape, world.invoices.get(id)?, world, live),
            ObjectKind::Charge | ObjectKind::Refund | ObjectKind::Dispute | ObjectKind::CreditNote => {
                return self.show_money(shape, kind, id);
            }
        })
    }

    /// The next instant up to `end` at which something happens by itself.
    pub(super) fn next_step(&self, end: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let subscriptions = self.world.subscriptions.values().filter_map(|sub| self.due(sub));
        let moving = self.world.moving.iter().filter_map(|id| self.world.invoices.get(id));
        let invoices = moving.filter_map(|invoice| invoice.next_step);
        subscriptions.chain(invoices).filter(|at| *at <= end).min()
    }

    fn due(&self, sub: &SimSubscription) -> Option<DateTime<Utc>> {
        let own = match sub.status {
            "trialing" if !sub.trial_warned => sub.trial_end.map(|end| end - TimeDelta::days(3)),
            "trialing" => sub.trial_end,
            "active" | "past_due" | "unpaid" => Some(sub.period.1),
            "incomplete" => return Some(sub.created + FIRST_PAYMENT),
            _ => return None,
        };
        let resumes = sub.pause.as_ref().and_then(|(_, resumes_at)| *resumes_at);
        let pending = sub.pending.as_ref().map(|pending| pending.expires_at);
        [own, resumes, pending, self.next_phase(sub)].into_iter().flatten().min()
    }

    /// Does what is due now.
    pub(super) fn step(&mut self) {
        let now = self.now;
        let is_due = |at: Option<DateTime<Utc>>| at.is_some_and(|at| at <= now);
        let due = self.world.subscriptions.values().filter(|sub| is_due(self.due(sub)));
        let due: Vec<String> = due.map(|sub| sub.id.clone()).collect();
        for id in due {
            self.step_subscription(&id);
        }
        let moving = self.world.moving.iter().filter_map(|id| self.world.invoices.get(id));
        let due = moving.filter(|invoice| is_due(invoice.next_step));
        let due: Vec<(String, bool)> = due.map(|invoice| (invoice.id.clone(), invoice.status == "draft")).collect();
        for (id, draft) in due {
            if draft {
                self.finalize(&id);
            }
            self.charge(&id);
        }
    }

    fn step_subscription(&mut self, id: &str) {
        let now = self.now;
        if self.world.subscriptions.get(id).is_some_and(|sub| sub.status == "incomplete") {
            return self.expire(id);
        }
        self.step_schedule(id);
        self.step_pending(id);
        let Some(sub) = self.world.subscriptions.get_mut(id) else { return };
        if sub.pause.as_ref().is_some_and(|(_, resumes_at)| resumes_at.is_some_and(|at| at <= now)) {
            sub.pause = None;
            self.emit("customer.subscription.updated", ObjectKind::Subscription, id);
            return;
        }
        if sub.status == "trialing" && !sub.trial_warned {
            if sub.trial_end.is_some_and(|end| end - TimeDelta::days(3) <= now) {
                sub.trial_warned = true;
                self.emit("customer.subscription.trial_will_end", ObjectKind::Subscription, id);
            }
        } else if sub.status == "trialing" {
            let payable = self.world.customers.get(&sub.customer).is_some_and(|customer| customer.has_payment_method);
            if sub.trial_end.is_none_or(|end| end > now) {
            } else if sub.cancel_at_period_end {
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
        } else if !matches!(sub.status, "active" | "past_due" | "unpaid") || sub.period.1 > now {
        } else if sub.cancel_at_period_end {
            self.bill_usage(id);
            self.end(id);
        } else {
            // An anchor at the end of the period: another interval begins.
            sub.cycle = if sub.anchor == sub.period.1 { 0 } else { sub.cycle + 1 };
            self.renew(id);
        }
    }

    /// What was used in the period that ends is charged when there is none after it.
    fn bill_usage(&mut self, id: &str) {
        let Some(sub) = self.world.subscriptions.get(id) else { return };
        let lines: Vec<SimLine> = sub.items.iter().filter_map(|item| self.used_so_far(sub, item)).collect();
        if lines.is_empty() {
            return;
        }
        let next_step = self.now + TimeDelta::hours(1);
        let invoice = self.draft(id, "subscription_cycle", lines);
        if let Some(invoice) = invoice.and_then(|invoice| self.world.invoices.get_mut(&invoice)) {
            invoice.next_step = Some(next_step);
        }
    }

    /// The first payment has not come.
    fn expire(&mut self, id: &str) {
        let now = self.now;
        let Some(sub) = self.world.subscriptions.get_mut(id) else { return };
        (sub.status, sub.ended_at) = ("incomplete_expired", Some(now));
        let invoice = sub.latest_invoice.clone();
        self.emit("customer.subscription.updated", ObjectKind::Subscription, id);
        if let Some(invoice) = invoice {
            self.close(&invoice, false);
        }
    }

    /// Opens the next period with a draft invoice that becomes final an hour later.
    fn renew(&mut self, id: &str) {
        // A price that is gone: there is nothing to charge by.
        let Some(next_step) = self.open_period(id) else { return self.end(id) };
        let Some(invoice) = self.bill(id, "subscription_cycle") else { return };
        let paused = self.world.subscriptions.get(id).and_then(|sub| sub.pause.as_ref().map(|pause| pause.0.clone()));
        if let Some(invoice) = self.world.invoices.get_mut(&invoice) {
            invoice.next_step = next_step.filter(|_| paused.is_none());
        }
        match paused.as_deref() {
            Some("void") => self.close(&invoice, false),
            Some("mark_uncollectible") => {
                self.finalize(&invoice);
                self.close(&invoice, true);
            }
            _ => {}
        }
        self.emit("customer.subscription.updated", ObjectKind::Subscription, id);
    }

    /// Sets the period from the anchor; answers when its invoice becomes final, never while nothing is collected.
    fn open_period(&mut self, id: &str) -> Option<Option<DateTime<Utc>>> {
        let interval = self.interval_of(id)?;
        let sub = self.world.subscriptions.get_mut(id)?;
        sub.period = (later(sub.anchor, &interval, sub.cycle), later(sub.anchor, &interval, sub.cycle + 1));
        Some((sub.status != "unpaid").then(|| self.now + TimeDelta::hours(1)))
    }

    /// The interval of a subscription: all its items share one.
    pub(super) fn interval_of(&self, id: &str) -> Option<String> {
        let first = &self.world.subscriptions.get(id)?.items.first()?.price;
        Some(self.world.prices.get(first)?.interval.clone())
    }

    /// Drafts an invoice for the present period and for what was carried over.
    pub(super) fn bill(&mut self, subscription: &str, reason: &'static str) -> Option<String> {
        let lines = self.lines(subscription)?;
        self.note_charges(subscription);
        self.draft(subscription, reason, lines)
    }

    /// What the present period costs, with what was carried over: what the next invoice will hold.
    pub(super) fn lines(&self, subscription: &str) -> Option<Vec<SimLine>> {
        let sub = self.world.subscriptions.get(subscription)?;
        let mut lines = sub.carried.clone();
        for item in &sub.items {
            lines.extend(self.line(sub, item, sub.period));
        }
        Some(lines)
    }

    /// Remembers what the present period has cost: what is given back when an item goes is counted from that.
    pub(super) fn note_charges(&mut self, subscription: &str) {
        let Some(sub) = self.world.subscriptions.get(subscription) else { return };
        let charges: Vec<_> = sub.items.iter().map(|item| Some((self.whole(sub, item)?, sub.period))).collect();
        let items = self.world.subscriptions.get_mut(subscription).map(|sub| &mut sub.items);
        for (item, charged) in items.into_iter().flatten().zip(charges) {
            item.charged = charged;
        }
    }

    /// What an item costs for a period. Usage is charged for the period before, since the item was there; in the flexible mode
    /// there is no line about a time before that.
    pub(super) fn line(
        &self,
        sub: &SimSubscription,
        item: &SimItem,
        period: (DateTime<Utc>, DateTime<Utc>),
    ) -> Option<SimLine> {
        let price = self.world.prices.get(&item.price)?;
        let quantity = match &price.meter {
            // Schedules go by whole seconds.
            Some(_) if sub.flexible && item.since.timestamp() >= period.0.timestamp() => return None,
            Some(meter) => {
                let from = self.begun_before(sub, period.0, &price.interval).max(item.since);
                Some(self.used(meter, &sub.customer, (from, period.0)))
            }
            None => item.quantity,
        };
        let amount = price.pricing.amount(quantity.unwrap_or(1));
        Some(SimLine { price: price.id.clone(), quantity, amount, proration: false, period })
    }

    /// When the period before the one that begins at `start` began: the present one, if that is the next.
    fn begun_before(&self, sub: &SimSubscription, start: DateTime<Utc>, interval: &str) -> DateTime<Utc> {
        if start > sub.period.0 {
            return sub.period.0;
        }
        sub.cycle.checked_sub(1).map_or(sub.created, |cycle| later(sub.anchor, interval, cycle))
    }

    /// Drafts an invoice over these lines.
    pub(super) fn draft(&mut self, subscription: &str, reason: &'static str, lines: Vec<SimLine>) -> Option<String> {
        let (discounts, tax_rate) = (self.terms(subscription, &lines), self.tax_rate(subscription));
        let id = self.world.mint("in");
        let sub = self.world.subscriptions.get_mut(subscription)?;
        let currency = self.world.prices.get(&sub.items.first()?.price)?.currency.clone();
        sub.latest_invoice = Some(id.clone());
        sub.carried.clear();
        let invoice = SimInvoice {
            id: id.clone(),
            customer: sub.customer.clone(),
            subscription: sub.id.clone(),
            status: "draft",
            reason,
            lines,
            discounts,
            tax_rate,
            from_balance: 0,
            balances: None,
            credited: 0,
            credited_after: 0,
            charge: None,
            paid_elsewhere: false,
            currency,
            attempts: 0,
            created: self.now,
            finalized_at: None,
            paid_at: None,
            voided_at: None,
            uncollectible_at: None,
            next_step: None,
        };
        self.world.invoices.insert(id.clone(), invoice);
        self.world.moving.insert(id.clone());
        self.emit("invoice.created", ObjectKind::Invoice, &id);
        Some(id)
    }

    /// Makes an invoice final: the customer's balance takes part in it.
    pub(super) fn finalize(&mut self, id: &str) {
        let Some(invoice) = self.world.invoices.get_mut(id) else { return };
        invoice.status = "open";
        invoice.finalized_at = Some(self.now);
        let (total, payer, currency) = (invoice.total(), invoice.customer.clone(), invoice.currency.clone());
        let balance = self.world.customers.get(&payer).map_or(0, |payer| payer.balance);
        // A credit pays what it can; an invoice over less than nothing becomes credit.
        invoice.from_balance = if total < 0 { total } else { total.min((-balance).max(0)) };
        invoice.balances = Some((balance, balance.saturating_add(invoice.from_balance)));
        let moved = invoice.from_balance;
        self.emit("invoice.finalized", ObjectKind::Invoice, id);
        self.move_balance(&payer, moved, &currency);
    }

    /// Tries to charge an open invoice.
    pub(super) fn charge(&mut self, id: &str) {
        let now = self.now;
        let Some(invoice) = self.world.invoices.get_mut(id).filter(|invoice| invoice.status == "open") else { return };
        if invoice.due() == 0 {
            return self.settle(id);
        }
        invoice.attempts += 1;
        let payer = self.world.customers.get(&invoice.customer);
        if payer.is_some_and(|payer| payer.has_payment_method && !payer.declines && !payer.wants_confirmation) {
            self.record_charge(id, true);
            return self.settle(id);
        }
        let to_confirm = payer.is_some_and(|payer| payer.has_payment_method && !payer.declines);
        let first = invoice.finalized_at.unwrap_or(now);
        let retry = usize::try_from(invoice.attempts).ok().and_then(|attempts| RETRY_DAYS.get(attempts - 1));
        invoice.next_step = retry.map(|days| first + TimeDelta::days(*days));
        let (given_up, subscription) = (invoice.next_step.is_none(), invoice.subscription.clone());
        self.record_charge(id, false);
        if to_confirm {
            self.emit("invoice.payment_action_required", ObjectKind::Invoice, id);
        }
        self.emit("invoice.payment_failed", ObjectKind::Invoice, id);
        if self.is_pending(id) {
            // The change waits; what is there already is paid for.
            if let Some(invoice) = self.world.invoices.get_mut(id) {
                invoice.next_step = None;
            }
            return;
        }
        if given_up && self.after_retries == AfterRetries::Cancel {
            return self.end(&subscription);
        }
        let unpaid = given_up && self.after_retries == AfterRetries::Unpaid;
        self.set_status(&subscription, if unpaid { "unpaid" } else { "past_due" });
    }

    /// Charges the first invoice of a subscription: until it is paid, there is none to be behind.
    pub(super) fn charge_first(&mut self, id: &str) {
        let Some(invoice) = self.world.invoices.get(id) else { return };
        let payer = self.world.customers.get(&invoice.customer);
        if invoice.due() == 0 || payer.is_some_and(|payer| payer.has_payment_method && !payer.declines) {
            return self.charge(id);
        }
        if let Some(invoice) = self.world.invoices.get_mut(id) {
            invoice.attempts += 1;
        }
        self.record_charge(id, false);
        self.emit("invoice.payment_failed", ObjectKind::Invoice, id);
    }

    /// Whether an invoice is what a pending change waits for.
    fn is_pending(&self, invoice: &str) -> bool {
        let subscription = self.world.invoices.get(invoice).map(|invoice| &invoice.subscription);
        let sub = subscription.and_then(|id| self.world.subscriptions.get(id));
        sub.and_then(|sub| sub.pending.as_ref()).is_some_and(|pending| pending.invoice == invoice)
    }

    /// Marks an invoice paid, and the subscription active with it.
    pub(super) fn settle(&mut self, id: &str) {
        let now = self.now;
        let Some(invoice) = self.world.invoices.get_mut(id) else { return };
        invoice.status = "paid";
        invoice.paid_at = Some(now);
        invoice.next_step = None;
        let subscription = invoice.subscription.clone();
        self.world.moving.remove(id);
        self.emit("invoice.paid", ObjectKind::Invoice, id);
        self.emit("invoice.payment_succeeded", ObjectKind::Invoice, id);
        if self.is_pending(id) {
            return self.apply_pending(&subscription);
        }
        self.set_status(&subscription, "active");
    }

    /// Withdraws an open invoice or a draft, or writes it off.
    pub(super) fn close(&mut self, id: &str, uncollectible: bool) {
        let now = self.now;
        let dropped = (!uncollectible && self.is_pending(id)).then(|| self.drop_pending(id)).flatten();
        let Some(sim) = self.world.invoices.get_mut(id) else { return };
        sim.next_step = None;
        let (status, event, at) = if uncollectible {
            ("uncollectible", "invoice.marked_uncollectible", &mut sim.uncollectible_at)
        } else {
            ("void", "invoice.voided", &mut sim.voided_at)
        };
        *at = Some(now);
        sim.status = status;
        // Withdrawn, it gives back the credit that went into it.
        let given_back = if uncollectible || sim.finalized_at.is_none() { 0 } else { sim.from_balance };
        let (payer, currency) = (sim.customer.clone(), sim.currency.clone());
        self.world.moving.remove(id);
        self.emit(event, ObjectKind::Invoice, id);
        self.move_balance(&payer, -given_back, &currency);
        if let Some(subscription) = dropped {
            self.emit("customer.subscription.updated", ObjectKind::Subscription, &subscription);
        }
    }

    /// Forgets the change that waits for an invoice; says of which subscription.
    fn drop_pending(&mut self, invoice: &str) -> Option<String> {
        let subscription = self.world.invoices.get(invoice)?.subscription.clone();
        self.world.subscriptions.get_mut(&subscription)?.pending = None;
        Some(subscription)
    }

    pub(super) fn set_status(&mut self, id: &str, status: &'static str) {
        let Some(sub) = self.world.subscriptions.get_mut(id).filter(|sub| sub.ended_at.is_none()) else { return };
        // A trial stays one, whatever is paid meanwhile.
        if sub.status != "trialing" || status != "active" {
            sub.status = status;
        }
        self.emit("customer.subscription.updated", ObjectKind::Subscription, id);
    }

    /// Deletes a customer; its subscriptions end at once.
    pub(super) fn delete_customer(&mut self, id: &str) {
        let Some(customer) = self.world.customers.get_mut(id) else { return };
        customer.deleted = true;
        let mine = self.world.subscriptions.values().filter(|sub| sub.customer == id && sub.ended_at.is_none());
        let mine: Vec<String> = mine.map(|sub| sub.id.clone()).collect();
        for subscription in mine {
            self.end(&subscription);
        }
        self.emit("customer.deleted", ObjectKind::Customer, id);
    }

    /// Ends a subscription for good.
    pub(super) fn end(&mut self, id: &str) {
        let now = self.now;
        let Some(sub) = self.world.subscriptions.get_mut(id).filter(|sub| sub.ended_at.is_none()) else { return };
        sub.status = "canceled";
        sub.canceled_at = sub.canceled_at.or(Some(now));
        sub.ended_at = Some(now);
        if let Some(schedule) = sub.schedule.as_ref().and_then(|id| self.world.schedules.get_mut(id)) {
            schedule.status = "canceled";
        }
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
