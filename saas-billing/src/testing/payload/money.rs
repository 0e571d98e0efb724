//! Charges, refunds, disputes, credit notes, coupons, as each API version shows them.

use serde_json::{Value, json};

use super::{PayloadShape, seconds};
use crate::testing::{
    coupon::{Lasts, Off, SimCoupon, SimDiscount, SimPromotionCode},
    money::{SimCharge, SimCreditNote, SimDispute, SimRefund},
    world::World,
};

pub(in crate::testing) fn charge(shape: PayloadShape, charge: &SimCharge, livemode: bool) -> Value {
    let failure = (!charge.succeeded).then_some("card_declined");
    let mut object = json!({
        "id": charge.id, "object": "charge", "amount": charge.amount,
        "amount_captured": if charge.succeeded { charge.amount } else { 0 }, "amount_refunded": charge.refunded,
        "application": null, "application_fee": null, "application_fee_amount": null, "balance_transaction": null,
        "billing_details": {"address": null, "email": null, "name": null, "phone": null, "tax_id": null},
        "calculated_statement_descriptor": "VENDOR", "captured": charge.succeeded, "created": charge.created.timestamp(),
        "currency": charge.currency, "customer": charge.customer, "description": "Subscription update",
        "disputed": charge.disputed, "failure_balance_transaction": null, "failure_code": failure,
        "failure_message": failure.map(|_| "Your card was declined."), "fraud_details": {}, "livemode": livemode,
        "metadata": {}, "on_behalf_of": null, "outcome": null, "paid": charge.succeeded,
        "payment_intent": charge.payment_intent, "payment_method": format!("pm_of_{}", charge.customer),
        "payment_method_details": {"card": {"brand": "visa", "country": "DE", "last4": "4242", "network": "visa"}, "type": "card"},
        "receipt_email": null, "receipt_number": null, "receipt_url": null,
        "refunded": charge.refunded == charge.amount && charge.succeeded, "review": null, "shipping": null,
        "source_transfer": null, "statement_descriptor": null, "statement_descriptor_suffix": null,
        "status": if charge.succeeded { "succeeded" } else { "failed" }, "transfer_data": null, "transfer_group": null
    });
    if shape == PayloadShape::Legacy {
        object["invoice"] = charge.invoice.clone().into();
    }
    object
}

pub(in crate::testing) fn refund(refund: &SimRefund) -> Value {
    json!({
        "id": refund.id, "object": "refund", "amount": refund.amount, "balance_transaction": null, "charge": refund.charge,
        "created": refund.created.timestamp(), "currency": refund.currency,
        "destination_details": {"card": {"type": "refund"}, "type": "card"},
        "failure_reason": (refund.status == "failed").then_some("lost_or_stolen_card"), "metadata": {},
        "payment_intent": refund.payment_intent, "reason": null, "receipt_number": null, "source_transfer_reversal": null,
        "status": refund.status, "transfer_reversal": null
    })
}

pub(in crate::testing) fn dispute(dispute: &SimDispute, livemode: bool) -> Value {
    let moved = dispute.moved.iter().map(|(id, amount, at)| {
        json!({"id": id, "object": "balance_transaction", "amount": amount, "created": at.timestamp(),
            "currency": dispute.currency, "source": dispute.id, "type": "adjustment"})
    });
    json!({
        "id": dispute.id, "object": "dispute", "amount": dispute.amount, "balance_transactions": moved.collect::<Vec<_>>(),
        "charge": dispute.charge, "created": dispute.created.timestamp(), "currency": dispute.currency,
        "enhanced_eligibility_types": [], "evidence": {},
        "evidence_details": {
            "due_by": dispute.created.timestamp() + 1_209_600, "enhanced_eligibility": {},
            "has_evidence": dispute.status.ends_with("under_review"), "past_due": false,
            "submission_count": u8::from(dispute.status.ends_with("under_review"))
        },
        "is_charge_refundable": dispute.status.starts_with("warning_"), "livemode": livemode, "metadata": {},
        "payment_intent": dispute.payment_intent,
        "payment_method_details": {"card": {"brand": "visa", "case_type": "chargeback", "network_reason_code": "10.4"}, "type": "card"},
        "reason": "general", "status": dispute.status
    })
}

pub(in crate::testing) fn credit_note(shape: PayloadShape, note: &SimCreditNote, livemode: bool) -> Value {
    let paid_back = note.total - note.unbilled;
    let mut object = json!({
        "id": note.id, "object": "credit_note", "amount": note.total, "amount_shipping": 0,
        "created": note.created.timestamp(), "currency": note.currency, "customer": note.customer,
        "customer_balance_transaction": note.to_balance.as_ref().map(|(id, _)| id), "discount_amount": 0,
        "discount_amounts": [], "effective_at": note.created.timestamp(), "invoice": note.invoice,
        "lines": {"object": "list", "data": [], "has_more": false, "url": format!("/v1/credit_notes/{}/lines", note.id)},
        "livemode": livemode, "memo": null, "metadata": {}, "number": null,
        "out_of_band_amount": (note.out_of_band > 0).then_some(note.out_of_band), "pdf": null, "reason": null,
        "status": if note.voided_at.is_some() { "void" } else { "issued" }, "subtotal": note.total - note.tax,
        "subtotal_excluding_tax": note.total - note.tax, "total": note.total, "total_excluding_tax": note.total - note.tax,
        "type": if note.unbilled > 0 { "pre_payment" } else { "post_payment" }, "voided_at": seconds(note.voided_at)
    });
    match shape {
        PayloadShape::Current => {
            let refunds = note
                .refund
                .iter()
                .map(|(id, amount)| json!({"amount_refunded": amount, "refund": id, "type": "refund"}));
            object["refunds"] = refunds.collect();
            object["pre_payment_amount"] = note.unbilled.into();
            object["post_payment_amount"] = paid_back.into();
            object["total_taxes"] = taxes(note.tax, note.total - note.tax);
        }
        PayloadShape::Legacy => {
            object["refund"] = note.refund.as_ref().map(|(id, _)| id.clone()).into();
            object["tax_amounts"] = taxes(note.tax, note.total - note.tax);
        }
    }
    object
}

/// The one tax there is.
pub(in crate::testing) fn taxes(amount: i64, of: i64) -> Value {
    if amount == 0 {
        return json!([]);
    }
    json!([{"amount": amount, "tax_behavior": "exclusive", "taxability_reason": "standard_rated", "taxable_amount": of,
        "tax_rate_details": {"tax_rate": "txr_1SimQ"}, "type": "tax_rate_details"}])
}

pub(in crate::testing) fn coupon(coupon: &SimCoupon, livemode: bool) -> Value {
    let (percent, amount, currency) = match &coupon.terms.off {
        Off::Percent(hundredths) => (Some(percentage(*hundredths)), None, None),
        Off::Amount(minor, currency) => (None, Some(*minor), Some(currency.clone())),
    };
    let (duration, months) = match coupon.terms.lasts {
        Lasts::Once => ("once", None),
        Lasts::Months(months) => ("repeating", Some(months)),
        Lasts::Forever => ("forever", None),
    };
    json!({
        "id": coupon.id, "object": "coupon", "amount_off": amount, "created": coupon.created.timestamp(),
        "currency": currency, "duration": duration, "duration_in_months": months, "livemode": livemode,
        "max_redemptions": null, "metadata": {}, "name": coupon.name, "percent_off": percent, "redeem_by": null,
        "times_redeemed": coupon.redeemed, "valid": true
    })
}

/// Hundredths as Stripe writes them: `25` or `25.5`, whatever the number type of the reader.
fn percentage(hundredths: u32) -> Value {
    let text = match (hundredths / 100, hundredths % 100) {
        (whole, 0) => whole.to_string(),
        (whole, part) => format!("{whole}.{part:02}"),
    };
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

pub(in crate::testing) fn promotion_code(
    shape: PayloadShape,
    code: &SimPromotionCode,
    world: &World,
    livemode: bool,
) -> Value {
    let mut object = json!({
        "id": code.id, "object": "promotion_code", "active": code.active, "code": code.code,
        "created": code.created.timestamp(), "customer": null, "expires_at": null, "livemode": livemode,
        "max_redemptions": null, "metadata": {},
        "restrictions": {"first_time_transaction": false, "minimum_amount": null, "minimum_amount_currency": null},
        "times_redeemed": code.redeemed
    });
    match shape {
        PayloadShape::Current => object["promotion"] = json!({"coupon": code.coupon, "type": "coupon"}),
        PayloadShape::Legacy => {
            object["coupon"] = world.coupons.get(&code.coupon).map_or(Value::Null, |of| coupon(of, livemode));
        }
    }
    object
}

/// A discount; its coupon whole where an API version has it so, or a call expands it.
pub(in crate::testing) fn discount(
    shape: PayloadShape,
    discount: &SimDiscount,
    (subscription, expanded): (&str, bool),
    world: &World,
) -> Value {
    let whole = || world.coupons.get(&discount.of.coupon).map_or(Value::Null, |of| coupon(of, false));
    let mut object = json!({
        "id": discount.id, "object": "discount", "checkout_session": null,
        "customer": world.subscriptions.get(subscription).map(|sub| &sub.customer), "end": seconds(discount.end),
        "invoice": null, "invoice_item": null, "promotion_code": discount.of.promotion_code,
        "start": discount.start.timestamp(), "subscription": subscription, "subscription_item": null
    });
    match shape {
        PayloadShape::Current => {
            let of = if expanded { whole() } else { discount.of.coupon.clone().into() };
            object["source"] = json!({"coupon": of, "type": "coupon"});
        }
        PayloadShape::Legacy => object["coupon"] = whole(),
    }
    object
}
