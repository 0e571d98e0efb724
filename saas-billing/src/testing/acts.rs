//! What people do in Stripe's dashboard and portal, and banks without being asked.

use saas_core::InvalidInput;

use super::{
    change::{Failing, Prorate},
    checkout::object_id,
    coupon::Coupon,
    money::NoteOutcome,
    simulator::StripeSimulator,
    world::{SimItem, SimPhase},
};
use crate::object::{ObjectId, ObjectKind};

fn refused(what: &'static str, why: &'static str, remedy: &'static str) -> InvalidInput {
    InvalidInput::new(what, why, remedy)
}

impl StripeSimulator {
    /// Makes a coupon under an id of choice.
    pub fn create_coupon(&self, id: &str, coupon: Coupon) {
        self.act(|engine| engine.create_coupon(id, None, coupon));
    }

    /// Makes a code that buyers can enter for a coupon.
    ///
    /// # Errors
    /// When there is no such coupon.
    pub fn create_promotion_code(&self, code: &str, coupon: &str) -> Result<ObjectId, InvalidInput> {
        let made = self.act(|engine| {
            let known = engine.world.coupons.contains_key(coupon);
            known.then(|| engine.create_promotion_code(code, coupon))
        });
        made.map(object_id).ok_or_else(|| refused("the coupon", "is not there", "make one with `create_coupon`"))
    }

    /// The buyer enters a promotion code on the payment page.
    ///
    /// # Errors
    /// When the session is not open or takes no codes, or there is no such code.
    pub fn enter_promotion_code(&self, session: &ObjectId, code: &str) -> Result<(), InvalidInput> {
        let entered = self.act(|engine| engine.enter_code(session.as_str(), code));
        entered.ok_or_else(|| refused("the promotion code", "is not taken by the session", "make an active one"))
    }

    /// Puts a coupon on a subscription, in place of what it has.
    ///
    /// # Errors
    /// When one of them is not there.
    pub fn apply_coupon(&self, subscription: &ObjectId, coupon: &str) -> Result<(), InvalidInput> {
        let applied = self.act(|engine| {
            let wanted = engine.wanted(Some(coupon), None)?;
            engine.discount(subscription.as_str(), wanted)?;
            engine.emit("customer.subscription.updated", ObjectKind::Subscription, subscription.as_str());
            Some(())
        });
        applied.ok_or_else(|| refused("the coupon or the subscription", "is not there", "make it first"))
    }

    /// What automatic tax takes from now on, in hundredths of a percent: 1,900 is nineteen. Before, it takes nothing.
    pub fn set_tax_rate(&self, hundredths: u32) {
        self.act(|engine| engine.world.tax_rate = hundredths.min(10_000));
    }

    /// The charge that paid an invoice.
    #[must_use]
    pub fn charge_of(&self, invoice: &ObjectId) -> Option<ObjectId> {
        self.act(|engine| engine.world.invoices.get(invoice.as_str())?.charge.clone()).map(object_id)
    }

    /// Gives money of a charge back: so many minor units, or all that is left.
    ///
    /// # Errors
    /// When there is not as much, or the charge is disputed.
    pub fn refund(&self, charge: &ObjectId, amount: Option<i64>) -> Result<ObjectId, InvalidInput> {
        let refund = self.act(|engine| engine.refund(charge.as_str(), amount));
        refund.map(object_id).ok_or_else(|| refused("the refund", "is more than is left", "refund what was charged"))
    }

    /// The customer's bank sends a refund back.
    ///
    /// # Errors
    /// When there is no such refund that has succeeded.
    pub fn fail_refund(&self, refund: &ObjectId) -> Result<(), InvalidInput> {
        let failed = self.act(|engine| engine.fail_refund(refund.as_str()));
        failed.ok_or_else(|| refused("the refund", "has not succeeded", "make one with `refund`"))
    }

    /// The customer's bank takes a payment back, for now.
    ///
    /// # Errors
    /// When there is no such payment, or it is disputed already.
    pub fn dispute(&self, charge: &ObjectId) -> Result<ObjectId, InvalidInput> {
        self.open_dispute(charge, false)
    }

    /// The customer's bank asks about a payment and takes nothing.
    ///
    /// # Errors
    /// As [`dispute`](Self::dispute).
    pub fn inquire(&self, charge: &ObjectId) -> Result<ObjectId, InvalidInput> {
        self.open_dispute(charge, true)
    }

    fn open_dispute(&self, charge: &ObjectId, inquiry: bool) -> Result<ObjectId, InvalidInput> {
        let dispute = self.act(|engine| engine.dispute(charge.as_str(), inquiry));
        dispute.map(object_id).ok_or_else(|| refused("the charge", "has not succeeded or is disputed", "charge first"))
    }

    /// Evidence is handed in.
    ///
    /// # Errors
    /// When there is no such dispute that waits for it.
    pub fn answer_dispute(&self, dispute: &ObjectId) -> Result<(), InvalidInput> {
        let answered = self.act(|engine| engine.answer_dispute(dispute.as_str()));
        answered.ok_or_else(|| refused("the dispute", "waits for no answer", "open one with `dispute`"))
    }

    /// The bank decides; of an inquiry, there is nothing to be won.
    ///
    /// # Errors
    /// When there is no such open dispute.
    pub fn close_dispute(&self, dispute: &ObjectId, won: bool) -> Result<(), InvalidInput> {
        let closed = self.act(|engine| engine.close_dispute(dispute.as_str(), won));
        closed.ok_or_else(|| refused("the dispute", "is not open", "open one with `dispute`"))
    }

    /// Issues a credit note over so many minor units, tax included. Of an invoice that is open it takes them off, whatever
    /// `outcome` says.
    ///
    /// # Errors
    /// When the invoice is not final, or was not that much.
    pub fn credit_note(&self, invoice: &ObjectId, total: i64, outcome: NoteOutcome) -> Result<ObjectId, InvalidInput> {
        let note = self.act(|engine| engine.credit_note(invoice.as_str(), total, outcome));
        note.map(object_id).ok_or_else(|| refused("the credit note", "is over more than is left", "credit less"))
    }

    /// Withdraws a credit note of an invoice that is still open.
    ///
    /// # Errors
    /// When there is no such credit note.
    pub fn void_credit_note(&self, note: &ObjectId) -> Result<(), InvalidInput> {
        let voided = self.act(|engine| engine.void_note(note.as_str()));
        voided.ok_or_else(|| refused("the credit note", "is void, or its invoice is paid", "credit an open invoice"))
    }

    /// Moves a subscription's first item to another price; the rest of the period is on an invoice at once, or on none.
    ///
    /// # Errors
    /// When one of them is not there.
    pub fn change_price(&self, subscription: &ObjectId, price: &str, prorate: bool) -> Result<(), InvalidInput> {
        let changed = self.act(|engine| {
            let known = engine.world.prices.contains_key(price);
            let mut items = engine.world.subscriptions.get(subscription.as_str()).filter(|_| known)?.items.clone();
            let first = items.first_mut()?;
            price.clone_into(&mut first.price);
            first.since = engine.now;
            let (how, now) = (if prorate { Prorate::Now } else { Prorate::Never }, engine.now);
            engine.change(subscription.as_str(), items, how, Failing::Owe, now).ok()
        });
        changed.ok_or_else(|| refused("the price or the subscription", "is not there", "make it first"))
    }

    /// Plans another price for a subscription's first item from the end of the present period on.
    ///
    /// # Errors
    /// When one of them is not there, or there is a plan already.
    pub fn schedule_price(&self, subscription: &ObjectId, price: &str) -> Result<(), InvalidInput> {
        let planned = self.act(|engine| {
            let known = engine.world.prices.contains_key(price);
            let sub = engine.world.subscriptions.get(subscription.as_str());
            let sub = sub.filter(|sub| known && sub.schedule.is_none() && sub.ended_at.is_none())?;
            let mut items: Vec<(String, Option<u64>)> =
                sub.items.iter().map(|SimItem { price, quantity, .. }| (price.clone(), *quantity)).collect();
            price.clone_into(&mut items.first_mut()?.0);
            let start = sub.period.1;
            let end = engine.one_period(&items, start);
            let schedule = engine.attach_schedule(subscription.as_str())?;
            engine.world.schedules.get_mut(&schedule)?.phases.push(SimPhase {
                start,
                end,
                items,
                prorate: true,
                discounts: None,
            });
            engine.announce_schedule("subscription_schedule.updated", &schedule);
            Some(())
        });
        planned.ok_or_else(|| refused("the price or the subscription", "is not there, or is planned", "release it"))
    }

    /// Lets go of what is planned for a subscription.
    ///
    /// # Errors
    /// When nothing is.
    pub fn release_schedule(&self, subscription: &ObjectId) -> Result<(), InvalidInput> {
        let released = self.act(|engine| {
            let schedule = engine.world.subscriptions.get(subscription.as_str())?.schedule.clone()?;
            engine.release(&schedule, "subscription_schedule.released");
            Some(())
        });
        released.ok_or_else(|| refused("the subscription", "has no schedule", "plan one with `schedule_price`"))
    }

    /// Pays one invoice with another card: what the customer's own card does stays as it is.
    ///
    /// # Errors
    /// When it is neither open nor written off.
    pub fn pay_invoice(&self, invoice: &ObjectId) -> Result<(), InvalidInput> {
        let paid = self.act(|engine| {
            let billed = engine.world.invoices.get_mut(invoice.as_str())?;
            if !matches!(billed.status, "open" | "uncollectible") {
                return None;
            }
            engine.record_charge(invoice.as_str(), true);
            engine.settle(invoice.as_str());
            Some(())
        });
        paid.ok_or_else(|| refused("the invoice", "is not open", "pay one that is"))
    }

    /// Marks one invoice as paid by other means: a transfer to the bank, say.
    ///
    /// # Errors
    /// When it is neither open nor written off.
    pub fn pay_invoice_elsewhere(&self, invoice: &ObjectId) -> Result<(), InvalidInput> {
        let paid = self.act(|engine| {
            let billed = engine.world.invoices.get_mut(invoice.as_str())?;
            if !matches!(billed.status, "open" | "uncollectible") {
                return None;
            }
            billed.paid_elsewhere = true;
            engine.settle(invoice.as_str());
            Some(())
        });
        paid.ok_or_else(|| refused("the invoice", "is not open", "pay one that is"))
    }

    /// Deletes an invoice that is not final yet.
    ///
    /// # Errors
    /// When it is final, or not there.
    pub fn delete_draft(&self, invoice: &ObjectId) -> Result<(), InvalidInput> {
        let deleted = self.act(|engine| {
            engine.world.invoices.get(invoice.as_str()).filter(|billed| billed.status == "draft")?;
            engine.world.moving.remove(invoice.as_str());
            engine.emit("invoice.deleted", ObjectKind::Invoice, invoice.as_str());
            engine.world.invoices.remove(invoice.as_str());
            Some(())
        });
        deleted.ok_or_else(|| refused("the invoice", "is no draft", "delete one that is"))
    }
}
