//! Buying: the session that is made, and all that happens when the buyer pays.

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    PayloadShape,
    coupon::Wanted,
    engine::{Engine, later},
    world::{Metadata, SimCustomer, SimItem, SimSession, SimSubscription},
};
use crate::object::{ObjectId, ObjectKind};

/// What a checkout session is made for.
#[derive(Debug, Clone)]
pub struct CheckoutRequest {
    price: String,
    quantity: u64,
    trial_days: u32,
    email: String,
    customer: Option<String>,
    client_reference_id: Option<String>,
    coupon: Option<String>,
    automatic_tax: bool,
}

impl CheckoutRequest {
    /// One unit of a price, paid at once by a new customer.
    #[must_use]
    pub fn new(price: &str) -> Self {
        let email = "buyer@example.com".to_owned();
        Self {
            price: price.to_owned(),
            quantity: 1,
            trial_days: 0,
            email,
            customer: None,
            client_reference_id: None,
            coupon: None,
            automatic_tax: false,
        }
    }

    /// Changes the number of units.
    #[must_use]
    pub const fn with_quantity(mut self, quantity: u64) -> Self {
        self.quantity = quantity;
        self
    }

    /// Starts with a trial.
    #[must_use]
    pub const fn with_trial_days(mut self, days: u32) -> Self {
        self.trial_days = days;
        self
    }

    /// Takes a coupon off.
    #[must_use]
    pub fn with_coupon(mut self, coupon: &str) -> Self {
        self.coupon = Some(coupon.to_owned());
        self
    }

    /// Has Stripe count the tax.
    #[must_use]
    pub const fn with_automatic_tax(mut self) -> Self {
        self.automatic_tax = true;
        self
    }

    /// Buys for a customer that exists.
    #[must_use]
    pub fn with_customer(mut self, customer: &str) -> Self {
        self.customer = Some(customer.to_owned());
        self
    }

    /// Sets what a buyer can set in the address of a payment link.
    #[must_use]
    pub fn with_client_reference_id(mut self, text: &str) -> Self {
        self.client_reference_id = Some(text.to_owned());
        self
    }
}

/// What a completed checkout made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purchase {
    /// `cus_…`
    pub customer: ObjectId,
    /// `sub_…`
    pub subscription: ObjectId,
    /// `in_…`; `None` where there was nothing to charge for yet, but what will be used.
    pub invoice: Option<ObjectId>,
}

/// Makes an open session.
pub(super) fn open(engine: &mut Engine<'_>, request: CheckoutRequest) -> ObjectId {
    let id = engine.world.mint("cs_test");
    let session = SimSession {
        id: id.clone(),
        created: engine.now,
        status: "open",
        payment_status: "unpaid",
        customer: request.customer,
        subscription: None,
        client_reference_id: request.client_reference_id,
        lines: vec![(request.price, Some(request.quantity))],
        trial_days: request.trial_days,
        flexible: engine.shape == PayloadShape::Current,
        discount: engine.wanted(request.coupon.as_deref(), None),
        takes_codes: true,
        automatic_tax: request.automatic_tax,
        email: request.email,
        success_url: "https://app.example.com/billing?session={CHECKOUT_SESSION_ID}".to_owned(),
        cancel_url: "https://app.example.com/billing".to_owned(),
        metadata: Metadata::new(),
    };
    engine.world.sessions.insert(id.clone(), session);
    object_id(id)
}

#[expect(clippy::panic, reason = "the simulator mints ids that are ids")]
pub(super) fn object_id(text: String) -> ObjectId {
    match ObjectId::try_from(text) {
        Ok(id) => id,
        Err(why) => panic!("{why}"),
    }
}

pub(super) fn new_customer(engine: &mut Engine<'_>, email: Option<String>) -> String {
    let id = engine.world.mint("cus");
    let customer = SimCustomer {
        id: id.clone(),
        email,
        name: None,
        address: None,
        metadata: Metadata::new(),
        created: engine.now,
        deleted: false,
        declines: false,
        wants_confirmation: false,
        has_payment_method: false,
        balance: 0,
        currency: None,
    };
    engine.world.customers.insert(id.clone(), customer);
    id
}

/// What a subscription begins with.
pub(super) struct Beginning {
    pub(super) customer: String,
    pub(super) lines: Vec<(String, Option<u64>)>,
    pub(super) trial_days: u32,
    pub(super) flexible: bool,
    pub(super) discount: Option<Wanted>,
    pub(super) automatic_tax: bool,
    pub(super) metadata: Metadata,
}

/// Makes a subscription and its first invoice, and charges that.
pub(super) fn subscribe(engine: &mut Engine<'_>, beginning: Beginning) -> Option<(String, Option<String>)> {
    let now: DateTime<Utc> = engine.now;
    let Beginning { customer, lines, trial_days, flexible, discount, automatic_tax, metadata } = beginning;
    let interval = engine.world.prices.get(&lines.first()?.0)?.interval.clone();
    let trial_end = (trial_days > 0).then(|| now + TimeDelta::days(i64::from(trial_days)));
    let subscription = engine.world.mint("sub");
    let item = |(price, quantity)| SimItem { id: engine.world.mint("si"), price, quantity, since: now, charged: None };
    let items = lines.into_iter().map(item).collect();
    let sim = SimSubscription {
        id: subscription.clone(),
        customer,
        items,
        flexible,
        status: if trial_end.is_some() { "trialing" } else { "incomplete" },
        created: now,
        anchor: trial_end.unwrap_or(now),
        cycle: 0,
        period: (now, trial_end.unwrap_or_else(|| later(now, &interval, 1))),
        trial_end,
        trial_warned: false,
        cancel_at_period_end: false,
        canceled_at: None,
        ended_at: None,
        latest_invoice: None,
        pause: None,
        schedule: None,
        pending: None,
        carried: Vec::new(),
        discounts: Vec::new(),
        automatic_tax,
        metadata,
    };
    engine.world.subscriptions.insert(subscription.clone(), sim);
    if let Some(discount) = discount {
        engine.discount(&subscription, discount)?;
    }
    engine.emit("customer.subscription.created", ObjectKind::Subscription, &subscription);
    let mut lines = engine.lines(&subscription)?;
    if trial_end.is_some() {
        // A trial's first invoice is over nothing, and paid by that.
        lines.iter_mut().for_each(|line| line.amount = 0);
    } else {
        engine.note_charges(&subscription);
    }
    if lines.is_empty() {
        // Nothing but usage, in the flexible mode: there is nothing to pay yet.
        engine.set_status(&subscription, "active");
        return Some((subscription, None));
    }
    let invoice = engine.draft(&subscription, "subscription_create", lines)?;
    engine.finalize(&invoice);
    if trial_end.is_none() {
        engine.charge_first(&invoice);
    } else if let Some(first) = engine.world.invoices.get_mut(&invoice) {
        (first.status, first.paid_at) = ("paid", Some(now));
        engine.world.moving.remove(&invoice);
        engine.emit("invoice.paid", ObjectKind::Invoice, &invoice);
    }
    engine.emit("customer.subscription.updated", ObjectKind::Subscription, &subscription);
    Some((subscription, Some(invoice)))
}

/// The buyer pays. Everything happens within one second.
pub(super) fn complete(engine: &mut Engine<'_>, session_id: &str) -> Option<Purchase> {
    let session = engine.world.sessions.get(session_id).filter(|session| session.status == "open")?.clone();
    let is_known = session.lines.iter().all(|(price, _)| engine.world.prices.contains_key(price));
    if !is_known || session.lines.is_empty() {
        return None;
    }
    let is_new = session.customer.is_none();
    let customer = session.customer.clone().unwrap_or_else(|| new_customer(engine, Some(session.email.clone())));
    engine.world.customers.get_mut(&customer)?.has_payment_method = true;
    engine.emit(if is_new { "customer.created" } else { "customer.updated" }, ObjectKind::Customer, &customer);
    let beginning = Beginning {
        customer: customer.clone(),
        lines: session.lines,
        trial_days: session.trial_days,
        flexible: session.flexible,
        discount: session.discount,
        automatic_tax: session.automatic_tax,
        metadata: session.metadata,
    };
    let (subscription, invoice) = subscribe(engine, beginning)?;
    let session = engine.world.sessions.get_mut(session_id)?;
    session.status = "complete";
    session.payment_status = if session.trial_days > 0 { "no_payment_required" } else { "paid" };
    session.customer = Some(customer.clone());
    session.subscription = Some(subscription.clone());
    engine.emit("checkout.session.completed", ObjectKind::CheckoutSession, session_id);
    let invoice = invoice.map(object_id);
    Some(Purchase { customer: object_id(customer), subscription: object_id(subscription), invoice })
}
