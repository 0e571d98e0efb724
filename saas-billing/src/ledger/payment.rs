//! What charges, refunds, disputes, credit notes and a customer's credit say happened to money.

use chrono::{DateTime, Utc};

use super::{
    Account, Cause, Legs, Unbookable,
    leg::{Book, less, negated},
};
use crate::{
    merge::{Fact, Merged, StripeObject},
    object::{
        Charge, ChargeStatus, CreditNote, CreditNoteStatus, Customer, Dispute, DisputeStatus, Refund, RefundStatus,
    },
};

pub(super) fn charge(merged: &Merged<Charge>) -> Result<Legs, Unbookable> {
    let charge = merged.value();
    let mut book = Book::new(charge.currency.as_deref());
    if charge.status == ChargeStatus::Succeeded {
        let at = charge.created.unwrap_or_else(|| merged.as_of());
        book.move_amount((Cause::PaymentReceived, at), charge.captured, (Account::Cash, Account::Payments))?;
    }
    Ok(book.about(Some(charge.payment().clone())))
}

pub(super) fn refund(merged: &Merged<Refund>) -> Result<Legs, Unbookable> {
    let refund = merged.value();
    let mut book = Book::new(refund.currency.as_deref());
    let left = match refund.status {
        RefundStatus::Pending | RefundStatus::Succeeded | RefundStatus::Failed => true,
        RefundStatus::RequiresAction | RefundStatus::Canceled | RefundStatus::Other(_) => false,
    };
    if left {
        let at = refund.created.unwrap_or_else(|| merged.as_of());
        book.move_amount((Cause::PaymentRefunded, at), refund.amount, (Account::Refunds, Account::Cash))?;
    }
    if refund.status == RefundStatus::Failed {
        let at = reported(merged, &Fact::RefundFailed);
        book.move_amount((Cause::RefundReturned, at), refund.amount, (Account::Cash, Account::Refunds))?;
    }
    Ok(book.about(refund.payment_intent.clone().or_else(|| refund.charge.clone())))
}

/// An inquiry moves no money.
pub(super) fn dispute(merged: &Merged<Dispute>) -> Result<Legs, Unbookable> {
    let dispute = merged.value();
    let mut book = Book::new(dispute.currency.as_deref());
    let opened = dispute.created.unwrap_or_else(|| merged.as_of());
    let taken = (Account::Disputes, Account::Cash);
    let decision = match dispute.status {
        DisputeStatus::NeedsResponse | DisputeStatus::UnderReview => None,
        DisputeStatus::Won => Some((Cause::DisputeWon, &Fact::DisputeWon, (Account::Cash, Account::Disputes))),
        DisputeStatus::Lost => {
            Some((Cause::DisputeLost, &Fact::DisputeLost, (Account::DisputesLost, Account::Disputes)))
        }
        DisputeStatus::WarningNeedsResponse
        | DisputeStatus::WarningUnderReview
        | DisputeStatus::WarningClosed
        | DisputeStatus::Prevented
        | DisputeStatus::Other(_) => return Ok(Legs::default()),
    };
    book.move_amount((Cause::DisputeOpened, opened), dispute.amount, taken)?;
    if let Some((cause, fact, accounts)) = decision {
        book.move_amount((cause, reported(merged, fact)), dispute.amount, accounts)?;
    }
    Ok(book.about(dispute.payment_intent.clone().or_else(|| dispute.charge.clone())))
}

/// What it takes off an open invoice, what goes back as refunds, and the rest to the customer's credit.
pub(super) fn credit_note(merged: &Merged<CreditNote>) -> Result<Legs, Unbookable> {
    let note = merged.value();
    let mut book = Book::new(note.currency.as_deref());
    let issued_at = note.created.unwrap_or_else(|| merged.as_of());
    let parts = [
        (Account::CreditNotes, less(note.total, note.tax)?),
        (Account::Tax, note.tax),
        (Account::Receivable, negated(note.unbilled)?),
        (Account::Refunds, negated(note.refunded)?),
        (Account::OutOfBand, negated(note.out_of_band)?),
    ];
    match note.status {
        CreditNoteStatus::Issued => {
            book.post((Cause::CreditNoteIssued, issued_at), &parts, Account::CreditClearing)?;
        }
        CreditNoteStatus::Void => {
            book.post((Cause::CreditNoteIssued, issued_at), &parts, Account::CreditClearing)?;
            let voided_at = note.voided_at.unwrap_or_else(|| merged.as_of());
            let mut back = parts;
            for (_, amount) in &mut back {
                *amount = negated(*amount)?;
            }
            book.post((Cause::CreditNoteVoided, voided_at), &back, Account::CreditClearing)?;
        }
        CreditNoteStatus::Other(_) => {}
    }
    Ok(book.about(None))
}

/// The credit of a customer that was deleted is gone with it.
pub(super) fn customer(merged: &Merged<Customer>) -> Result<Legs, Unbookable> {
    let customer = merged.value();
    let mut book = Book::new(customer.currency.as_deref());
    let balance = customer.balance.filter(|_| !customer.deleted).unwrap_or(0);
    let at = (Cause::CustomerCreditChanged, merged.as_of());
    book.move_amount(at, balance, (Account::CustomerCredit, Account::CreditClearing))?;
    Ok(book.about(None))
}

/// When something was first reported.
fn reported<T: StripeObject>(merged: &Merged<T>, wanted: &Fact) -> DateTime<Utc> {
    merged.history().facts().find(|(fact, _)| *fact == wanted).map_or_else(|| merged.as_of(), |(_, at)| at)
}
