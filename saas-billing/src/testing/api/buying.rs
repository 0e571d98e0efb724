//! Customers, checkout, portal.

use serde_json::json;

use super::{ApiError, Outcome, REFUSED, Request};
use crate::{
    object::ObjectKind,
    stripe::TestCard,
    testing::{
        PayloadShape,
        checkout::new_customer,
        world::{SimPortal, SimSession},
    },
};

impl Request<'_, '_> {
    fn show(&self, kind: ObjectKind, id: &str) -> Outcome {
        let what = match kind {
            ObjectKind::Customer => "customer",
            ObjectKind::CheckoutSession => "checkout.session",
            ObjectKind::Subscription => "subscription",
            ObjectKind::Invoice => "invoice",
            ObjectKind::Charge => "charge",
            ObjectKind::Refund => "refund",
            ObjectKind::Dispute => "dispute",
            ObjectKind::CreditNote => "credit_note",
        };
        if self.engine.world.unreachable.contains(id) {
            return Err(ApiError::new(429, REFUSED, "rate_limit", "unreachable"));
        }
        self.engine.show(self.shape, kind, id).ok_or_else(|| ApiError::not_found(what, id))
    }

    /// The object as it is after a call, with nothing left over of its parameters.
    pub(super) fn done(self, kind: ObjectKind, id: &str) -> Outcome {
        self.show(kind, id)
    }

    /// Reads one object.
    pub(super) fn one(mut self, kind: ObjectKind, id: &str) -> Outcome {
        std::mem::take(&mut self.params).finish()?;
        self.show(kind, id)
    }

    pub(super) fn many(mut self, kind: ObjectKind, url: &str, mut ids: Vec<String>) -> Outcome {
        let from = self.params.instant("created[gte]")?.map(|from| from.timestamp());
        if let Some(from) = from {
            let created = |id: &String| self.engine.show(self.shape, kind, id).and_then(|one| one["created"].as_i64());
            ids.retain(|id| created(id).is_some_and(|created| created >= from));
        }
        let (engine, shape) = (&*self.engine, self.shape);
        let show = |id: &str| engine.show(shape, kind, id);
        Self::window(self.params, url, ids, show)
    }

    /// A customer that is there and not deleted.
    pub(super) fn payer(&mut self, param: &str) -> Result<String, ApiError> {
        let id = self.params.need(param)?;
        let known = self.engine.world.customers.get(&id).is_some_and(|customer| !customer.deleted);
        if known { Ok(id) } else { Err(ApiError::no_such("customer", &id, param)) }
    }

    /// Prices and quantities of a list.
    pub(super) fn priced(&mut self, name: &str) -> Result<Vec<(String, Option<u64>)>, ApiError> {
        let mut lines = Vec::new();
        for entry in self.params.entries(name) {
            let param = format!("{entry}[price]");
            let price = self.params.need(&param)?;
            let known =
                self.engine.world.prices.get(&price).ok_or_else(|| ApiError::no_such("price", &price, &param))?;
            let metered = known.meter.is_some();
            let quantity = self.params.number(&format!("{entry}[quantity]"))?;
            if metered && quantity.is_some() {
                return Err(ApiError::invalid("parameter_unknown", &format!("{entry}[quantity]")));
            }
            lines.push((price, quantity.or((!metered).then_some(1))));
        }
        if lines.is_empty() { Err(ApiError::missing(name)) } else { Ok(lines) }
    }

    /// The billing mode that is asked for, since version 2025-06-30; without a word the flexible one since 2025-09-30.
    pub(super) fn flexible(&mut self, name: &str) -> Result<bool, ApiError> {
        let since = |date: &str| match self.version.as_str() {
            "" => self.shape == PayloadShape::Current,
            version => version >= date,
        };
        let (known, usual) = (since("2025-06-30"), since("2025-09-30"));
        let asked = if known { self.params.word(name, &[("flexible", true), ("classic", false)])? } else { None };
        Ok(asked.unwrap_or(usual))
    }

    pub(super) fn create_customer(mut self) -> Outcome {
        let email = self.params.take("email");
        if email.as_deref().is_some_and(|email| !email.contains('@')) {
            return Err(ApiError::invalid("email_invalid", "email"));
        }
        let (name, metadata) = (self.params.take("name"), self.params.map("metadata"));
        if let Some(clock) = self.params.take("test_clock")
            && !self.engine.world.test_clocks.contains_key(&clock)
        {
            return Err(ApiError::no_such("test_clock", &clock, "test_clock"));
        }
        std::mem::take(&mut self.params).finish()?;
        let id = new_customer(self.engine, email);
        if let Some(customer) = self.engine.world.customers.get_mut(&id) {
            (customer.name, customer.metadata) = (name, metadata);
        }
        self.engine.emit("customer.created", ObjectKind::Customer, &id);
        self.done(ObjectKind::Customer, &id)
    }

    pub(super) fn update_customer(mut self, id: &str) -> Outcome {
        let email = self.params.take("email");
        if email.as_deref().is_some_and(|email| !email.contains('@')) {
            return Err(ApiError::invalid("email_invalid", "email"));
        }
        let (name, address) = (self.params.take("name"), self.params.map("address"));
        let card = match self.params.take("invoice_settings[default_payment_method]") {
            Some(method) => Some(self.card_of(id, &method)?),
            None => None,
        };
        std::mem::take(&mut self.params).finish()?;
        let customer = self.engine.world.customers.get_mut(id).filter(|customer| !customer.deleted);
        let customer = customer.ok_or_else(|| ApiError::not_found("customer", id))?;
        customer.email = email.or(customer.email.take());
        customer.name = name.or(customer.name.take());
        if let Some(card) = card {
            (customer.has_payment_method, customer.declines) = (true, card == TestCard::Declines);
            customer.wants_confirmation = false;
        }
        if !address.is_empty() {
            customer.address = Some(address.into_iter().filter(|(_, text)| !text.is_empty()).collect());
        }
        self.engine.emit("customer.updated", ObjectKind::Customer, id);
        self.done(ObjectKind::Customer, id)
    }

    /// Only the cards that Stripe has for tests.
    pub(super) fn attach_card(mut self, id: &str) -> Outcome {
        let customer = self.params.take("customer").ok_or_else(|| ApiError::missing("customer"))?;
        std::mem::take(&mut self.params).finish()?;
        let card = TestCard::ALL.into_iter().find(|card| card.id() == id);
        let card = card.ok_or_else(|| ApiError::not_found("payment_method", id))?;
        if self.engine.world.customers.get(&customer).is_none_or(|customer| customer.deleted) {
            return Err(ApiError::no_such("customer", &customer, "customer"));
        }
        let method = self.engine.world.mint("pm");
        self.engine.world.cards.insert(method.clone(), (customer.clone(), card));
        Ok(json!({"id": method, "object": "payment_method", "type": "card", "customer": customer, "livemode": false}))
    }

    fn card_of(&self, customer: &str, method: &str) -> Result<TestCard, ApiError> {
        let card = self.engine.world.cards.get(method).filter(|(of, _)| of == customer);
        card.map(|(_, card)| *card).ok_or_else(|| ApiError::no_such("payment_method", method, "invoice_settings"))
    }

    pub(super) fn list_customers(self) -> Outcome {
        let fits = |customer: &crate::testing::world::SimCustomer| !customer.deleted;
        let ids = Self::all(&self.engine.world.customers, fits);
        self.many(ObjectKind::Customer, "/v1/customers", ids)
    }

    pub(super) fn customer(self, id: &str) -> Outcome {
        if self.engine.world.customers.get(id).is_some_and(|customer| customer.deleted) {
            return Ok(json!({"id": id, "object": "customer", "deleted": true}));
        }
        self.one(ObjectKind::Customer, id)
    }

    pub(super) fn delete_customer(self, id: &str) -> Outcome {
        let known = self.engine.world.customers.get(id).is_some_and(|customer| !customer.deleted);
        if !known {
            return Err(ApiError::not_found("customer", id));
        }
        self.engine.delete_customer(id);
        Ok(json!({"id": id, "object": "customer", "deleted": true}))
    }

    pub(super) fn open_checkout(mut self) -> Outcome {
        if self.params.need("mode")? != "subscription" {
            return Err(ApiError::invalid("parameter_invalid_string_enum", "mode"));
        }
        let customer = self.payer("customer")?;
        let lines = self.priced("line_items")?;
        let (success_url, cancel_url) = (self.params.need("success_url")?, self.params.need("cancel_url")?);
        let trial_days = self.params.number("subscription_data[trial_period_days]")?.unwrap_or(0);
        let flexible = self.flexible("subscription_data[billing_mode][type]")?;
        let _ = self.params.word("payment_method_collection", &[("always", ()), ("if_required", ())])?;
        let end = "subscription_data[trial_settings][end_behavior][missing_payment_method]";
        let _ = self.params.word(end, &[("cancel", ()), ("create_invoice", ()), ("pause", ())])?;
        let _ = self.params.flag("tax_id_collection[enabled]")?;
        let takes_codes = self.params.flag("allow_promotion_codes")? == Some(true);
        let automatic_tax = self.params.flag("automatic_tax[enabled]")? == Some(true);
        let discount = self.discount()?;
        if takes_codes && discount.is_some() {
            return Err(ApiError::invalid("parameter_invalid", "allow_promotion_codes"));
        }
        for word in ["customer_update[address]", "customer_update[name]"] {
            let _ = self.params.word(word, &[("auto", ()), ("never", ())])?;
        }
        let metadata = self.params.map("metadata");
        let _ = self.params.map("subscription_data[metadata]");
        let client_reference_id = self.params.take("client_reference_id");
        std::mem::take(&mut self.params).finish()?;
        let engine = &mut *self.engine;
        let email = engine.world.customers.get(&customer).and_then(|customer| customer.email.clone());
        let id = engine.world.mint("cs_test");
        let session = SimSession {
            id: id.clone(),
            created: engine.now,
            status: "open",
            payment_status: "unpaid",
            customer: Some(customer),
            subscription: None,
            client_reference_id,
            lines,
            trial_days,
            flexible,
            discount,
            takes_codes,
            automatic_tax,
            email: email.unwrap_or_default(),
            success_url,
            cancel_url,
            metadata,
        };
        engine.world.sessions.insert(id.clone(), session);
        self.done(ObjectKind::CheckoutSession, &id)
    }

    pub(super) fn list_checkouts(mut self) -> Outcome {
        let (customer, status) = (self.params.take("customer"), self.params.take("status"));
        let fits = |session: &SimSession| {
            (customer.is_none() || session.customer == customer)
                && status.as_deref().is_none_or(|status| session.status == status)
        };
        let ids = Self::all(&self.engine.world.sessions, fits);
        self.many(ObjectKind::CheckoutSession, "/v1/checkout/sessions", ids)
    }

    pub(super) fn checkout(self, id: &str) -> Outcome {
        self.one(ObjectKind::CheckoutSession, id)
    }

    pub(super) fn expire_checkout(mut self, id: &str) -> Outcome {
        std::mem::take(&mut self.params).finish()?;
        let session =
            self.engine.world.sessions.get_mut(id).ok_or_else(|| ApiError::not_found("checkout.session", id))?;
        if session.status != "open" {
            let message = "Only Checkout Sessions with a status in [\"open\"] can be expired.";
            return Err(ApiError::new(400, REFUSED, "", message));
        }
        session.status = "expired";
        self.engine.emit("checkout.session.expired", ObjectKind::CheckoutSession, id);
        self.done(ObjectKind::CheckoutSession, id)
    }

    pub(super) fn open_portal(mut self) -> Outcome {
        let customer = self.payer("customer")?;
        let return_url = self.params.need("return_url")?;
        let configuration = self.params.take("configuration");
        std::mem::take(&mut self.params).finish()?;
        let engine = &mut *self.engine;
        let id = engine.world.mint("bps");
        let address = engine.world.address.clone().unwrap_or_else(|| "https://stripe.invalid".to_owned());
        let portal = SimPortal { created: engine.now, customer, return_url };
        let object = json!({
            "id": id, "object": "billing_portal.session", "configuration": configuration,
            "created": portal.created.timestamp(), "customer": portal.customer, "flow": null,
            "livemode": engine.livemode, "locale": null, "on_behalf_of": null, "return_url": portal.return_url,
            "url": format!("{address}/portal/{id}")
        });
        engine.world.portals.insert(id, portal);
        Ok(object)
    }
}
