//! From commands and queries to requests of Stripe's API. Pure.

use saas_core::InvalidInput;
use secrecy::SecretString;

use super::form::{Form, escape};
use crate::{
    object::{InvoiceStatus, ObjectId, ObjectKind},
    provider::{
        Aggregation, Cancellation, Command, CustomerUpdate, ItemChange, MeterReading, NewCheckout, NewCustomer,
        NewDiscount, NewPrice, NewSubscription, OnFailedPayment, PageLimit, Phase, PricedBy, Proration, Query,
        SubscriptionChange, Tier, TrialPayment,
    },
};

/// Versions begin with their date. Since this one, an invoice says what was paid by other means, to calls that ask.
const PAID_ELSEWHERE_SINCE: &str = "2026-05-27";

/// Since this one, where periods count from is said by an object.
const ANCHOR_HAS_TYPE_SINCE: &str = "2026-09-30";

/// How Stripe is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Post,
    Delete,
}

impl Verb {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }
}

/// One request, without host and headers.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) verb: Verb,
    pub(crate) path: String,
    pub(crate) form: Form,
    /// The body of a call of the second generation, in place of the form.
    pub(crate) json: Option<String>,
    /// Where and as whom, for the stream of readings: a host and a token of its own.
    pub(crate) session: Option<SecretString>,
}

impl Call {
    fn new(verb: Verb, path: impl Into<String>) -> Self {
        Self { verb, path: path.into(), form: Form::default(), json: None, session: None }
    }

    pub(super) fn post(path: impl Into<String>) -> Self {
        Self::new(Verb::Post, path)
    }

    pub(super) fn get(path: impl Into<String>) -> Self {
        Self::new(Verb::Get, path)
    }

    #[cfg(feature = "testing")]
    pub(super) fn delete(path: impl Into<String>) -> Self {
        Self::new(Verb::Delete, path)
    }

    pub(super) fn with(mut self, fill: impl FnOnce(&mut Form)) -> Self {
        fill(&mut self.form);
        self
    }

    /// Path and query; parameters of a POST are its body.
    pub(crate) fn target(&self) -> String {
        if self.verb == Verb::Post || self.form.is_empty() {
            return self.path.clone();
        }
        format!("{}?{}", self.path, self.form.encode())
    }

    /// The body; empty but for a POST.
    pub(crate) fn body(&self) -> String {
        match &self.json {
            Some(json) => json.clone(),
            None if self.verb == Verb::Post => self.form.encode(),
            None => String::new(),
        }
    }

    /// The request that opens a session of the stream.
    pub(crate) fn open_stream() -> Self {
        Self { json: Some("{}".to_owned()), ..Self::post("/v2/billing/meter_event_session") }
    }

    /// The request that hands readings over.
    pub(crate) fn stream(readings: &[MeterReading], session: SecretString) -> Self {
        let event = |reading: &MeterReading| {
            serde_json::json!({
                "event_name": reading.event_name, "identifier": reading.identifier,
                "timestamp": reading.at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
                "payload": {"stripe_customer_id": reading.customer, "value": reading.value.to_string()},
            })
        };
        let events: Vec<_> = readings.iter().map(event).collect();
        let json = serde_json::json!({"events": events}).to_string();
        Self { json: Some(json), session: Some(session), ..Self::post("/v2/billing/meter_event_stream") }
    }

    /// The request of an event of the second generation.
    pub(crate) fn event(id: &ObjectId) -> Self {
        Self::get(at("/v2/core/events", id, ""))
    }

    /// The request of a command, in a version of the API.
    pub(crate) fn of(command: &Command, version: &str) -> Self {
        match command {
            Command::CreateCustomer(new) => Self::post("/v1/customers").with(|form| customer(form, new)),
            Command::UpdateCustomer(update) => {
                Self::post(at("/v1/customers", &update.customer, "")).with(|form| details(form, update))
            }
            Command::OpenCheckout(new) => Self::post("/v1/checkout/sessions").with(|form| {
                checkout(form, new);
                flexible(form, "subscription_data[billing_mode][type]", version);
            }),
            Command::ExpireCheckout(session) => Self::post(at("/v1/checkout/sessions", session, "/expire")),
            Command::OpenPortal(new) => Self::post("/v1/billing_portal/sessions").with(|form| {
                form.put("customer", &new.customer).put("return_url", &new.back);
                form.put_some("configuration", new.configuration.as_ref());
            }),
            Command::CreateSubscription(new) => Self::post("/v1/subscriptions").with(|form| {
                subscription(form, new);
                flexible(form, "billing_mode[type]", version);
            }),
            Command::ChangeSubscription(change) => {
                Self::post(at("/v1/subscriptions", &change.subscription, "")).with(|form| {
                    items(form, "items", &change.items);
                    form.put("proration_behavior", proration(change.proration));
                    form.put_some("proration_date", change.proration_date.map(|at| at.timestamp()));
                    form.put("payment_behavior", on_change(change.on_failed_payment));
                })
            }
            Command::CancelSubscription { subscription, when } => cancel(subscription, *when),
            Command::PauseCollection { subscription, behavior, resumes_at } => {
                Self::post(at("/v1/subscriptions", subscription, "")).with(|form| match behavior {
                    Some(behavior) => {
                        form.put("pause_collection[behavior]", behavior.as_str());
                        form.put_some("pause_collection[resumes_at]", resumes_at.map(|at| at.timestamp()));
                    }
                    None => {
                        form.put("pause_collection", "");
                    }
                })
            }
            Command::ResumeSubscription(id) => Self::post(at("/v1/subscriptions", id, "/resume")).with(|form| {
                form.put(
                    if version >= ANCHOR_HAS_TYPE_SINCE {
                        "billing_cycle_anchor[type]"
                    } else {
                        "billing_cycle_anchor"
                    },
                    "now",
                );
            }),
            Command::AttachSchedule(subscription) => Self::post("/v1/subscription_schedules").with(|form| {
                form.put("from_subscription", subscription);
            }),
            Command::PlanPhases { schedule, phases } => Self::post(at("/v1/subscription_schedules", schedule, ""))
                .with(|form| {
                    form.put("end_behavior", "release");
                    phases.iter().enumerate().for_each(|(n, phase)| plan_phase(form, n, phase));
                }),
            Command::ReleaseSchedule(id) => Self::post(at("/v1/subscription_schedules", id, "/release")),
            Command::PayInvoice(id) => Self::post(at("/v1/invoices", id, "/pay")),
            Command::VoidInvoice(id) => Self::post(at("/v1/invoices", id, "/void")),
            Command::WriteOffInvoice(id) => Self::post(at("/v1/invoices", id, "/mark_uncollectible")),
            Command::CreateProduct(new) => Self::post("/v1/products").with(|form| {
                form.put("id", &new.id).put("name", &new.name).put_map("metadata", &new.metadata);
            }),
            Command::ChangeProduct(new) => Self::post(at("/v1/products", &new.id, "")).with(|form| {
                form.put("name", &new.name).put("active", true).put_map("metadata", &new.metadata);
            }),
            Command::AttachFeature { product, feature } => {
                Self::post(at("/v1/products", product, "/features")).with(|form| {
                    form.put("entitlement_feature", feature);
                })
            }
            Command::DetachFeature { product, attachment } => {
                Self::new(Verb::Delete, at(&at("/v1/products", product, "/features"), attachment, ""))
            }
            Command::CreatePrice(new) => Self::post("/v1/prices").with(|form| price(form, new)),
            Command::ArchivePrice(id) => Self::post(at("/v1/prices", id, "")).with(|form| {
                form.put("active", false);
            }),
            Command::OfferPrice { price, lookup_key, metadata } => {
                Self::post(at("/v1/prices", price, "")).with(|form| {
                    form.put("active", true).put("lookup_key", lookup_key).put("transfer_lookup_key", true);
                    form.put_map("metadata", metadata);
                })
            }
            Command::CreateFeature(new) => Self::post("/v1/entitlements/features").with(|form| {
                form.put("lookup_key", &new.lookup_key).put("name", &new.name).put_map("metadata", &new.metadata);
            }),
            Command::ChangeFeature { feature, name, metadata } => {
                Self::post(at("/v1/entitlements/features", feature, "")).with(|form| {
                    form.put("name", name).put("active", true).put_map("metadata", metadata);
                })
            }
            Command::CreateMeter(new) => Self::post("/v1/billing/meters").with(|form| {
                let formula = match new.aggregation {
                    Aggregation::Sum => "sum",
                    Aggregation::Count => "count",
                    Aggregation::Last => "last",
                };
                form.put("display_name", &new.name).put("event_name", &new.event_name);
                form.put("default_aggregation[formula]", formula);
            }),
            Command::RenameMeter { meter, name } => Self::post(at("/v1/billing/meters", meter, "")).with(|form| {
                form.put("display_name", name);
            }),
            Command::ReactivateMeter(meter) => Self::post(at("/v1/billing/meters", meter, "/reactivate")),
            Command::CancelReading { event_name, identifier } => Self::post("/v1/billing/meter_event_adjustments")
                .with(|form| {
                    form.put("event_name", event_name).put("type", "cancel").put("cancel[identifier]", identifier);
                }),
            Command::ReportUsage(reading) => Self::post("/v1/billing/meter_events").with(|form| report(form, reading)),
        }
    }

    /// The request of a preview.
    pub(crate) fn preview(change: &SubscriptionChange) -> Self {
        Self::post("/v1/invoices/create_preview").with(|form| {
            form.put("subscription", &change.subscription);
            items(form, "subscription_details[items]", &change.items);
            form.put("subscription_details[proration_behavior]", proration(change.proration));
            let at = change.proration_date.map(|at| at.timestamp());
            form.put_some("subscription_details[proration_date]", at);
        })
    }

    /// The request of one object, in a version of the API. Of a subscription, the terms of its discounts are asked for too.
    pub(crate) fn fetch(kind: ObjectKind, id: &ObjectId, version: &str) -> Self {
        let terms: &[&str] = match kind {
            // Versions begin with their date; since this one a coupon stands under `source`, as an id. Of an item's discount
            // it would be a fifth level, and Stripe expands four.
            ObjectKind::Subscription if version >= "2025-09-30" => &["discounts.source.coupon", "items.data.discounts"],
            ObjectKind::Subscription => &["discounts", "items.data.discounts"],
            ObjectKind::Invoice if version >= PAID_ELSEWHERE_SINCE => &["amount_paid_off_stripe"],
            ObjectKind::Invoice
            | ObjectKind::Customer
            | ObjectKind::CheckoutSession
            | ObjectKind::Charge
            | ObjectKind::Refund
            | ObjectKind::Dispute
            | ObjectKind::CreditNote => &[],
        };
        Self::get(at(list_of(kind), id, "")).with(|form| {
            for (n, term) in terms.iter().enumerate() {
                form.put(format!("expand[{n}]"), term);
            }
        })
    }

    /// The request of a page.
    ///
    /// # Errors
    /// When Stripe does not offer such a list.
    pub(crate) fn list(
        query: &Query,
        after: Option<&ObjectId>,
        limit: PageLimit,
        version: &str,
    ) -> Result<Self, InvalidInput> {
        let call = match query {
            Query::Customers { created_from } => Self::get("/v1/customers").with(|form| {
                form.put_some("created[gte]", created_from.map(|at| at.timestamp()));
            }),
            Query::OpenCheckouts { customer } => Self::get("/v1/checkout/sessions").with(|form| {
                form.put("customer", customer).put("status", "open");
            }),
            Query::Subscriptions { customer } => Self::get("/v1/subscriptions").with(|form| {
                form.put_some("customer", customer.as_ref()).put("status", "all");
            }),
            Query::Schedules { customer } => Self::get("/v1/subscription_schedules").with(|form| {
                form.put("customer", customer);
            }),
            Query::Invoices { customer, status } => Self::get("/v1/invoices").with(|form| {
                let status = status.as_ref().map(InvoiceStatus::as_str);
                form.put_some("customer", customer.as_ref()).put_some("status", status);
                form.put_some("expand[0]", (version >= PAID_ELSEWHERE_SINCE).then_some("data.amount_paid_off_stripe"));
            }),
            Query::Recent { kind, created_from } => Self::get(list_of(*kind)).with(|form| {
                form.put("created[gte]", created_from.timestamp());
                if *kind == ObjectKind::Subscription {
                    form.put("status", "all");
                }
                let says_more = *kind == ObjectKind::Invoice && version >= PAID_ELSEWHERE_SINCE;
                form.put_some("expand[0]", says_more.then_some("data.amount_paid_off_stripe"));
            }),
            Query::LiveSubscriptions => Self::get("/v1/subscriptions"),
            Query::Charges => Self::get("/v1/charges"),
            Query::Refunds => Self::get("/v1/refunds"),
            Query::Disputes => Self::get("/v1/disputes"),
            Query::CreditNotes => Self::get("/v1/credit_notes"),
            Query::Prices { lookup_keys } => prices(lookup_keys)?,
            Query::PricesOf { product } => Self::get("/v1/prices").with(|form| {
                form.put("product", product).put("expand[0]", "data.tiers");
            }),
            Query::Products => Self::get("/v1/products"),
            Query::ProductFeatures { product } => Self::get(at("/v1/products", product, "/features")),
            Query::Features { lookup_key } => Self::get("/v1/entitlements/features").with(|form| {
                form.put_some("lookup_key", lookup_key.as_ref());
            }),
            Query::Meters => Self::get("/v1/billing/meters"),
            Query::MeterTotals { meter, customer, from, to, daily } => {
                Self::get(at("/v1/billing/meters", meter, "/event_summaries")).with(|form| {
                    form.put("customer", customer);
                    form.put("start_time", from.timestamp()).put("end_time", to.timestamp());
                    form.put_some("value_grouping_window", daily.then_some("day"));
                })
            }
            Query::WebhookEndpoints => Self::get("/v1/webhook_endpoints"),
            Query::Events { created_from } => Self::get("/v1/events").with(|form| {
                form.put_some("created[gte]", created_from.map(|at| at.timestamp()));
            }),
        };
        Ok(call.with(|form| {
            form.put("limit", limit.get()).put_some("starting_after", after);
        }))
    }
}

/// Where the objects of a kind are.
const fn list_of(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Customer => "/v1/customers",
        ObjectKind::CheckoutSession => "/v1/checkout/sessions",
        ObjectKind::Subscription => "/v1/subscriptions",
        ObjectKind::Invoice => "/v1/invoices",
        ObjectKind::Charge => "/v1/charges",
        ObjectKind::Refund => "/v1/refunds",
        ObjectKind::Dispute => "/v1/disputes",
        ObjectKind::CreditNote => "/v1/credit_notes",
    }
}

/// An id in a path; ids may hold any visible character, a slash too.
fn at(list: &str, id: &ObjectId, verb: &str) -> String {
    let mut path = format!("{list}/");
    escape(&mut path, id.as_str());
    path + verb
}

fn customer(form: &mut Form, new: &NewCustomer) {
    form.put_some("email", new.email.as_ref()).put_some("name", new.name.as_ref());
    form.put_map("metadata", &new.metadata).put_some("test_clock", new.test_clock.as_ref());
}

fn details(form: &mut Form, update: &CustomerUpdate) {
    form.put_some("email", update.email.as_ref()).put_some("name", update.name.as_ref());
    if let Some(address) = &update.address {
        for (field, text) in [
            ("line1", &address.line1),
            ("line2", &address.line2),
            ("city", &address.city),
            ("state", &address.state),
            ("postal_code", &address.postal_code),
            ("country", &address.country),
        ] {
            // An address is one thing: what it lacks is not left over from the one before.
            form.put(format!("address[{field}]"), text.as_deref().unwrap_or_default());
        }
    }
}

fn checkout(form: &mut Form, new: &NewCheckout) {
    form.put("mode", "subscription").put("customer", &new.customer);
    form.put("success_url", &new.success).put("cancel_url", &new.cancel);
    priced(form, "line_items", &new.items);
    form.put_some("subscription_data[trial_period_days]", new.trial_days);
    if new.trial_payment == TrialPayment::IfDue {
        form.put("payment_method_collection", "if_required");
        if new.trial_days.is_some() {
            form.put("subscription_data[trial_settings][end_behavior][missing_payment_method]", "pause");
        }
    }
    if new.promotion_codes {
        form.put("allow_promotion_codes", true);
    }
    discount(form, new.discount.as_ref());
    if new.automatic_tax {
        form.put("automatic_tax[enabled]", true).put("customer_update[address]", "auto");
    }
    if new.tax_ids {
        form.put("tax_id_collection[enabled]", true).put("customer_update[name]", "auto");
    }
    form.put_map("metadata", &new.metadata).put_map("subscription_data[metadata]", &new.metadata);
}

/// Asks for the flexible billing mode, where there is one: in the classic one, what was used at a usage price that goes is never
/// charged. It is the usual one since version 2025-09-30.
fn flexible(form: &mut Form, name: &'static str, version: &str) {
    // Versions begin with their date.
    if version >= "2025-06-30" {
        form.put(name, "flexible");
    }
}

fn subscription(form: &mut Form, new: &NewSubscription) {
    form.put("customer", &new.customer);
    priced(form, "items", &new.items);
    form.put_some("trial_period_days", new.trial_days);
    discount(form, new.discount.as_ref());
    let behavior = match new.on_failed_payment {
        OnFailedPayment::Wait => "default_incomplete",
        OnFailedPayment::Refuse => "error_if_incomplete",
        OnFailedPayment::Owe => "allow_incomplete",
    };
    form.put("payment_behavior", behavior).put_map("metadata", &new.metadata);
}

fn discount(form: &mut Form, new: Option<&NewDiscount>) {
    let name = match new {
        Some(NewDiscount::Coupon(_)) => "discounts[0][coupon]",
        Some(NewDiscount::PromotionCode(_)) => "discounts[0][promotion_code]",
        None => return,
    };
    form.put_some(name, new.map(NewDiscount::id));
}

fn priced(form: &mut Form, name: &str, items: &[(ObjectId, Option<u64>)]) {
    for (n, (price, quantity)) in items.iter().enumerate() {
        form.put(format!("{name}[{n}][price]"), price).put_some(format!("{name}[{n}][quantity]"), *quantity);
    }
}

fn items(form: &mut Form, name: &str, changes: &[ItemChange]) {
    for (n, change) in changes.iter().enumerate() {
        let field = |field: &str| format!("{name}[{n}][{field}]");
        match change {
            ItemChange::Add { price, quantity } => {
                form.put(field("price"), price).put_some(field("quantity"), *quantity);
            }
            ItemChange::Set { item, price, quantity } => {
                form.put(field("id"), item).put_some(field("price"), price.as_ref());
                form.put_some(field("quantity"), *quantity);
            }
            ItemChange::Remove { item } => {
                form.put(field("id"), item).put(field("deleted"), true);
            }
        }
    }
}

const fn proration(proration: Proration) -> &'static str {
    match proration {
        Proration::InvoiceNow => "always_invoice",
        Proration::NextInvoice => "create_prorations",
        Proration::None => "none",
    }
}

const fn on_change(behavior: OnFailedPayment) -> &'static str {
    match behavior {
        OnFailedPayment::Wait => "pending_if_incomplete",
        OnFailedPayment::Refuse => "error_if_incomplete",
        OnFailedPayment::Owe => "allow_incomplete",
    }
}

fn cancel(subscription: &ObjectId, when: Cancellation) -> Call {
    let path = at("/v1/subscriptions", subscription, "");
    let flag = |value: bool| {
        Call::post(path.clone()).with(|form| {
            form.put("cancel_at_period_end", value);
        })
    };
    let now = |prorate: bool| {
        Call::new(Verb::Delete, path.clone()).with(|form| {
            form.put("invoice_now", prorate).put("prorate", prorate);
        })
    };
    match when {
        Cancellation::Now => now(false),
        Cancellation::NowProrated => now(true),
        Cancellation::AtPeriodEnd => flag(true),
        Cancellation::Never => flag(false),
    }
}

fn plan_phase(form: &mut Form, n: usize, phase: &Phase) {
    form.put_some(format!("phases[{n}][start_date]"), phase.start.map(|at| at.timestamp()));
    form.put_some(format!("phases[{n}][end_date]"), phase.end.map(|at| at.timestamp()));
    priced(form, &format!("phases[{n}][items]"), &phase.items);
    form.put(format!("phases[{n}][proration_behavior]"), proration(phase.proration));
    for (m, discount) in phase.discounts.iter().enumerate() {
        form.put(format!("phases[{n}][discounts][{m}][discount]"), discount);
    }
}

fn price(form: &mut Form, new: &NewPrice) {
    form.put("product", &new.product).put("currency", &new.currency);
    form.put("recurring[interval]", new.interval.as_str());
    if let Some(meter) = &new.meter {
        form.put("recurring[usage_type]", "metered").put("recurring[meter]", meter);
    }
    match &new.by {
        PricedBy::Unit(amount) => {
            form.put("unit_amount", amount);
        }
        PricedBy::Graduated(tiers) => put_tiers(form, "graduated", tiers),
        PricedBy::Volume(tiers) => put_tiers(form, "volume", tiers),
    }
    form.put("lookup_key", &new.lookup_key);
    if new.takes_over_key {
        form.put("transfer_lookup_key", true);
    }
    form.put_map("metadata", &new.metadata);
}

fn put_tiers(form: &mut Form, mode: &str, tiers: &[Tier]) {
    form.put("billing_scheme", "tiered").put("tiers_mode", mode);
    for (n, tier) in tiers.iter().enumerate() {
        let up_to = tier.up_to.map_or_else(|| "inf".to_owned(), |units| units.to_string());
        form.put(format!("tiers[{n}][up_to]"), up_to).put(format!("tiers[{n}][unit_amount]"), tier.unit_amount);
        form.put(format!("tiers[{n}][flat_amount]"), tier.flat_amount);
    }
}

fn report(form: &mut Form, reading: &MeterReading) {
    form.put("event_name", &reading.event_name).put("identifier", &reading.identifier);
    form.put("timestamp", reading.at.timestamp());
    form.put("payload[stripe_customer_id]", &reading.customer).put("payload[value]", reading.value);
}

fn prices(lookup_keys: &[String]) -> Result<Call, InvalidInput> {
    if !(1..=10).contains(&lookup_keys.len()) {
        return Err(InvalidInput::new("the lookup keys", "are none or more than ten", "ask for one to ten at a time"));
    }
    Ok(Call::get("/v1/prices").with(|form| {
        for (n, key) in lookup_keys.iter().enumerate() {
            form.put(format!("lookup_keys[{n}]"), key);
        }
        form.put("expand[0]", "data.tiers");
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ObjectId {
        text.parse().unwrap()
    }

    fn names(call: &Call) -> Vec<String> {
        call.form.pairs().iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn a_change_names_each_item_and_what_becomes_of_the_rest_of_the_period() {
        let change = SubscriptionChange {
            subscription: id("sub_1"),
            items: vec![
                ItemChange::Set { item: id("si_1"), price: Some(id("price_2")), quantity: None },
                ItemChange::Add { price: id("price_3"), quantity: Some(4) },
                ItemChange::Remove { item: id("si_2") },
            ],
            proration: Proration::InvoiceNow,
            proration_date: chrono::DateTime::from_timestamp(1_800_000_000, 0),
            on_failed_payment: OnFailedPayment::Wait,
        };
        let call = Call::of(&Command::ChangeSubscription(change.clone()), "");
        assert_eq!((call.verb, call.path.as_str()), (Verb::Post, "/v1/subscriptions/sub_1"));
        let expected = [
            "items[0][id]=si_1",
            "items[0][price]=price_2",
            "items[1][price]=price_3",
            "items[1][quantity]=4",
            "items[2][id]=si_2",
            "items[2][deleted]=true",
            "proration_behavior=always_invoice",
            "proration_date=1800000000",
            "payment_behavior=pending_if_incomplete",
        ];
        assert_eq!(names(&call), expected);
        assert!(names(&Call::preview(&change)).contains(&"subscription_details[items][1][quantity]=4".to_owned()));
    }

    #[test]
    fn the_flexible_billing_mode_is_asked_for_where_there_is_one() {
        let new = NewSubscription {
            customer: id("cus_1"),
            items: vec![(id("price_1"), None)],
            trial_days: None,
            discount: None,
            on_failed_payment: OnFailedPayment::Owe,
            metadata: Default::default(),
        };
        let asks = |version| {
            let call = Call::of(&Command::CreateSubscription(new.clone()), version);
            names(&call).contains(&"billing_mode[type]=flexible".to_owned())
        };
        let versions = [crate::stripe::API_VERSION, "2025-06-30.basil", "2025-05-28.basil", "2020-08-27"];
        assert_eq!(versions.map(asks), [true, true, false, false]);
    }

    #[test]
    fn where_periods_count_from_is_said_as_the_version_has_it() {
        let asks = |version| names(&Call::of(&Command::ResumeSubscription(id("sub_1")), version));
        assert_eq!(asks(crate::stripe::API_VERSION), ["billing_cycle_anchor[type]=now"]);
        assert_eq!(asks("2026-08-26.dahlia"), ["billing_cycle_anchor=now"]);
    }

    #[test]
    fn an_id_cannot_leave_its_place_in_the_path() {
        let call = Call::fetch(ObjectKind::Customer, &id("cus_1/../../v1/accounts?x=1#"), "");
        assert_eq!(call.target(), "/v1/customers/cus_1%2F..%2F..%2Fv1%2Faccounts%3Fx%3D1%23");
    }

    #[test]
    fn parameters_of_reads_and_deletions_stand_in_the_address() {
        let deletion =
            Call::of(&Command::CancelSubscription { subscription: id("sub_1"), when: Cancellation::Now }, "");
        assert_eq!(deletion.target(), "/v1/subscriptions/sub_1?invoice_now=false&prorate=false");
        assert_eq!(deletion.body(), "");
        let after = id("cus_9");
        let query = Query::Subscriptions { customer: Some(id("cus_1")) };
        let page = Call::list(&query, Some(&after), PageLimit::MAX, "2026-09-30").unwrap();
        assert_eq!(page.target(), "/v1/subscriptions?customer=cus_1&status=all&limit=100&starting_after=cus_9");
        let none = Call::list(&Query::Prices { lookup_keys: Vec::new() }, None, PageLimit::MAX, "2026-09-30");
        assert!(none.is_err());
    }
}
