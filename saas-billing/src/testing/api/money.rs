//! Charges, refunds, disputes, credit notes, coupons, promotion codes.

use super::{ApiError, Outcome, REFUSED, Request};
use crate::{
    object::ObjectKind,
    testing::{
        coupon::{Coupon, Lasts, Wanted},
        money::{NoteOutcome, SimCharge, SimDispute, SimRefund},
        payload,
    },
};

impl Request<'_, '_> {
    pub(super) fn list_charges(mut self) -> Outcome {
        let customer = self.params.take("customer");
        let fits = |charge: &SimCharge| customer.as_ref().is_none_or(|customer| charge.customer == *customer);
        let ids = Self::all(&self.engine.world.charges, fits);
        self.many(ObjectKind::Charge, "/v1/charges", ids)
    }

    pub(super) fn list_refunds(mut self) -> Outcome {
        let charge = self.params.take("charge");
        let fits = |refund: &SimRefund| charge.as_ref().is_none_or(|charge| refund.charge == *charge);
        let ids = Self::all(&self.engine.world.refunds, fits);
        self.many(ObjectKind::Refund, "/v1/refunds", ids)
    }

    pub(super) fn list_disputes(mut self) -> Outcome {
        let charge = self.params.take("charge");
        let fits = |dispute: &SimDispute| charge.as_ref().is_none_or(|charge| dispute.charge == *charge);
        let ids = Self::all(&self.engine.world.disputes, fits);
        self.many(ObjectKind::Dispute, "/v1/disputes", ids)
    }

    pub(super) fn list_credit_notes(mut self) -> Outcome {
        let invoice = self.params.take("invoice");
        let ids = Self::all(&self.engine.world.credit_notes, |note| {
            invoice.as_ref().is_none_or(|invoice| note.invoice == *invoice)
        });
        self.many(ObjectKind::CreditNote, "/v1/credit_notes", ids)
    }

    pub(super) fn create_refund(mut self) -> Outcome {
        let (charge, intent) = (self.params.take("charge"), self.params.take("payment_intent"));
        let amount = self.params.number("amount")?;
        let _ = self.params.take("reason");
        std::mem::take(&mut self.params).finish()?;
        let of_intent = |intent: &String| {
            let mut charges = self.engine.world.charges.values();
            charges.find(|charge| charge.payment_intent == *intent && charge.succeeded).map(|charge| charge.id.clone())
        };
        let charge = charge.or_else(|| intent.as_ref().and_then(of_intent));
        let charge = charge.ok_or_else(|| ApiError::missing("charge"))?;
        let known = self.engine.world.charges.get(&charge);
        let known = known.ok_or_else(|| ApiError::no_such("charge", &charge, "charge"))?;
        if known.succeeded && known.refunded == known.amount {
            return Err(ApiError::new(
                400,
                REFUSED,
                "charge_already_refunded",
                "The charge has already been refunded.",
            ));
        }
        if known.disputed {
            return Err(ApiError::new(400, REFUSED, "charge_disputed", "The charge has been charged back."));
        }
        let refund = self.engine.refund(&charge, amount);
        let id = refund.ok_or_else(|| ApiError::invalid("amount_too_large", "amount"))?;
        self.done(ObjectKind::Refund, &id)
    }

    pub(super) fn answer_dispute(mut self, id: &str) -> Outcome {
        let evidence = self.params.map("evidence");
        let submits = self.params.flag("submit")? != Some(false);
        std::mem::take(&mut self.params).finish()?;
        if submits && !evidence.is_empty() {
            self.engine.answer_dispute(id).ok_or_else(|| ApiError::not_found("dispute", id))?;
        }
        self.done(ObjectKind::Dispute, id)
    }

    /// Accepting a dispute is losing it.
    pub(super) fn give_dispute_up(mut self, id: &str) -> Outcome {
        std::mem::take(&mut self.params).finish()?;
        self.engine.close_dispute(id, false).ok_or_else(|| ApiError::not_found("dispute", id))?;
        self.done(ObjectKind::Dispute, id)
    }

    pub(super) fn create_credit_note(mut self) -> Outcome {
        let invoice = self.params.need("invoice")?;
        let amount: i64 = self.params.number("amount")?.ok_or_else(|| ApiError::missing("amount"))?;
        let (refund, credit) = (self.params.number("refund_amount")?, self.params.number("credit_amount")?);
        let out_of_band = self.params.number("out_of_band_amount")?;
        let _ = (self.params.take("reason"), self.params.take("memo"));
        std::mem::take(&mut self.params).finish()?;
        let paid = self.engine.world.invoices.get(&invoice).map(|invoice| invoice.status == "paid");
        let paid = paid.ok_or_else(|| ApiError::no_such("invoice", &invoice, "invoice"))?;
        let whole = Some(amount);
        let outcome = match (refund, credit, out_of_band) {
            (None, None, None) if !paid => NoteOutcome::Refund,
            (refund, None, None) if refund == whole => NoteOutcome::Refund,
            (None, credit, None) if credit == whole => NoteOutcome::Balance,
            (None, None, out_of_band) if out_of_band == whole => NoteOutcome::OutOfBand,
            _ => {
                let message = "The sum of credit amount, refund amount and out of band amount must equal the total.";
                return Err(ApiError::new(400, REFUSED, "", message));
            }
        };
        let note = self.engine.credit_note(&invoice, amount, outcome);
        let id = note.ok_or_else(|| ApiError::invalid("amount_too_large", "amount"))?;
        self.done(ObjectKind::CreditNote, &id)
    }

    pub(super) fn void_credit_note(mut self, id: &str) -> Outcome {
        std::mem::take(&mut self.params).finish()?;
        self.engine.void_note(id).ok_or_else(|| ApiError::not_found("credit_note", id))?;
        self.done(ObjectKind::CreditNote, id)
    }

    pub(super) fn create_coupon(mut self) -> Outcome {
        let id = self.params.take("id").unwrap_or_else(|| self.engine.world.mint("co"));
        let (name, percent) = (self.params.take("name"), self.params.take("percent_off"));
        let (amount, currency) = (self.params.number("amount_off")?, self.params.take("currency"));
        let months = self.params.number("duration_in_months")?;
        let words = [("once", Lasts::Once), ("repeating", Lasts::Months(0)), ("forever", Lasts::Forever)];
        let lasts = match (self.params.word("duration", &words)?.unwrap_or(Lasts::Once), months) {
            (Lasts::Months(_), Some(months)) => Lasts::Months(months),
            (Lasts::Months(_), None) => return Err(ApiError::missing("duration_in_months")),
            (lasts @ (Lasts::Once | Lasts::Forever), _) => lasts,
        };
        std::mem::take(&mut self.params).finish()?;
        let terms = match (percent, amount, currency) {
            (Some(percent), None, _) => {
                let hundredths = hundredths(&percent).filter(|hundredths| (1..=10_000).contains(hundredths));
                Coupon::percent(hundredths.ok_or_else(|| ApiError::invalid("parameter_invalid", "percent_off"))?, lasts)
            }
            (None, Some(amount), Some(currency)) if amount > 0 => Coupon::amount(amount, &currency, lasts),
            _ => return Err(ApiError::missing("percent_off")),
        };
        if self.engine.world.coupons.contains_key(&id) {
            return Err(ApiError::new(400, REFUSED, "resource_already_exists", "Coupon already exists."));
        }
        self.engine.create_coupon(&id, name, terms);
        self.coupon(&id)
    }

    pub(super) fn coupon(mut self, id: &str) -> Outcome {
        std::mem::take(&mut self.params).finish()?;
        let coupon = self.engine.world.coupons.get(id).ok_or_else(|| ApiError::not_found("coupon", id))?;
        Ok(payload::coupon(coupon, self.engine.livemode))
    }

    pub(super) fn create_promotion_code(mut self) -> Outcome {
        let (coupon, nested) = (self.params.take("coupon"), self.params.take("promotion[coupon]"));
        let _ = self.params.word("promotion[type]", &[("coupon", ())])?;
        let coupon = nested.or(coupon).ok_or_else(|| ApiError::missing("promotion[coupon]"))?;
        let code = self.params.take("code");
        std::mem::take(&mut self.params).finish()?;
        if !self.engine.world.coupons.contains_key(&coupon) {
            return Err(ApiError::no_such("coupon", &coupon, "promotion[coupon]"));
        }
        let code = code.unwrap_or_else(|| format!("CODE{}", self.engine.world.minted));
        if self.engine.wanted(None, Some(&code)).is_some() {
            let message = "An active promotion code with this code already exists.";
            return Err(ApiError::new(400, REFUSED, "resource_already_exists", message));
        }
        let id = self.engine.create_promotion_code(&code, &coupon);
        let known = self.engine.world.promotion_codes.get(&id);
        let known = known.ok_or_else(|| ApiError::not_found("promotion_code", &id))?;
        Ok(payload::promotion_code(self.shape, known, self.engine.world, self.engine.livemode))
    }

    pub(super) fn list_promotion_codes(mut self) -> Outcome {
        let code = self.params.take("code");
        let (world, shape, live) = (&*self.engine.world, self.shape, self.engine.livemode);
        let fits = |known: &&crate::testing::coupon::SimPromotionCode| {
            code.as_ref().is_none_or(|code| known.code.eq_ignore_ascii_case(code))
        };
        let shown = world.promotion_codes.values().filter(fits);
        let shown = shown.map(|code| (code.id.clone(), payload::promotion_code(shape, code, world, live))).collect();
        self.page("/v1/promotion_codes", shown)
    }

    /// What `discounts[0][…]` names.
    pub(super) fn discount(&mut self) -> Result<Option<Wanted>, ApiError> {
        let (coupon, code) = ("discounts[0][coupon]", "discounts[0][promotion_code]");
        let (coupon_id, code_id) = (self.params.take(coupon), self.params.take(code));
        if coupon_id.is_none() && code_id.is_none() {
            return Ok(None);
        }
        let (what, param) = if code_id.is_some() { ("promotion code", code) } else { ("coupon", coupon) };
        let wanted = self.engine.wanted(coupon_id.as_deref(), code_id.as_deref());
        let named = code_id.or(coupon_id).unwrap_or_default();
        wanted.map(Some).ok_or_else(|| ApiError::no_such(what, &named, param))
    }
}

/// A percentage as it is sent, in hundredths: `25.5` is 2,550.
fn hundredths(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let part: String = part.chars().chain("00".chars()).take(2).collect();
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(part.parse().ok()?)
}
