//! How the simulator writes objects and events down.

mod money;

use chrono::{DateTime, Utc};
pub(super) use money::{charge, coupon, credit_note, discount, dispute, promotion_code, refund, taxes};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::world::{
    Pricing, SimCustomer, SimInvoice, SimItem, SimLine, SimPrice, SimSchedule, SimSession, SimSubscription, SimTier,
    World,
};

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
    pub(super) cause: Option<&'a str>,
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
        request: EventRequest { id: None, idempotency_key: new.cause.map(str::to_owned) },
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
        "id": customer.id, "object": "customer", "address": customer.address, "balance": customer.balance,
        "created": customer.created.timestamp(), "currency": customer.currency, "customer_account": null, "default_source": null,
        "delinquent": customer.declines, "description": null, "discount": null, "email": customer.email,
        "invoice_prefix": "5C2A90F1",
        "invoice_settings": {
            "custom_fields": null, "default_payment_method": method, "footer": null, "rendering_options": null
        },
        "livemode": livemode, "metadata": customer.metadata, "name": customer.name, "next_invoice_sequence": 1, "phone": null,
        "preferred_locales": [], "shipping": null, "tax_exempt": "none", "test_clock": null
    })
}

pub(super) fn session(session: &SimSession, world: &World, livemode: bool) -> Value {
    let priced = |(price, quantity): &(String, Option<u64>)| Some((world.prices.get(price)?, quantity.unwrap_or(1)));
    let priced: Vec<(&SimPrice, u64)> = session.lines.iter().filter_map(priced).collect();
    let total: i64 =
        priced.iter().map(|(price, quantity)| price.pricing.amount(*quantity)).fold(0, i64::saturating_add);
    let currency = priced.first().map(|(price, _)| price.currency.as_str());
    let address = world.address.as_deref().filter(|_| session.status == "open");
    let discounts: Vec<Value> = session
        .discount
        .iter()
        .map(|wanted| json!({"coupon": wanted.coupon, "promotion_code": wanted.promotion_code}))
        .collect();
    let url = address.map(|address| format!("{address}/pay/{}", session.id));
    json!({
        "id": session.id, "object": "checkout.session", "adaptive_pricing": {"enabled": false}, "after_expiration": null,
        "allow_promotion_codes": session.takes_codes.then_some(true), "amount_subtotal": total, "amount_total": total,
        "automatic_tax": {"enabled": session.automatic_tax, "liability": null, "provider": null, "status": null},
        "billing_address_collection": null, "cancel_url": session.cancel_url,
        "client_reference_id": session.client_reference_id, "client_secret": null, "collected_information": null,
        "consent": null, "consent_collection": null, "created": session.created.timestamp(), "currency": currency,
        "custom_fields": [], "customer": session.customer, "customer_creation": null,
        "customer_details": {"address": null, "email": session.email, "name": null, "phone": null, "tax_exempt": "none", "tax_ids": []},
        "customer_email": session.email, "discounts": discounts, "expires_at": session.created.timestamp() + 86_400,
        "invoice": null, "invoice_creation": null, "livemode": livemode, "locale": null, "metadata": session.metadata,
        "mode": "subscription", "payment_intent": null, "payment_link": null, "payment_method_collection": "always",
        "payment_method_options": {"card": {"request_three_d_secure": "automatic"}}, "payment_method_types": ["card"],
        "payment_status": session.payment_status, "permissions": null, "phone_number_collection": {"enabled": false},
        "recovered_from": null, "saved_payment_method_options": null, "setup_intent": null, "shipping_cost": null,
        "shipping_options": [], "status": session.status, "submit_type": null, "subscription": session.subscription,
        "success_url": session.success_url,
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0}, "ui_mode": "hosted", "url": url,
        "wallet_options": null
    })
}

pub(super) fn price(price: &SimPrice, livemode: bool) -> Value {
    let usage = if price.meter.is_some() { "metered" } else { "licensed" };
    let (unit, tiers) = amounts(&price.pricing);
    json!({
        "id": price.id, "object": "price", "active": price.active,
        "billing_scheme": if tiers.is_some() { "tiered" } else { "per_unit" }, "created": 1_721_948_530,
        "currency": price.currency, "custom_unit_amount": null, "livemode": livemode, "lookup_key": price.lookup_key,
        "metadata": price.metadata, "nickname": null, "product": price.product,
        "recurring": {"interval": price.interval, "interval_count": 1, "meter": price.meter, "trial_period_days": null, "usage_type": usage},
        "tax_behavior": "unspecified", "tiers_mode": tiers.map(|(mode, _)| mode), "transform_quantity": null,
        "type": "recurring", "unit_amount": unit, "unit_amount_decimal": unit.map(|unit| unit.to_string())
    })
}

/// A price with its tiers, which Stripe shows only when asked to.
pub(super) fn expanded_price(of: &SimPrice, livemode: bool) -> Value {
    let mut object = price(of, livemode);
    if let (_, Some((_, tiers))) = amounts(&of.pricing) {
        let tier = |(last, unit, flat): &SimTier| json!({"up_to": last, "unit_amount": unit, "flat_amount": flat});
        object["tiers"] = tiers.iter().map(tier).collect();
    }
    object
}

fn amounts(pricing: &Pricing) -> (Option<i64>, Option<(&'static str, &[SimTier])>) {
    match pricing {
        Pricing::Unit(unit) => (Some(*unit), None),
        Pricing::Graduated(tiers) => (None, Some(("graduated", tiers))),
        Pricing::Volume(tiers) => (None, Some(("volume", tiers))),
    }
}

fn plan(of: &SimPrice, livemode: bool) -> Value {
    let (unit, tiers) = amounts(&of.pricing);
    json!({
        "id": of.id, "object": "plan", "active": of.active, "amount": unit,
        "amount_decimal": unit.map(|unit| unit.to_string()),
        "billing_scheme": if tiers.is_some() { "tiered" } else { "per_unit" }, "created": 1_721_948_530,
        "currency": of.currency, "interval": of.interval, "interval_count": 1, "livemode": livemode, "metadata": {},
        "meter": of.meter, "nickname": null, "product": of.product, "tiers_mode": tiers.map(|(mode, _)| mode),
        "transform_usage": null, "trial_period_days": null,
        "usage_type": if of.meter.is_some() { "metered" } else { "licensed" }
    })
}

fn item(sub: &SimSubscription, item: &SimItem, of: &SimPrice, livemode: bool) -> Value {
    let mut object = json!({
        "id": item.id, "object": "subscription_item", "billing_thresholds": null, "created": sub.created.timestamp(),
        "discounts": [], "metadata": {}, "plan": plan(of, livemode), "price": price(of, livemode),
        "subscription": sub.id, "tax_rates": []
    });
    if of.meter.is_none() {
        object["quantity"] = item.quantity.unwrap_or(1).into();
    }
    object
}

fn billing_mode(flexible: bool) -> Value {
    match flexible {
        true => json!({"flexible": {"proration_discounts": "included"}, "type": "flexible"}),
        false => json!({"flexible": null, "type": "classic"}),
    }
}

pub(super) fn subscription(shape: PayloadShape, sub: &SimSubscription, world: &World, livemode: bool) -> Value {
    let (start, end) = (sub.period.0.timestamp(), sub.period.1.timestamp());
    let render = |one: &SimItem| Some(item(sub, one, world.prices.get(&one.price)?, livemode));
    let mut items: Vec<Value> = sub.items.iter().filter_map(render).collect();
    let currency =
        sub.items.first().and_then(|item| world.prices.get(&item.price)).map(|price| price.currency.as_str());
    let pending = sub.pending.as_ref().map(|pending| {
        json!({
            "billing_cycle_anchor": null, "expires_at": pending.expires_at.timestamp(), "trial_end": null,
            "trial_from_plan": null, "subscription_items": pending.items.iter().filter_map(render).collect::<Vec<_>>()
        })
    });
    let pause = sub
        .pause
        .as_ref()
        .map(|(behavior, resumes_at)| json!({"behavior": behavior, "resumes_at": resumes_at.map(|at| at.timestamp())}));
    // Here only a trial that ended without a payment method pauses.
    let paused = (sub.status == "paused").then(|| {
        json!({"type": "subscription", "subscription": {"type": "trial_end_without_payment_method"},
               "transitioned_at": seconds(sub.trial_end)})
    });
    let mut object = json!({
        "id": sub.id, "object": "subscription", "application": null, "application_fee_percent": null,
        "automatic_tax": {"disabled_reason": null, "enabled": sub.automatic_tax, "liability": null},
        "billing_cycle_anchor": sub.anchor.timestamp(), "billing_cycle_anchor_config": null,
        "billing_mode": billing_mode(sub.flexible), "billing_schedules": [], "billing_thresholds": null,
        "cancel_at": if sub.cancel_at_period_end { Value::from(end) } else { Value::Null },
        "cancel_at_period_end": sub.cancel_at_period_end, "canceled_at": seconds(sub.canceled_at),
        "cancellation_details": {"comment": null, "feedback": null, "reason": sub.canceled_at.map(|_| "cancellation_requested")},
        "collection_method": "charge_automatically", "created": sub.created.timestamp(), "currency": currency,
        "customer": sub.customer, "customer_account": null, "days_until_due": null, "default_payment_method": null,
        "default_source": null, "default_tax_rates": [], "description": null,
        "discounts": sub.discounts.iter().map(|discount| &discount.id).collect::<Vec<_>>(), "ended_at": seconds(sub.ended_at), "invoice_settings": {"account_tax_ids": null, "issuer": {"type": "self"}},
        "latest_invoice": sub.latest_invoice, "livemode": livemode, "metadata": sub.metadata,
        "next_pending_invoice_item_invoice": null, "on_behalf_of": null,
        "pause_collection": pause,
        "payment_settings": {"payment_method_options": null, "payment_method_types": null, "save_default_payment_method": "off"},
        "pending_invoice_item_interval": null, "pending_setup_intent": null, "pending_update": pending, "schedule": sub.schedule,
        "start_date": sub.created.timestamp(), "status": sub.status, "status_details": {"paused": paused}, "test_clock": null, "transfer_data": null,
        "trial_end": seconds(sub.trial_end), "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
        "trial_start": sub.trial_end.map(|_| sub.created.timestamp())
    });
    let put_period = |object: &mut Value| {
        object["current_period_start"] = start.into();
        object["current_period_end"] = end.into();
    };
    match shape {
        PayloadShape::Current => items.iter_mut().for_each(put_period),
        PayloadShape::Legacy => {
            put_period(&mut object);
            object["status_details"] = Value::Null;
            let first = sub.discounts.first();
            object["discount"] = first.map_or(Value::Null, |first| discount(shape, first, (&sub.id, false), world));
        }
    }
    let total = items.len();
    object["items"] = json!({
        "object": "list", "data": items, "has_more": false, "total_count": total,
        "url": format!("/v1/subscription_items?subscription={}", sub.id)
    });
    object
}

/// Adds what an invoice says only to a call that expands it.
pub(super) fn expand_invoice(shown: &mut Value, paid_elsewhere: bool) {
    let paid = shown["amount_paid"].clone();
    shown["amount_paid_off_stripe"] = if paid_elsewhere { paid } else { 0.into() };
}

/// A subscription as a call shows it that expands the terms of its discounts.
pub(super) fn expanded_subscription(
    shape: PayloadShape,
    sub: &SimSubscription,
    world: &World,
    livemode: bool,
) -> Value {
    let mut object = subscription(shape, sub, world, livemode);
    let whole = |one| discount(shape, one, (&sub.id, true), world);
    object["discounts"] = sub.discounts.iter().map(whole).collect();
    object
}

pub(super) fn schedule(schedule: &SimSchedule, livemode: bool) -> Value {
    let phase = |phase: &super::world::SimPhase| {
        let items: Vec<Value> =
            phase.items.iter().map(|(price, quantity)| json!({"price": price, "quantity": quantity})).collect();
        json!({"start_date": phase.start.timestamp(), "end_date": phase.end.timestamp(), "items": items})
    };
    let current = schedule.phases.get(schedule.at).filter(|_| schedule.status == "active");
    json!({
        "id": schedule.id, "object": "subscription_schedule", "canceled_at": null, "completed_at": null,
        "created": schedule.created.timestamp(), "customer": schedule.customer, "end_behavior": "release",
        "current_phase": current.map(|phase| json!({"start_date": phase.start.timestamp(), "end_date": phase.end.timestamp()})),
        "livemode": livemode, "metadata": {}, "phases": schedule.phases.iter().map(phase).collect::<Vec<_>>(),
        "released_at": null, "released_subscription": null, "status": schedule.status,
        "subscription": schedule.subscription, "test_clock": null
    })
}

fn line(n: usize, line: &SimLine, invoice: &SimInvoice, livemode: bool) -> Value {
    json!({
        "id": format!("il_{n}_of_{}", invoice.id), "object": "line_item", "amount": line.amount,
        "currency": invoice.currency, "description": null, "discountable": !line.proration, "discounts": [],
        "invoice": invoice.id, "livemode": livemode, "metadata": {}, "quantity": line.quantity,
        "parent": {
            "type": "subscription_item_details", "invoice_item_details": null,
            "subscription_item_details": {"proration": line.proration, "subscription": invoice.subscription}
        },
        "period": {"start": line.period.0.timestamp(), "end": line.period.1.timestamp()},
        "pricing": {"type": "price_details", "price_details": {"price": line.price}}, "taxes": []
    })
}

pub(super) fn invoice(shape: PayloadShape, invoice: &SimInvoice, world: &World, livemode: bool) -> Value {
    let paid = invoice.status == "paid";
    let (due, total) = (invoice.due(), invoice.total());
    let open_amount = if paid { 0 } else { due };
    let page = world.address.as_ref().filter(|_| invoice.finalized_at.is_some());
    let page = page.map(|address| format!("{address}/invoice/{}", invoice.id));
    let (starting, ending) = invoice.balances.unzip();
    let off = invoice.discounted();
    let discounts: Vec<&String> = off.iter().map(|(id, _)| id).collect();
    let taken: Vec<Value> = off.iter().map(|(id, amount)| json!({"amount": amount, "discount": id})).collect();
    let lines: Vec<Value> = invoice.lines.iter().enumerate().map(|(n, one)| line(n, one, invoice, livemode)).collect();
    let mut object = json!({
        "id": invoice.id, "object": "invoice", "account_country": "DE", "account_name": "Vendor", "account_tax_ids": null,
        "amount_due": due, "amount_overpaid": 0, "amount_paid": due - open_amount,
        "amount_remaining": open_amount, "amount_shipping": 0, "application": null, "attempt_count": invoice.attempts,
        "attempted": invoice.attempts > 0, "auto_advance": !paid,
        "automatic_tax": {
            "disabled_reason": null, "enabled": invoice.tax_rate.is_some(), "liability": null, "provider": null,
            "status": invoice.tax_rate.map(|_| "complete")
        },
        "billing_reason": invoice.reason, "collection_method": "charge_automatically",
        "created": invoice.created.timestamp(), "currency": invoice.currency, "custom_fields": null,
        "customer": invoice.customer, "customer_email": null, "customer_name": null, "default_payment_method": null,
        "description": null, "discounts": discounts, "due_date": null, "effective_at": seconds(invoice.finalized_at),
        "ending_balance": ending, "footer": null, "hosted_invoice_url": page, "invoice_pdf": page.as_ref().map(|page| format!("{page}/pdf")),
        "lines": {
            "object": "list", "has_more": false, "total_count": lines.len(),
            "url": format!("/v1/invoices/{}/lines", invoice.id), "data": lines
        },
        "livemode": livemode, "metadata": {},
        "next_payment_attempt": if invoice.status == "open" { seconds(invoice.next_step) } else { Value::Null },
        "number": null, "on_behalf_of": null, "period_end": invoice.created.timestamp(),
        "period_start": invoice.created.timestamp(), "status": invoice.status,
        "status_transitions": {
            "finalized_at": seconds(invoice.finalized_at), "marked_uncollectible_at": seconds(invoice.uncollectible_at),
            "paid_at": seconds(invoice.paid_at), "voided_at": seconds(invoice.voided_at)
        },
        "post_payment_credit_notes_amount": invoice.credited_after,
        "pre_payment_credit_notes_amount": invoice.credited, "starting_balance": starting.unwrap_or(0),
        "subtotal": invoice.subtotal(), "test_clock": null, "total": total, "total_discount_amounts": taken,
        "total_excluding_tax": invoice.net(), "webhooks_delivered_at": null
    });
    match shape {
        PayloadShape::Current => {
            object["parent"] = json!({
                "quote_details": null, "type": "subscription_details",
                "subscription_details": {"metadata": {}, "subscription": invoice.subscription}
            });
            object["total_taxes"] = taxes(invoice.tax(), invoice.net());
        }
        PayloadShape::Legacy => {
            object["subscription"] = invoice.subscription.clone().into();
            object["paid"] = paid.into();
            object["paid_out_of_band"] = invoice.paid_elsewhere.into();
            if invoice.paid_elsewhere {
                object["amount_paid"] = 0.into();
            }
            object["charge"] = invoice.charge.clone().into();
            object["tax"] = invoice.tax_rate.map(|_| invoice.tax()).into();
            object["total_tax_amounts"] = taxes(invoice.tax(), invoice.net());
        }
    }
    object
}
