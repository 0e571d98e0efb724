//! What an invoice says happened to money.

use super::{
    Account, Cause, Legs, Unbookable,
    leg::{Book, less, negated},
};
use crate::{
    merge::Merged,
    money::Money,
    object::{Invoice, InvoiceStatus},
};

/// A draft asks for nothing yet; a status of tomorrow is waited out.
pub(super) fn legs(merged: &Merged<Invoice>) -> Result<Legs, Unbookable> {
    let invoice = merged.value();
    let mut book = Book::new(invoice.currency.as_deref());
    match invoice.status {
        _ if invoice.deleted => {}
        InvoiceStatus::Draft | InvoiceStatus::Other(_) => {}
        InvoiceStatus::Open => finalized(&mut book, merged)?,
        InvoiceStatus::Paid => {
            finalized(&mut book, merged)?;
            recovered(&mut book, merged)?;
        }
        InvoiceStatus::Uncollectible => {
            finalized(&mut book, merged)?;
            let at = (Cause::InvoiceWrittenOff, invoice.written_off_at.unwrap_or_else(|| merged.as_of()));
            book.move_amount(at, invoice.amount_remaining, (Account::BadDebt, Account::Receivable))?;
        }
        InvoiceStatus::Void => {
            finalized(&mut book, merged)?;
            voided(&mut book, merged)?;
        }
    }
    Ok(book.about(None))
}

/// What it asks for, what went into it of the customer's credit, and what was paid of it so far.
fn finalized(book: &mut Book, merged: &Merged<Invoice>) -> Result<(), Unbookable> {
    let invoice = merged.value();
    let total = invoice.total.ok_or(Unbookable::NoTotal)?;
    let at = invoice.finalized_at.or(invoice.created).unwrap_or_else(|| merged.as_of());
    let tax = negated(invoice.tax)?;
    book.post((Cause::InvoiceFinalized, at), &[(Account::Receivable, total), (Account::Tax, tax)], Account::Revenue)?;
    let credit = (Account::CreditClearing, Account::Receivable);
    book.move_amount((Cause::CreditUsed, at), invoice.credit_used, credit)?;
    let elsewhere = merged.paid_elsewhere();
    let paid = (Cause::InvoicePaid, invoice.paid_at.unwrap_or_else(|| merged.as_of()));
    book.move_amount(paid, elsewhere, (Account::OutOfBand, Account::Receivable))?;
    book.move_amount(paid, less(invoice.amount_paid, elsewhere)?, (Account::Payments, Account::Receivable))
}

/// What had been written off before it was paid: written off then, and taken back now.
fn recovered(book: &mut Book, merged: &Merged<Invoice>) -> Result<(), Unbookable> {
    let invoice = merged.value();
    let Some(written_off_at) = invoice.written_off_at else { return Ok(()) };
    let (amount, paid_at) = (invoice.amount_paid, invoice.paid_at.unwrap_or_else(|| merged.as_of()));
    let written_off = (Account::BadDebt, Account::Receivable);
    book.move_amount((Cause::InvoiceWrittenOff, written_off_at), amount, written_off)?;
    book.move_amount((Cause::InvoiceRecovered, paid_at), amount, (Account::Receivable, Account::BadDebt))
}

/// Takes back what it still asked for: what credit notes had taken off before stays with them. Stripe gives the customer
/// back the credit that went into it.
fn voided(book: &mut Book, merged: &Merged<Invoice>) -> Result<(), Unbookable> {
    let invoice = merged.value();
    let at = invoice.voided_at.unwrap_or_else(|| merged.as_of());
    let total = invoice.total.ok_or(Unbookable::NoTotal)?;
    let withdrawn = less(total, invoice.credited)?;
    let tax = if withdrawn == total { invoice.tax } else { tax_share(invoice, withdrawn, total)? };
    let receivable = negated(withdrawn)?;
    book.post((Cause::InvoiceVoided, at), &[(Account::Receivable, receivable), (Account::Tax, tax)], Account::Revenue)?;
    book.move_amount(
        (Cause::CreditUsed, at),
        negated(invoice.credit_used)?,
        (Account::CreditClearing, Account::Receivable),
    )
}

/// The tax in a part of the total, so that both parts' taxes add up.
fn tax_share(invoice: &Invoice, withdrawn: i64, total: i64) -> Result<i64, Unbookable> {
    let currency = invoice.currency.as_deref().and_then(|code| code.parse().ok()).ok_or(Unbookable::NoCurrency)?;
    let rest = less(total, withdrawn)?;
    let weights = [withdrawn.unsigned_abs(), rest.unsigned_abs()];
    if weights == [0, 0] {
        return Ok(0);
    }
    Ok(Money::new(invoice.tax, currency).split(&weights)?.first().map_or(0, |share| share.minor()))
}
