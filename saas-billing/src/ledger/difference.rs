//! What is still to be written: what follows from an object, less what was written about it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::{Account, Cause, Legs, Posting, Unbookable};
use crate::money::{Currency, Money, MoneyError};

/// The sum of what was written about an object, for one cause, date, account and currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Why.
    pub cause: Cause,
    /// Dated.
    pub at: DateTime<Utc>,
    /// Where.
    pub account: Account,
    /// In which currency.
    pub currency: Currency,
    /// Minor units.
    pub minor: i128,
}

/// A transaction that is to be written, balanced, of one currency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Why.
    pub cause: Cause,
    /// Dated.
    pub at: DateTime<Utc>,
    /// Debits and credits, one per account.
    pub postings: Vec<Posting>,
}

/// A dated cause; a running one has no date of its own.
type Key = (Cause, Option<DateTime<Utc>>, Currency);

/// The difference, in one fixed order. Written and asked again, there is none: so the end does not depend on the order in
/// which snapshots came, nor on how often. `now_at` dates what a running cause lost altogether.
///
/// # Errors
/// [`OutOfRange`](MoneyError::OutOfRange).
pub fn difference(target: &Legs, written: &[Written], now_at: DateTime<Utc>) -> Result<Vec<Draft>, Unbookable> {
    let mut sums: BTreeMap<Key, (DateTime<Utc>, BTreeMap<Account, i128>)> = BTreeMap::new();
    let mut add = |cause: Cause, at: DateTime<Utc>, dated: DateTime<Utc>, currency, account, minor: i128| {
        let key = (cause, (!cause.is_running()).then_some(at), currency);
        let (_, accounts) = sums.entry(key).or_insert_with(|| (dated, BTreeMap::new()));
        let sum = accounts.entry(account).or_insert(0);
        *sum = sum.checked_add(minor).ok_or(MoneyError::OutOfRange)?;
        Ok::<(), MoneyError>(())
    };
    for leg in &target.legs {
        for posting in &leg.postings {
            let amount = posting.amount;
            add(leg.cause, leg.at, leg.at, amount.currency(), posting.account, i128::from(amount.minor()))?;
        }
    }
    for known in written {
        let dated = if known.cause.is_running() { now_at } else { known.at };
        let less = known.minor.checked_neg().ok_or(MoneyError::OutOfRange)?;
        add(known.cause, known.at, dated, known.currency, known.account, less)?;
    }
    let mut drafts = Vec::new();
    for ((cause, _, currency), (at, accounts)) in sums {
        let postings = accounts.into_iter().filter(|(_, minor)| *minor != 0).map(|(account, minor)| {
            let minor = i64::try_from(minor).map_err(|_| MoneyError::OutOfRange)?;
            Ok(Posting { account, amount: Money::new(minor, currency) })
        });
        let postings = postings.collect::<Result<Vec<_>, MoneyError>>()?;
        if !postings.is_empty() {
            drafts.push(Draft { cause, at, postings });
        }
    }
    Ok(drafts)
}
