//! What happens to a subscription on request: other items, a schedule, a pause, an end.

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    engine::{Engine, later},
    pricing::rest,
    world::{SimInvoice, SimItem, SimLine, SimPending, SimPhase, SimSchedule, SimSubscription},
};
use crate::object::ObjectKind;

/// How long a change waits for its payment.
const PENDING_FOR: TimeDelta = TimeDelta::hours(23);

/// What becomes of the rest of the period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prorate {
    Now,
    Next,
    Never,
}

/// What happens when the payment fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failing {
    Wait,
    Refuse,
    Owe,
}

/// Why a change was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unmade {
    Declined,
    Unknown,
}

/// What a change would put on an invoice.
pub(super) struct Bill {
    pub(super) lines: Vec<SimLine>,
    /// Whether it is due at once: asked for, or since the interval changes.
    pub(super) at_once: bool,
    /// The period that begins now, if the interval changes.
    pub(super) restarts: Option<(DateTime<Utc>, DateTime<Utc>)>,
}

impl Engine<'_> {
    /// What changing to `after` costs, counted from `at`. Changes nothing: previews and changes both ask here.
    pub(super) fn bill_of_change(
        &self,
        sub: &SimSubscription,
        after: &[SimItem],
        prorate: Prorate,
        at: DateTime<Utc>,
    ) -> Bill {
        let interval = |items: &[SimItem]| {
            items.first().and_then(|item| self.world.prices.get(&item.price)).map(|price| price.interval.clone())
        };
        let (old, new) = (interval(&sub.items), interval(after));
        if sub.status == "trialing" || old == new || new.is_none() {
            let prorates = prorate != Prorate::Never && sub.status != "trialing";
            let lines = if prorates { self.prorations(sub, after, at) } else { Vec::new() };
            return Bill { at_once: prorate == Prorate::Now && !lines.is_empty(), lines, restarts: None };
        }
        // Another interval begins a period of its own: credit for the rest of the old one, the whole of the new one.
        let period = (self.now, later(self.now, new.as_deref().unwrap_or("month"), 1));
        let mut lines = if prorate == Prorate::Never { Vec::new() } else { self.prorations(sub, &[], at) };
        for item in after {
            let Some(price) = self.world.prices.get(&item.price).filter(|price| price.meter.is_none()) else {
                continue;
            };
            let amount = price.pricing.amount(item.quantity.unwrap_or(1));
            let (price, quantity) = (price.id.clone(), item.quantity);
            lines.push(SimLine { price, quantity, amount, proration: false, period });
        }
        Bill { lines, at_once: true, restarts: Some(period) }
    }

    /// Changes items.
    pub(super) fn change(
        &mut self,
        id: &str,
        after: Vec<SimItem>,
        prorate: Prorate,
        failing: Failing,
        at: DateTime<Utc>,
    ) -> Result<(), Unmade> {
        let sub = self.world.subscriptions.get(id).ok_or(Unmade::Unknown)?;
        let bill = self.bill_of_change(sub, &after, prorate, at);
        let payer = self.world.customers.get(&sub.customer);
        let credit = payer.map_or(0, |customer| (-customer.balance).max(0));
        let total: i64 = bill.lines.iter().chain(&sub.carried).map(|line| line.amount).fold(0, i64::saturating_add);
        let pays = total <= credit || payer.is_some_and(|payer| payer.has_payment_method && !payer.declines);
        if bill.at_once && !pays && failing == Failing::Refuse {
            return Err(Unmade::Declined);
        }
        let waits = bill.at_once && !pays && failing == Failing::Wait;
        let after = self.charged(sub, after, prorate, at, bill.restarts);
        // Another change takes the place of one that waits.
        let former = self.world.subscriptions.get_mut(id).and_then(|sub| sub.pending.take());
        if let Some(former) = former {
            self.close(&former.invoice, false);
        }
        if !waits {
            self.put_items(id, after.clone(), bill.restarts);
        }
        if !bill.at_once {
            if let Some(sub) = self.world.subscriptions.get_mut(id) {
                sub.carried.extend(bill.lines);
            }
            self.emit("customer.subscription.updated", ObjectKind::Subscription, id);
            return Ok(());
        }
        let carried = self.world.subscriptions.get(id).map(|sub| sub.carried.clone()).unwrap_or_default();
        let lines = carried.into_iter().chain(bill.lines).collect();
        let invoice = self.draft(id, "subscription_update", lines).ok_or(Unmade::Unknown)?;
        if waits && let Some(sub) = self.world.subscriptions.get_mut(id) {
            let expires_at = self.now + PENDING_FOR;
            sub.pending = Some(SimPending { items: after, invoice: invoice.clone(), expires_at });
        }
        self.emit("customer.subscription.updated", ObjectKind::Subscription, id);
        self.finalize(&invoice);
        self.charge(&invoice);
        Ok(())
    }

    /// The items with what a change charges for them. What it does not charge for was charged before, or never.
    fn charged(
        &self,
        sub: &SimSubscription,
        mut after: Vec<SimItem>,
        prorate: Prorate,
        at: DateTime<Utc>,
        restarts: Option<(DateTime<Utc>, DateTime<Utc>)>,
    ) -> Vec<SimItem> {
        let prorates = prorate != Prorate::Never && sub.status != "trialing";
        for item in &mut after {
            let Some(whole) = self.whole(sub, item) else { continue };
            if let Some(period) = restarts {
                item.charged = Some((whole, period));
            } else if prorates && !sub.items.contains(item) {
                item.charged = Some((rest(whole, sub.period, at), (at, sub.period.1)));
            }
        }
        after
    }

    fn put_items(&mut self, id: &str, items: Vec<SimItem>, restarts: Option<(DateTime<Utc>, DateTime<Utc>)>) {
        let now = self.now;
        let Some(sub) = self.world.subscriptions.get_mut(id) else { return };
        sub.items = items;
        if let Some(period) = restarts {
            (sub.anchor, sub.cycle, sub.period) = (now, 0, period);
        }
    }

    /// The payment came: the change that waited for it is made.
    pub(super) fn apply_pending(&mut self, id: &str) {
        let Some(pending) = self.world.subscriptions.get_mut(id).and_then(|sub| sub.pending.take()) else { return };
        let Some(sub) = self.world.subscriptions.get(id) else { return };
        let bill = self.bill_of_change(sub, &pending.items, Prorate::Never, self.now);
        self.put_items(id, pending.items, bill.restarts);
        self.emit("customer.subscription.updated", ObjectKind::Subscription, id);
        self.emit("customer.subscription.pending_update_applied", ObjectKind::Subscription, id);
    }

    /// The payment did not come in time: the change is dropped.
    pub(super) fn step_pending(&mut self, id: &str) {
        let now = self.now;
        let Some(sub) = self.world.subscriptions.get_mut(id) else { return };
        if sub.pending.as_ref().is_none_or(|pending| pending.expires_at > now) {
            return;
        }
        let Some(pending) = sub.pending.take() else { return };
        self.close(&pending.invoice, false);
        self.emit("customer.subscription.updated", ObjectKind::Subscription, id);
        self.emit("customer.subscription.pending_update_expired", ObjectKind::Subscription, id);
    }

    /// The invoice that a change would bring, due now or with the next period. Leaves nothing behind.
    pub(super) fn preview(
        &self,
        sub: &SimSubscription,
        after: &[SimItem],
        prorate: Prorate,
        at: DateTime<Utc>,
    ) -> Option<SimInvoice> {
        let bill = self.bill_of_change(sub, after, prorate, at);
        let mut lines: Vec<SimLine> = sub.carried.iter().cloned().chain(bill.lines).collect();
        // What follows a trial has the interval of what is bought then.
        let interval = self.world.prices.get(&after.first()?.price)?.interval.clone();
        let due = if bill.at_once { self.now } else { sub.period.1 };
        if !bill.at_once {
            let periods = if sub.status == "trialing" { 1 } else { sub.cycle + 2 };
            let next = (sub.period.1, later(sub.anchor, &interval, periods));
            lines.extend(after.iter().filter_map(|item| self.line(sub, item, next)));
        }
        let price = self.world.prices.get(&after.first()?.price)?;
        let mut invoice = SimInvoice {
            id: sub.id.clone(),
            customer: sub.customer.clone(),
            subscription: sub.id.clone(),
            status: "draft",
            reason: "upcoming",
            lines,
            discounts: self.standing_terms(&sub.id, due),
            tax_rate: self.tax_rate(&sub.id),
            from_balance: 0,
            balances: None,
            credited: 0,
            credited_after: 0,
            charge: None,
            paid_elsewhere: false,
            currency: price.currency.clone(),
            attempts: 0,
            created: self.now,
            finalized_at: None,
            paid_at: None,
            voided_at: None,
            uncollectible_at: None,
            next_step: None,
        };
        let balance = self.world.customers.get(&sub.customer).map_or(0, |customer| customer.balance);
        let total = invoice.total();
        invoice.from_balance = if total < 0 { total } else { total.min((-balance).max(0)) };
        invoice.balances = Some((balance, balance.saturating_add(invoice.from_balance)));
        Some(invoice)
    }

    /// Begins anew after a trial that ended without a payment method.
    pub(super) fn resume(&mut self, id: &str) {
        let now = self.now;
        let Some(interval) = self.interval_of(id) else { return };
        let Some(sub) = self.world.subscriptions.get_mut(id) else { return };
        (sub.status, sub.anchor, sub.cycle) = ("active", now, 0);
        sub.period = (now, later(now, &interval, 1));
        if let Some(invoice) = self.bill(id, "subscription_cycle") {
            self.emit("customer.subscription.resumed", ObjectKind::Subscription, id);
            self.finalize(&invoice);
            self.charge(&invoice);
        }
    }

    /// The end of one period of these prices.
    pub(super) fn one_period(&self, items: &[(String, Option<u64>)], start: DateTime<Utc>) -> DateTime<Utc> {
        let price = items.first().and_then(|(price, _)| self.world.prices.get(price));
        later(start, price.map_or("month", |price| price.interval.as_str()), 1)
    }

    /// Puts a subscription under a schedule whose one phase is the present period.
    pub(super) fn attach_schedule(&mut self, subscription: &str) -> Option<String> {
        let id = self.world.mint("sub_sched");
        let sub = self.world.subscriptions.get_mut(subscription)?;
        let items = sub.items.iter().map(|item| (item.price.clone(), item.quantity)).collect();
        let schedule = SimSchedule {
            id: id.clone(),
            created: self.now,
            customer: sub.customer.clone(),
            subscription: subscription.to_owned(),
            status: "active",
            phases: vec![SimPhase { start: sub.period.0, end: sub.period.1, items, prorate: false, discounts: None }],
            at: 0,
        };
        sub.schedule = Some(id.clone());
        self.world.schedules.insert(id.clone(), schedule);
        self.announce_schedule("subscription_schedule.created", &id);
        self.emit("customer.subscription.updated", ObjectKind::Subscription, subscription);
        Some(id)
    }

    /// When a subscription's schedule does something next.
    pub(super) fn next_phase(&self, sub: &SimSubscription) -> Option<DateTime<Utc>> {
        let schedule = self.world.schedules.get(sub.schedule.as_ref()?).filter(|one| one.status == "active")?;
        Some(match schedule.phases.get(schedule.at + 1) {
            Some(next) => next.start,
            None => schedule.phases.get(schedule.at)?.end,
        })
    }

    /// Begins a phase that is due, or releases a schedule that is over.
    pub(super) fn step_schedule(&mut self, id: &str) {
        let now = self.now;
        let Some(sub) = self.world.subscriptions.get(id) else { return };
        if self.next_phase(sub).is_none_or(|at| at > now) {
            return;
        }
        let Some(schedule_id) = sub.schedule.clone() else { return };
        let Some(schedule) = self.world.schedules.get_mut(&schedule_id) else { return };
        match schedule.phases.get(schedule.at + 1).cloned() {
            Some(next) => {
                schedule.at += 1;
                self.keep_discounts(id, next.discounts.as_deref());
                let items = self.items_of(id, &next.items);
                let Some(sub) = self.world.subscriptions.get(id) else { return };
                let restarts = self.bill_of_change(sub, &items, Prorate::Never, now).restarts;
                let mut used = Vec::new();
                if sub.flexible && next.prorate {
                    let gone = sub.items.iter().filter(|old| !items.iter().any(|item| item.price == old.price));
                    used.extend(gone.filter_map(|old| self.used_so_far(sub, old)));
                }
                if let Some(sub) = self.world.subscriptions.get_mut(id) {
                    sub.carried.extend(used);
                }
                // A period that ends at this instant is renewed by the subscription's own step, at the new prices.
                let ends = self.world.subscriptions.get(id).map(|sub| sub.period.1).filter(|end| *end <= now);
                let is_other_interval = restarts.is_some();
                self.put_items(id, items, restarts.filter(|_| ends.is_none()));
                if let (Some(end), true, Some(sub)) = (ends, is_other_interval, self.world.subscriptions.get_mut(id)) {
                    sub.anchor = end;
                }
                self.announce_schedule("subscription_schedule.updated", &schedule_id);
                self.emit("customer.subscription.updated", ObjectKind::Subscription, id);
            }
            None => self.release(&schedule_id, "subscription_schedule.completed"),
        }
    }

    /// Items of these prices, keeping the items that stay and the ids of those that go; each id once.
    pub(super) fn items_of(&mut self, id: &str, prices: &[(String, Option<u64>)]) -> Vec<SimItem> {
        let mut free = self.world.subscriptions.get(id).map(|sub| sub.items.clone()).unwrap_or_default();
        let stay = |(price, _): &(String, Option<u64>)| {
            let at = free.iter().position(|item| item.price == *price)?;
            Some(free.remove(at))
        };
        let staying: Vec<Option<SimItem>> = prices.iter().map(stay).collect();
        let mut free = free.into_iter();
        let item = |((price, quantity), stays): (&(String, Option<u64>), Option<SimItem>)| {
            if let Some(item) = stays {
                return SimItem { quantity: *quantity, ..item };
            }
            let id = free.next().map_or_else(|| self.world.mint("si"), |item| item.id);
            SimItem { id, price: price.clone(), quantity: *quantity, since: self.now, charged: None }
        };
        prices.iter().zip(staying).map(item).collect()
    }

    /// Lets go of a subscription, which stays as it is.
    pub(super) fn release(&mut self, schedule: &str, event: &str) {
        let Some(sim) = self.world.schedules.get_mut(schedule) else { return };
        sim.status = if event.ends_with("completed") { "completed" } else { "released" };
        let subscription = sim.subscription.clone();
        if let Some(sub) = self.world.subscriptions.get_mut(&subscription) {
            sub.schedule = None;
        }
        self.announce_schedule(event, schedule);
        self.emit("customer.subscription.updated", ObjectKind::Subscription, &subscription);
    }

    pub(super) fn announce_schedule(&mut self, event: &str, id: &str) {
        let Some(schedule) = self.world.schedules.get(id) else { return };
        let object = super::payload::schedule(schedule, self.livemode);
        self.announce(event, object, None);
    }
}
