//! Charges, and what becomes of them: refunds, disputes, credit notes.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{
    coupon,
    engine::Engine,
    payload::{self, PayloadShape},
};
use crate::object::ObjectKind;

#[derive(Debug, Clone)]
pub(super) struct SimCharge {
    pub(super) id: String,
    pub(super) payment_intent: String,
    pub(super) customer: String,
    pub(super) invoice: String,
    pub(super) amount: i64,
    pub(super) currency: String,
    pub(super) succeeded: bool,
    pub(super) refunded: i64,
    pub(super) disputed: bool,
    pub(super) created: DateTime<Utc>,
}

#[derive(Debug, Clone)]
pub(super) struct SimRefund {
    pub(super) id: String,
    pub(super) charge: String,
    pub(super) payment_intent: String,
    pub(super) amount: i64,
    pub(super) currency: String,
    pub(super) status: &'static str,
    pub(super) created: DateTime<Utc>,
}

#[derive(Debug, Clone)]
pub(super) struct SimDispute {
    pub(super) id: String,
    pub(super) charge: String,
    pub(super) payment_intent: String,
    pub(super) amount: i64,
    pub(super) currency: String,
    pub(super) status: &'static str,
    pub(super) created: DateTime<Utc>,
    /// What the bank took, and gave back.
    pub(super) moved: Vec<(String, i64, DateTime<Utc>)>,
}

#[derive(Debug, Clone)]
pub(super) struct SimCreditNote {
    pub(super) id: String,
    pub(super) customer: String,
    pub(super) invoice: String,
    pub(super) currency: String,
    pub(super) total: i64,
    pub(super) tax: i64,
    pub(super) unbilled: i64,
    pub(super) refund: Option<(String, i64)>,
    pub(super) to_balance: Option<(String, i64)>,
    pub(super) out_of_band: i64,
    pub(super) created: DateTime<Utc>,
    pub(super) voided_at: Option<DateTime<Utc>>,
}

/// Where a credit note's amount goes when its invoice has been paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoteOutcome {
    /// Back to the card.
    Refund,
    /// To the customer's balance, for coming invoices.
    Balance,
    /// Given back outside Stripe.
    OutOfBand,
}

impl Engine<'_> {
    /// Records a try to take money for an invoice.
    pub(super) fn record_charge(&mut self, invoice: &str, succeeded: bool) {
        let Some(billed) = self.world.invoices.get(invoice) else { return };
        let (amount, customer, currency) = (billed.due(), billed.customer.clone(), billed.currency.clone());
        if amount == 0 {
            return;
        }
        let (id, payment_intent) = (self.world.mint("ch"), format!("pi_of_{invoice}"));
        let charge = SimCharge {
            id: id.clone(),
            payment_intent,
            customer,
            invoice: invoice.to_owned(),
            amount,
            currency,
            succeeded,
            refunded: 0,
            disputed: false,
            created: self.now,
        };
        self.world.charges.insert(id.clone(), charge);
        if let Some(billed) = self.world.invoices.get_mut(invoice).filter(|_| succeeded) {
            billed.charge = Some(id.clone());
        }
        self.emit(if succeeded { "charge.succeeded" } else { "charge.failed" }, ObjectKind::Charge, &id);
    }

    /// Gives money back: what is asked for, or all that is left. `None` when there is not as much.
    pub(super) fn refund(&mut self, charge: &str, amount: Option<i64>) -> Option<String> {
        let known = self.world.charges.get_mut(charge).filter(|charge| charge.succeeded && !charge.disputed)?;
        let left = known.amount - known.refunded;
        let amount = amount.unwrap_or(left);
        if !(1..=left).contains(&amount) {
            return None;
        }
        known.refunded += amount;
        let (payment_intent, currency) = (known.payment_intent.clone(), known.currency.clone());
        let id = self.world.mint("re");
        let refund = SimRefund {
            id: id.clone(),
            charge: charge.to_owned(),
            payment_intent,
            amount,
            currency,
            status: "succeeded",
            created: self.now,
        };
        self.world.refunds.insert(id.clone(), refund);
        self.emit("refund.created", ObjectKind::Refund, &id);
        self.emit("charge.refunded", ObjectKind::Charge, charge);
        Some(id)
    }

    /// The bank sends a refund back.
    pub(super) fn fail_refund(&mut self, id: &str) -> Option<()> {
        let refund = self.world.refunds.get_mut(id).filter(|refund| refund.status == "succeeded")?;
        refund.status = "failed";
        let (charge, amount) = (refund.charge.clone(), refund.amount);
        self.world.charges.get_mut(&charge)?.refunded -= amount;
        self.emit("refund.updated", ObjectKind::Refund, id);
        self.emit("refund.failed", ObjectKind::Refund, id);
        self.emit("charge.updated", ObjectKind::Charge, &charge);
        Some(())
    }

    /// The customer's bank wants a payment back, or only asks about it.
    pub(super) fn dispute(&mut self, charge: &str, inquiry: bool) -> Option<String> {
        let known = self.world.charges.get_mut(charge).filter(|charge| charge.succeeded && !charge.disputed)?;
        known.disputed = true;
        let amount = known.amount - known.refunded;
        let (payment_intent, currency) = (known.payment_intent.clone(), known.currency.clone());
        let id = self.world.mint("dp");
        let dispute = SimDispute {
            id: id.clone(),
            charge: charge.to_owned(),
            payment_intent,
            amount,
            currency,
            status: if inquiry { "warning_needs_response" } else { "needs_response" },
            created: self.now,
            moved: Vec::new(),
        };
        self.world.disputes.insert(id.clone(), dispute);
        self.emit("charge.dispute.created", ObjectKind::Dispute, &id);
        if !inquiry {
            self.move_disputed(&id, -1);
            self.emit("charge.dispute.funds_withdrawn", ObjectKind::Dispute, &id);
        }
        Some(id)
    }

    /// Evidence is with the bank.
    pub(super) fn answer_dispute(&mut self, id: &str) -> Option<()> {
        let dispute = self.world.disputes.get_mut(id)?;
        dispute.status = match dispute.status {
            "needs_response" => "under_review",
            "warning_needs_response" => "warning_under_review",
            _ => return None,
        };
        self.emit("charge.dispute.updated", ObjectKind::Dispute, id);
        Some(())
    }

    /// The bank has decided.
    pub(super) fn close_dispute(&mut self, id: &str, won: bool) -> Option<()> {
        let dispute = self.world.disputes.get_mut(id)?;
        let (status, back) = match (dispute.status, won) {
            ("needs_response" | "under_review", true) => ("won", true),
            ("needs_response" | "under_review", false) => ("lost", false),
            ("warning_needs_response" | "warning_under_review", _) => ("warning_closed", false),
            _ => return None,
        };
        dispute.status = status;
        let charge = dispute.charge.clone();
        if status != "lost"
            && let Some(charge) = self.world.charges.get_mut(&charge)
        {
            charge.disputed = false;
        }
        if back {
            self.move_disputed(id, 1);
            self.emit("charge.dispute.funds_reinstated", ObjectKind::Dispute, id);
        }
        self.emit("charge.dispute.closed", ObjectKind::Dispute, id);
        Some(())
    }

    fn move_disputed(&mut self, id: &str, sign: i64) {
        let (transaction, now) = (self.world.mint("txn"), self.now);
        if let Some(dispute) = self.world.disputes.get_mut(id) {
            dispute.moved.push((transaction, sign * dispute.amount, now));
        }
    }

    /// Says that an invoice was too much. `None` when it is not that much.
    pub(super) fn credit_note(&mut self, invoice: &str, total: i64, outcome: NoteOutcome) -> Option<String> {
        let billed = self.world.invoices.get_mut(invoice)?;
        let paid = billed.status == "paid";
        let most = if paid { billed.total() - billed.credited - billed.credited_after } else { billed.due() };
        if !(1..=most).contains(&total) || !matches!(billed.status, "open" | "paid" | "uncollectible") {
            return None;
        }
        let tax = match billed.total() {
            0 => 0,
            whole => i64::try_from(i128::from(billed.tax()) * i128::from(total) / i128::from(whole)).unwrap_or(0),
        };
        let (customer, currency, charge) = (billed.customer.clone(), billed.currency.clone(), billed.charge.clone());
        let (mut refund, mut to_balance, mut out_of_band) = (None, None, 0);
        match outcome {
            _ if !paid => billed.credited += total,
            NoteOutcome::Refund => refund = Some((self.refund(&charge?, Some(total))?, total)),
            NoteOutcome::Balance => {
                self.move_balance(&customer, -total, &currency);
                to_balance = Some((self.world.mint("cbtxn"), total));
            }
            NoteOutcome::OutOfBand => out_of_band = total,
        }
        if let Some(billed) = self.world.invoices.get_mut(invoice).filter(|_| paid) {
            billed.credited_after += total;
        }
        let id = self.world.mint("cn");
        let note = SimCreditNote {
            id: id.clone(),
            customer: customer.clone(),
            invoice: invoice.to_owned(),
            currency,
            total,
            tax,
            unbilled: if paid { 0 } else { total },
            refund,
            to_balance,
            out_of_band,
            created: self.now,
            voided_at: None,
        };
        self.world.credit_notes.insert(id.clone(), note);
        self.emit("credit_note.created", ObjectKind::CreditNote, &id);
        self.emit("invoice.updated", ObjectKind::Invoice, invoice);
        let settled =
            self.world.invoices.get(invoice).is_some_and(|billed| billed.status == "open" && billed.due() == 0);
        if settled {
            self.settle(invoice);
        }
        Some(id)
    }

    /// Withdraws a credit note of an invoice that is still open.
    pub(super) fn void_note(&mut self, id: &str) -> Option<()> {
        let note = self.world.credit_notes.get_mut(id).filter(|note| note.voided_at.is_none())?;
        let billed = self.world.invoices.get_mut(&note.invoice).filter(|billed| billed.status == "open")?;
        billed.credited -= note.unbilled;
        note.voided_at = Some(self.now);
        let invoice = note.invoice.clone();
        self.emit("credit_note.voided", ObjectKind::CreditNote, id);
        self.emit("invoice.updated", ObjectKind::Invoice, &invoice);
        Some(())
    }

    /// Takes from the customer's balance, or adds to it, in the currency that it is billed in.
    pub(super) fn move_balance(&mut self, customer: &str, by: i64, currency: &str) {
        let Some(payer) = self.world.customers.get_mut(customer) else { return };
        payer.balance = payer.balance.saturating_add(by);
        payer.currency.get_or_insert_with(|| currency.to_owned());
        self.emit("customer.updated", ObjectKind::Customer, customer);
    }

    pub(super) fn show_money(&self, shape: PayloadShape, kind: ObjectKind, id: &str) -> Option<Value> {
        let (world, live) = (&*self.world, self.livemode);
        Some(match kind {
            ObjectKind::Charge => payload::charge(shape, world.charges.get(id)?, live),
            ObjectKind::Refund => payload::refund(world.refunds.get(id)?),
            ObjectKind::Dispute => payload::dispute(world.disputes.get(id)?, live),
            ObjectKind::CreditNote => payload::credit_note(shape, world.credit_notes.get(id)?, live),
            ObjectKind::Customer | ObjectKind::CheckoutSession | ObjectKind::Subscription | ObjectKind::Invoice => {
                return None;
            }
        })
    }

    /// A price less what percentages take off: what prorations are counted from.
    pub(super) fn less_percentages(&self, subscription: &str, amount: i64) -> i64 {
        let percentages = self.standing_terms(subscription, self.now).into_iter().filter_map(|(_, off)| match off {
            coupon::Off::Percent(hundredths) => Some(hundredths),
            coupon::Off::Amount(..) => None,
        });
        percentages.fold(amount, |left, hundredths| left - coupon::share(left, hundredths))
    }
}
