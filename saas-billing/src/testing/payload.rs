//! How the simulator writes objects and events down.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::world::{SimCustomer, SimInvoice, SimPrice, SimSession, SimSubscription};

/// Which of Stripe's API versions the payloads look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PayloadShape {
    /// Periods on the items, an invoice's subscription under `parent`: since 2025-03-31 (basil).
    #[default]
    Current,
    /// Periods on the subscription, an invoice's subscription beside its customer.
    Legacy,
}

impl PayloadShape {
    /// The `api_version` of its events.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Current => "2026-09-30.endive",
            Self::Legacy => "2024-06-20",
        }
    }
}

/// An event in the order in which Stripe writes its fields.
#[derive(Serialize)]
struct EventBody<'a> {
    id: &'a str,
    object: &'static str,
    api_version: &'static str,
    created: i64,
    data: EventData,
    livemode: bool,
    pending_webhooks: u32,
    request: EventRequest,
    #[serde(rename = "type")]
    event_type: &'a str,
}

#[derive(Serialize)]
struct EventData {
    object: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_attributes: Option<Value>,
}

#[derive(Serialize)]
struct EventRequest {
    id: Option<String>,
    idempotency_key: Option<String>,
}

pub(super) struct NewEvent<'a> {
    pub(super) id: &'a str,
    pub(super) event_type: &'a str,
    pub(super) created: DateTime<Utc>,
    pub(super) livemode: bool,
    pub(super) object: Value,
    pub(super) previous: Option<Value>,
}

pub(super) fn event(shape: PayloadShape, new: NewEvent<'_>) -> Vec<u8> {
    let body = EventBody {
        id: new.id,
        object: "event",
        api_version: shape.api_version(),
        created: new.created.timestamp(),
        data: EventData { object: new.object, previous_attributes: new.previous },
        livemode: new.livemode,
        pending_webhooks: 1,
        request: EventRequest { id: None, idempotency_key: None },
        event_type: new.event_type,
    };
    serde_json::to_vec_pretty(&body).unwrap_or_default()
}

/// What `previous_attributes` names: the old value of each field that changed; of hashes only the changed keys.
pub(super) fn previous_attributes(before: &Value, after: &Value) -> Option<Value> {
    let (Value::Object(before), Value::Object(after)) = (before, after) else { return None };
    let mut changed = Map::new();
    for (key, new) in after {
        let old = before.get(key).unwrap_or(&Value::Null);
        if old != new {
            changed.insert(key.clone(), previous_attributes(old, new).unwrap_or_else(|| old.clone()));
        }
    }
    for (key, old) in before.iter().filter(|(key, _)| !after.contains_key(*key)) {
        changed.insert(key.clone(), old.clone());
    }
    (!changed.is_empty()).then_some(Value::Object(changed))
}

fn seconds(at: Option<DateTime<Utc>>) -> Value {
    at.map_or(Value::Null, |at| at.timestamp().into())
}

pub(super) fn customer(customer: &SimCustomer, livemode: bool) -> Value {
    let method = customer.has_payment_method.then(|| format!("pm_of_{}", customer.id));
    json!({
        "id": customer.id, "object": "customer", "address": null, "balance": 0,
        "created": customer.created.timestamp(), "currency": null, "customer_account": null, "default_source": null,
        "delinquent": customer.declines, "description": null, "discount": null, "email": customer.email,
        "invoice_prefix": "5C2A90F1",
        "invoice_settings": {
            "custom_fields": null, "default_payment_method": method, "footer": null, "rendering_options": null
        },
        "livemode": livemode, "metadata": {}, "name": null, "next_invoice_sequence": 1, "phone": null,
        "preferred_locales": [], "shipping": null, "tax_exempt": "none", "test_clock": null
    })
}

pub(super) fn session(session: &SimSession, price: &SimPrice, livemode: bool) -> Value {
    let total = price.unit_amount.saturating_mul(i64::try_from(session.quantity).unwrap_or(i64::MAX));
    json!({
        "id": session.id, "object": "checkout.session", "adaptive_pricing": {"enabled": false}, "after_expiration": null,
        "allow_promotion_codes": null, "amount_subtotal": total, "amount_total": total,
        "automatic_tax": {"enabled": false, "liability": null, "provider": null, "status": null},
        "billing_address_collection": null, "cancel_url": "https://app.example.com/billing",
        "client_reference_id": session.client_reference_id, "client_secret": null, "collected_information": null,
        "consent": null, "consent_collection": null, "created": session.created.timestamp(), "currency": price.currency,
        "custom_fields": [], "customer": session.customer, "customer_creation": null,
        "customer_details": {"address": null, "email": session.email, "name": null, "phone": null, "tax_exempt": "none", "tax_ids": []},
        "customer_email": session.email, "discounts": [], "expires_at": session.created.timestamp() + 86_400,
        "invoice": null, "invoice_creation": null, "livemode": livemode, "locale": null, "metadata": {},
        "mode": "subscription", "payment_intent": null, "payment_link": null, "payment_method_collection": "always",
        "payment_method_options": {"card": {"request_three_d_secure": "automatic"}}, "payment_method_types": ["card"],
        "payment_status": session.payment_status, "permissions": null, "phone_number_collection": {"enabled": false},
        "recovered_from": null, "saved_payment_method_options": null, "setup_intent": null, "shipping_cost": null,
        "shipping_options": [], "status": session.status, "submit_type": null, "subscription": session.subscription,
        "success_url": "https://app.example.com/billing?session={CHECKOUT_SESSION_ID}",
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0}, "ui_mode": "hosted", "url": null,
        "wallet_options": null
    })
}

fn price(price: &SimPrice, livemode: bool) -> Value {
    json!({
        "id": price.id, "object": "price", "active": true, "billing_scheme": "per_unit", "created": 1_721_948_530,
        "currency": price.currency, "custom_unit_amount": null, "livemode": livemode, "lookup_key": null, "metadata": {},
        "nickname": null, "product": format!("prod_of_{}", price.id),
        "recurring": {"interval": price.interval, "interval_count": 1, "meter": null, "trial_period_days": null, "usage_type": "licensed"},
        "tax_behavior": "unspecified", "tiers_mode": null, "transform_quantity": null, "type": "recurring",
        "unit_amount": price.unit_amount, "unit_amount_decimal": price.unit_amount.to_string()
    })
}

pub(super) fn subscription(shape: PayloadShape, sub: &SimSubscription, of: &SimPrice, livemode: bool) -> Value {
    let (start, end) = (sub.period.0.timestamp(), sub.period.1.timestamp());
    let mut item = json!({
        "id": sub.item, "object": "subscription_item", "billing_thresholds": null, "created": sub.created.timestamp(),
        "discounts": [], "metadata": {},
        "plan": {
            "id": of.id, "object": "plan", "active": true, "amount": of.unit_amount,
            "amount_decimal": of.unit_amount.to_string(), "billing_scheme": "per_unit", "created": 1_721_948_530,
            "currency": of.currency, "interval": of.interval, "interval_count": 1, "livemode": livemode, "metadata": {},
            "meter": null, "nickname": null, "product": format!("prod_of_{}", of.id), "tiers_mode": null,
            "transform_usage": null, "trial_period_days": null, "usage_type": "licensed"
        },
        "price": price(of, livemode), "quantity": sub.quantity, "subscription": sub.id, "tax_rates": []
    });
    let mut object = json!({
        "id": sub.id, "object": "subscription", "application": null, "application_fee_percent": null,
        "automatic_tax": {"disabled_reason": null, "enabled": false, "liability": null},
        "billing_cycle_anchor": sub.anchor.timestamp(), "billing_cycle_anchor_config": null,
        "billing_mode": {"flexible": null, "type": "classic"}, "billing_thresholds": null,
        "cancel_at": if sub.cancel_at_period_end { Value::from(end) } else { Value::Null },
        "cancel_at_period_end": sub.cancel_at_period_end, "canceled_at": seconds(sub.canceled_at),
        "cancellation_details": {"comment": null, "feedback": null, "reason": sub.canceled_at.map(|_| "cancellation_requested")},
        "collection_method": "charge_automatically", "created": sub.created.timestamp(), "currency": of.currency,
        "customer": sub.customer, "customer_account": null, "days_until_due": null, "default_payment_method": null,
        "default_source": null, "default_tax_rates": [], "description": null, "discounts": [],
        "ended_at": seconds(sub.ended_at), "invoice_settings": {"account_tax_ids": null, "issuer": {"type": "self"}},
        "latest_invoice": sub.latest_invoice, "livemode": livemode, "metadata": {},
        "next_pending_invoice_item_invoice": null, "on_behalf_of": null,
        "pause_collection": sub.pause.map(|behavior| json!({"behavior": behavior, "resumes_at": null})),
        "payment_settings": {"payment_method_options": null, "payment_method_types": null, "save_default_payment_method": "off"},
        "pending_invoice_item_interval": null, "pending_setup_intent": null, "pending_update": null, "schedule": null,
        "start_date": sub.created.timestamp(), "status": sub.status, "test_clock": null, "transfer_data": null,
        "trial_end": seconds(sub.trial_end), "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
        "trial_start": sub.trial_end.map(|_| sub.created.timestamp())
    });
    let periods = match shape {
        PayloadShape::Current => &mut item,
        PayloadShape::Legacy => &mut object,
    };
    periods["current_period_start"] = start.into();
    periods["current_period_end"] = end.into();
    object["items"] = json!({
        "object": "list", "data": [item], "has_more": false, "total_count": 1,
        "url": format!("/v1/subscription_items?subscription={}", sub.id)
    });
    object
}

pub(super) fn invoice(shape: PayloadShape, invoice: &SimInvoice, livemode: bool) -> Value {
    let paid = invoice.status == "paid";
    let open_amount = if paid { 0 } else { invoice.amount };
    let mut object = json!({
        "id": invoice.id, "object": "invoice", "account_country": "DE", "account_name": "Vendor", "account_tax_ids": null,
        "amount_due": invoice.amount, "amount_overpaid": 0, "amount_paid": invoice.amount - open_amount,
        "amount_remaining": open_amount, "amount_shipping": 0, "application": null, "attempt_count": invoice.attempts,
        "attempted": invoice.attempts > 0, "auto_advance": !paid,
        "automatic_tax": {"disabled_reason": null, "enabled": false, "liability": null, "provider": null, "status": null},
        "billing_reason": invoice.reason, "collection_method": "charge_automatically",
        "created": invoice.created.timestamp(), "currency": invoice.currency, "custom_fields": null,
        "customer": invoice.customer, "customer_email": null, "customer_name": null, "default_payment_method": null,
        "description": null, "discounts": [], "due_date": null, "effective_at": seconds(invoice.finalized_at),
        "ending_balance": 0, "footer": null, "hosted_invoice_url": null, "invoice_pdf": null,
        "lines": {
            "object": "list", "has_more": false, "total_count": 1, "url": format!("/v1/invoices/{}/lines", invoice.id),
            "data": [{
                "id": format!("il_of_{}", invoice.id), "object": "line_item", "amount": invoice.amount,
                "currency": invoice.currency, "description": null, "discountable": true, "discounts": [],
                "invoice": invoice.id, "livemode": livemode, "metadata": {}, "quantity": 1,
                "period": {"start": invoice.created.timestamp(), "end": invoice.created.timestamp()}, "taxes": []
            }]
        },
        "livemode": livemode, "metadata": {},
        "next_payment_attempt": if invoice.status == "open" { seconds(invoice.next_step) } else { Value::Null },
        "number": null, "on_behalf_of": null, "period_end": invoice.created.timestamp(),
        "period_start": invoice.created.timestamp(), "status": invoice.status,
        "status_transitions": {
            "finalized_at": seconds(invoice.finalized_at), "marked_uncollectible_at": seconds(invoice.uncollectible_at),
            "paid_at": seconds(invoice.paid_at), "voided_at": seconds(invoice.voided_at)
        },
        "subtotal": invoice.amount, "test_clock": null, "total": invoice.amount, "webhooks_delivered_at": null
    });
    match shape {
        PayloadShape::Current => {
            object["parent"] = json!({
                "quote_details": null, "type": "subscription_details",
                "subscription_details": {"metadata": {}, "subscription": invoice.subscription}
            });
        }
        PayloadShape::Legacy => {
            object["subscription"] = invoice.subscription.clone().into();
            object["paid"] = paid.into();
        }
    }
    object
}
