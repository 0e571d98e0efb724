//! What a test or an example calls: the customer's acts, the passing of time, the deliveries.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{Clock, InvalidInput, TestClock};
use secrecy::SecretString;
use serde_json::{Value, json};

use super::{
    api::{self, ApiRequest, ApiResponse, Manner},
    chaos::Chaos,
    checkout::{self, CheckoutRequest, Purchase, new_customer, object_id},
    engine::Engine,
    fault::Fault,
    payload::PayloadShape,
    world::{AfterRetries, Metadata, Pricing, SimEndpoint, SimEvent, SimPrice, SimSubscription, World},
};
use crate::{
    object::{Interval, ObjectId, ObjectKind},
    signature::StripeSecret,
};

/// A stateful Stripe in the process, in test mode.
pub struct StripeSimulator {
    secret: StripeSecret,
    clock: TestClock,
    shape: PayloadShape,
    livemode: bool,
    after_retries: AfterRetries,
    world: Mutex<World>,
}

/// One HTTP request that Stripe would make.
#[derive(Clone, PartialEq, Eq)]
pub struct Delivery {
    /// `evt_…`
    pub event: String,
    /// Such as `invoice.paid`.
    pub event_type: String,
    /// The request's body.
    pub body: Vec<u8>,
    /// The `Stripe-Signature` header.
    pub signature: String,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("event", &self.event)
            .field("event_type", &self.event_type)
            .finish_non_exhaustive()
    }
}

/// Not its world: it holds addresses, as the real one does.
impl fmt::Debug for StripeSimulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StripeSimulator").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl StripeSimulator {
    /// An empty Stripe that signs with `secret` and lives by `clock`, which it moves in [`advance`](Self::advance).
    ///
    /// # Errors
    /// When the secret is none.
    pub fn new(secret: &str, clock: TestClock) -> Result<Self, InvalidInput> {
        let secret = StripeSecret::new(SecretString::from(secret))?;
        let (shape, after_retries) = (PayloadShape::default(), AfterRetries::default());
        Ok(Self { secret, clock, shape, livemode: false, after_retries, world: Mutex::default() })
    }

    /// Writes payloads of another API version.
    #[must_use]
    pub const fn with_shape(mut self, shape: PayloadShape) -> Self {
        self.shape = shape;
        self
    }

    /// Does something else when the last retry has failed.
    #[must_use]
    pub const fn with_after_retries(mut self, after: AfterRetries) -> Self {
        self.after_retries = after;
        self
    }

    /// The secret of its webhook endpoint.
    #[must_use]
    pub fn secret(&self) -> StripeSecret {
        self.secret.clone()
    }

    /// Makes a recurring price under an id of choice.
    pub fn create_price(&self, id: &str, unit_amount: i64, currency: &str, interval: &Interval) {
        let price = SimPrice {
            id: id.to_owned(),
            product: format!("prod_of_{id}"),
            pricing: Pricing::Unit(unit_amount),
            currency: currency.to_owned(),
            interval: interval.as_str().to_owned(),
            meter: None,
            lookup_key: None,
            active: true,
            metadata: Metadata::new(),
        };
        self.world().prices.insert(id.to_owned(), price);
    }

    /// Registers a webhook endpoint for these types, or `*`, as the dashboard does. Deliveries are still the caller's to make.
    pub fn add_endpoint(&self, url: &str, types: &[&str], api_version: Option<&str>) -> ObjectId {
        object_id(self.act(|engine| {
            let id = engine.world.mint("we");
            let endpoint = SimEndpoint {
                id: id.clone(),
                url: url.to_owned(),
                enabled: true,
                enabled_events: types.iter().map(|one| (*one).to_owned()).collect(),
                api_version: api_version.map(str::to_owned),
            };
            engine.world.endpoints.insert(id.clone(), endpoint);
            id
        }))
    }

    /// Disables an endpoint, as Stripe does after days of failures, or enables it again.
    pub fn set_endpoint_enabled(&self, endpoint: &ObjectId, enabled: bool) {
        if let Some(endpoint) = self.world().endpoints.get_mut(endpoint.as_str()) {
            endpoint.enabled = enabled;
        }
    }

    /// Makes a customer, as the API does.
    pub fn create_customer(&self, email: &str) -> ObjectId {
        object_id(self.act(|engine| {
            let id = new_customer(engine, Some(email.to_owned()));
            engine.emit("customer.created", ObjectKind::Customer, &id);
            id
        }))
    }

    /// Makes a checkout session, as the API does.
    pub fn checkout(&self, request: CheckoutRequest) -> ObjectId {
        self.act(|engine| checkout::open(engine, request))
    }

    /// The buyer pays. Everything happens within one second, as it often does.
    ///
    /// # Errors
    /// When there is no such open session, or no such price.
    pub fn complete_checkout(&self, session: &ObjectId) -> Result<Purchase, InvalidInput> {
        self.act(|engine| checkout::complete(engine, session.as_str())).ok_or_else(|| {
            InvalidInput::new("the checkout session", "is not open or has no price", "make one with `checkout`")
        })
    }

    /// From now on the customer's charges are declined, until [`pay`](Self::pay).
    pub fn fail_next_payment(&self, customer: &ObjectId) {
        if let Some(customer) = self.world().customers.get_mut(customer.as_str()) {
            customer.declines = true;
        }
    }

    /// From now on the customer's bank wants to hear from the customer before it pays (3-D Secure), until [`pay`](Self::pay)
    /// or a payment on an invoice's page.
    pub fn want_confirmation(&self, customer: &ObjectId) {
        if let Some(customer) = self.world().customers.get_mut(customer.as_str()) {
            customer.wants_confirmation = true;
        }
    }

    /// The customer gives a card that works and pays whatever is open.
    pub fn pay(&self, customer: &ObjectId) {
        self.act(|engine| {
            if let Some(customer) = engine.world.customers.get_mut(customer.as_str()) {
                (customer.declines, customer.has_payment_method) = (false, true);
                customer.wants_confirmation = false;
            }
            let mine =
                |invoice: &&super::world::SimInvoice| invoice.customer == customer.as_str() && invoice.status == "open";
            let open: Vec<String> =
                engine.world.invoices.values().filter(mine).map(|invoice| invoice.id.clone()).collect();
            for invoice in open {
                engine.charge(&invoice);
            }
        });
    }

    /// Changes the number of units.
    pub fn update_quantity(&self, subscription: &ObjectId, quantity: u64) {
        self.update(subscription, |sub| {
            if let Some(item) = sub.items.first_mut() {
                item.quantity = Some(quantity);
            }
        });
    }

    /// Moves to another price.
    pub fn update_price(&self, subscription: &ObjectId, price: &str) {
        self.update(subscription, |sub| {
            if let Some(item) = sub.items.first_mut() {
                price.clone_into(&mut item.price);
            }
        });
    }

    /// Ends with the present period, or not after all.
    pub fn cancel_at_period_end(&self, subscription: &ObjectId, cancel: bool) {
        self.update(subscription, |sub| sub.cancel_at_period_end = cancel);
    }

    /// Pauses collection (`void`, `keep_as_draft`, `mark_uncollectible`), or resumes it.
    pub fn pause_collection(&self, subscription: &ObjectId, behavior: Option<&'static str>) {
        self.update(subscription, |sub| sub.pause = behavior.map(|behavior| (behavior.to_owned(), None)));
    }

    /// Ends at once.
    pub fn cancel(&self, subscription: &ObjectId) {
        self.act(|engine| engine.end(subscription.as_str()));
    }

    /// Withdraws an open invoice, or writes it off.
    pub fn close_invoice(&self, invoice: &ObjectId, uncollectible: bool) {
        self.act(|engine| engine.close(invoice.as_str(), uncollectible));
    }

    /// Deletes a customer; its subscriptions end at once.
    pub fn delete_customer(&self, customer: &ObjectId) {
        self.act(|engine| engine.delete_customer(customer.as_str()));
    }

    /// Takes the payment method away, so that a trial ends without one.
    pub fn remove_payment_method(&self, customer: &ObjectId) {
        if let Some(customer) = self.world().customers.get_mut(customer.as_str()) {
            customer.has_payment_method = false;
        }
    }

    /// Announces a change without content, as Stripe's thin events do.
    pub fn notify_thin(&self, event_type: &str, object: &str, id: &ObjectId) {
        self.act(|engine| {
            let event = engine.world.mint("evt");
            let body = json!({
                "id": event, "object": "v2.core.event", "type": event_type, "livemode": engine.livemode,
                "created": engine.now.to_rfc3339_opts(chrono::SecondsFormat::Millis, true), "context": null,
                "related_object": {"id": id, "type": object, "url": format!("/v1/{object}s/{id}")}
            });
            let body = serde_json::to_vec_pretty(&body).unwrap_or_default();
            let event = SimEvent { id: event, event_type: event_type.to_owned(), created: engine.now, body };
            engine.world.events.push(event.clone());
            engine.world.queue.push(event);
        });
    }

    /// Tells what readings could not be counted, as Stripe does some minutes after it has taken them.
    pub fn report_misread(&self) {
        self.act(|engine| engine.tell_misread());
    }

    /// Removes a meter, as one of another account is not there.
    pub fn forget_meter(&self, id: &str) {
        self.world().meters.remove(id);
    }

    /// A person changes a product in the dashboard.
    pub fn edit_product(&self, id: &str, name: &str, active: bool) {
        if let Some(product) = self.world().products.get_mut(id) {
            name.clone_into(&mut product.name);
            product.active = active;
        }
    }

    /// A person archives a price in the dashboard, and takes its lookup key away.
    pub fn edit_price(&self, id: &str, active: bool, lookup_key: Option<&str>) {
        if let Some(price) = self.world().prices.get_mut(id) {
            price.active = active;
            price.lookup_key = lookup_key.map(str::to_owned);
        }
    }

    /// Lets time pass, step by step: renewals, retries and the ends of trials happen at their own instants.
    pub fn advance(&self, by: TimeDelta) {
        let end = self.clock.now() + by;
        while let Some(next) = self.act(|engine| engine.next_step(end)) {
            self.clock.set(next.max(self.clock.now()));
            self.act(|engine| engine.step());
        }
        self.clock.set(end);
    }

    /// What is to be delivered, in the order in which it happened, signed now.
    pub fn deliveries(&self) -> Vec<Delivery> {
        let queue = std::mem::take(&mut self.world().queue);
        queue.iter().map(|event| self.deliver(event)).collect()
    }

    /// As [`deliveries`](Self::deliveries), over a bad network. What it delays comes with the next call.
    pub fn deliveries_through(&self, chaos: Chaos) -> Vec<Delivery> {
        let now = {
            // One lock: what happens meanwhile comes behind what is kept back.
            let mut world = self.world();
            let (now, later) = chaos.disturb(std::mem::take(&mut world.queue));
            world.queue = later;
            now
        };
        now.iter().map(|event| self.deliver(event)).collect()
    }

    /// Everything that ever happened, signed now: what a person resends from the dashboard.
    pub fn all_events(&self) -> Vec<Delivery> {
        let events = self.world().events.clone();
        events.iter().map(|event| self.deliver(event)).collect()
    }

    /// Signs any body as if Stripe had sent it now.
    #[must_use]
    pub fn sign(&self, body: &[u8]) -> String {
        self.secret.sign(body, self.clock.now())
    }

    /// Makes reads of an object fail until it is reachable again.
    pub fn set_reachable(&self, id: &ObjectId, reachable: bool) {
        let unreachable = &mut self.world().unreachable;
        if reachable {
            unreachable.remove(id.as_str())
        } else {
            unreachable.insert(id.as_str().to_owned())
        };
    }

    /// The next calls of the API go wrong, one after the other in these ways.
    pub fn inject(&self, faults: impl IntoIterator<Item = Fault>) {
        self.world().faults.extend(faults.into_iter().map(Some));
    }

    /// As [`inject`](Self::inject), after so many calls of the API that go well.
    pub fn inject_after(&self, calls: usize, faults: impl IntoIterator<Item = Fault>) {
        let well = std::iter::repeat_n(None, calls);
        self.world().faults.extend(well.chain(faults.into_iter().map(Some)));
    }

    /// From now on all calls go well. Says how many faults no call has met.
    pub fn heal(&self) -> usize {
        std::mem::take(&mut self.world().faults).into_iter().flatten().count()
    }

    /// From now on only this API key is accepted; before, every secret key of test mode is.
    pub fn accept_only(&self, key: &str) {
        self.world().accepted = Some(key.to_owned());
    }

    /// Forgets all idempotency keys, as Stripe does after a day.
    pub fn forget_keys(&self) {
        self.world().saved.clear();
    }

    /// Removes a price, as one of another account is not there.
    pub fn forget_price(&self, id: &str) {
        self.world().prices.remove(id);
    }

    /// How many calls of the API there were, whatever became of them.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.world().calls
    }

    /// All ids of a kind, in the order in which they were made; customers that are not deleted, subscriptions that have not
    /// ended.
    #[must_use]
    pub fn living(&self, kind: ObjectKind) -> Vec<ObjectId> {
        let world = self.world();
        let ids: Vec<String> = match kind {
            ObjectKind::Customer => {
                world.customers.values().filter(|one| !one.deleted).map(|one| one.id.clone()).collect()
            }
            ObjectKind::CheckoutSession => world.sessions.keys().cloned().collect(),
            ObjectKind::Subscription => {
                world.subscriptions.values().filter(|one| one.ended_at.is_none()).map(|one| one.id.clone()).collect()
            }
            ObjectKind::Invoice => world.invoices.keys().cloned().collect(),
            ObjectKind::Charge => world.charges.keys().cloned().collect(),
            ObjectKind::Refund => world.refunds.keys().cloned().collect(),
            ObjectKind::Dispute => world.disputes.keys().cloned().collect(),
            ObjectKind::CreditNote => world.credit_notes.keys().cloned().collect(),
        };
        ids.into_iter().map(object_id).collect()
    }

    /// The present instant of its clock.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    pub(super) const fn is_live(&self) -> bool {
        self.livemode
    }

    /// Answers one call of the API.
    pub(super) fn answer(&self, request: &ApiRequest) -> (ApiResponse, Manner) {
        if request.method == "POST" && request.path.starts_with("/v1/test_helpers/test_clocks/") {
            match api::advance_to(request) {
                Some(to) if to < self.clock.now() => return api::refuse("frozen_time"),
                Some(to) => self.advance(to - self.clock.now()),
                None => {}
            }
            let path = request.path.trim_end_matches("/advance").to_owned();
            let shown = ApiRequest { method: "GET".to_owned(), path, ..request.clone() };
            return self.act(|engine| api::handle(engine, &shown));
        }
        self.act(|engine| api::handle(engine, request))
    }

    pub(super) fn set_address(&self, address: &str) {
        self.world().address = Some(address.to_owned());
    }

    /// An object as the API shows it now.
    #[must_use]
    pub fn object(&self, kind: ObjectKind, id: &ObjectId) -> Option<Value> {
        self.act(|engine| engine.render(kind, id.as_str()))
    }

    fn update(&self, subscription: &ObjectId, change: impl FnOnce(&mut SimSubscription)) {
        self.act(|engine| {
            if let Some(sub) = engine.world.subscriptions.get_mut(subscription.as_str()) {
                change(sub);
            }
            engine.emit("customer.subscription.updated", ObjectKind::Subscription, subscription.as_str());
        });
    }

    fn deliver(&self, event: &SimEvent) -> Delivery {
        let signature = self.sign(&event.body);
        Delivery { event: event.id.clone(), event_type: event.event_type.clone(), body: event.body.clone(), signature }
    }

    pub(super) fn act<R>(&self, act: impl FnOnce(&mut Engine<'_>) -> R) -> R {
        let mut world = self.world();
        act(&mut Engine {
            world: &mut world,
            shape: self.shape,
            livemode: self.livemode,
            after_retries: self.after_retries,
            now: self.clock.now(),
            cause: None,
        })
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
