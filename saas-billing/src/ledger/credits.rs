//! Prepaid credits: granted for a payment or out of goodwill, burnt, never below zero by burning.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, IdempotencyKey, InvalidInput, SystemTx, TenantContext, audit};
use serde_json::json;

use super::{
    Account, Cause, Draft, Posting,
    post::{Booking, Request},
};
use crate::{
    Billing, BillingError,
    money::{Currency, Money},
    object::ObjectId,
    postgres::ledger::{self, Requested},
};

/// Credits to be granted.
#[derive(Debug, Clone)]
pub struct CreditGrant {
    /// Makes it happen once. Of credits that were bought, the payment's id is the right key: two events about one payment
    /// then grant once.
    pub key: IdempotencyKey,
    /// How much; above zero.
    pub amount: Money,
    /// What they were bought with: `pi_…`, or `ch_…` of a charge without one. When it is refunded or disputed they are taken
    /// back in proportion. `None` for a gift.
    pub payment: Option<ObjectId>,
}

/// What became of a grant.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    /// Granted now; its place in the ledger.
    Now {
        /// Which transaction.
        sequence: i64,
    },
    /// Granted before under this key.
    Before {
        /// Which transaction.
        sequence: i64,
    },
}

/// What became of burning credits.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Burn {
    /// Burnt; so much is left.
    Burnt {
        /// What can still be burnt.
        left: Money,
        /// Which transaction.
        sequence: i64,
    },
    /// Burnt before under this key; nothing was burnt now.
    Before {
        /// Which transaction.
        sequence: i64,
    },
    /// There is less than was asked for; nothing was burnt.
    Short {
        /// What there is. Below zero: more was revoked than was left.
        left: Money,
    },
}

/// What became of taking an entry back.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reversal {
    /// Taken back now.
    Now {
        /// Which transaction does it.
        sequence: i64,
    },
    /// Taken back before.
    Before {
        /// Which transaction did it.
        sequence: i64,
    },
}

impl Billing {
    /// Grants prepaid credits, once per key.
    ///
    /// # Errors
    /// [`KeyReused`](CoreError::KeyReused) when the key stands for something else; `Invalid` for an amount that is not above
    /// zero.
    pub async fn grant_credits(&self, ctx: &dyn TenantContext, grant: &CreditGrant) -> Result<Granted, BillingError> {
        let mut tx = SystemTx::begin(&self.system, ctx.actor().clone(), "grant prepaid credits").await?;
        let granted = self.grant_credits_in(&mut tx, ctx, grant).await?;
        tx.commit().await?;
        Ok(granted)
    }

    /// As [`grant_credits`](Self::grant_credits), in the caller's transaction.
    ///
    /// # Errors
    /// As [`grant_credits`](Self::grant_credits); roll back then.
    pub async fn grant_credits_in(
        &self,
        tx: &mut SystemTx,
        ctx: &dyn TenantContext,
        grant: &CreditGrant,
    ) -> Result<Granted, BillingError> {
        let (now, tenant) = (self.clock.now(), ctx.tenant());
        let (key, payment) = (grant.key.as_str(), grant.payment.as_ref().map(ObjectId::as_str));
        let draft = above_zero(grant.amount, Cause::CreditsGranted, now)?;
        // Whoever holds the end of the chain sees all that was written before.
        ledger::lock_end(tx, self.chain(tenant), &[]).await?;
        if let Some(known) = ledger::find_request(tx, self.chain(tenant), (Some(key), None)).await? {
            let same = known.is(Cause::CreditsGranted, grant.amount.minor(), grant.amount.currency());
            return if same && known.payment.as_deref() == payment {
                Ok(Granted::Before { sequence: known.sequence })
            } else {
                Err(reused(&grant.key))
            };
        }
        let request = Request { actor: ctx.actor(), key: Some(key), reverses: None };
        let subject = format!("grant:{key}");
        let booking = Booking { subject: &subject, payment, drafts: vec![draft] };
        let sequence = self.append(tx, tenant, vec![booking], &request, now).await?.last;
        self.revoke_credits(tx, tenant, payment.as_slice(), now).await?;
        let detail = json!({"amount": grant.amount, "payment": grant.payment});
        let entry = audit::Entry::new("ledger.credits_granted", &subject).with_detail(detail);
        audit::record_for(tx, ctx, entry, now).await?;
        Ok(Granted::Now { sequence })
    }

    /// Burns prepaid credits, once per key, if there are as many.
    ///
    /// Any number may burn at once: they take turns, and together never burn more than there is.
    ///
    /// # Errors
    /// [`KeyReused`](CoreError::KeyReused) when the key stands for something else; `Invalid` for an amount that is not above
    /// zero; `Unavailable` when the turn does not come in time.
    pub async fn burn_credits(
        &self,
        ctx: &dyn TenantContext,
        key: &IdempotencyKey,
        amount: Money,
    ) -> Result<Burn, BillingError> {
        let mut tx = SystemTx::begin(&self.system, ctx.actor().clone(), "burn prepaid credits").await?;
        let burn = self.burn_credits_in(&mut tx, ctx, key, amount).await?;
        tx.commit().await?;
        Ok(burn)
    }

    /// As [`burn_credits`](Self::burn_credits), in the caller's transaction.
    ///
    /// # Errors
    /// As [`burn_credits`](Self::burn_credits); roll back then.
    pub async fn burn_credits_in(
        &self,
        tx: &mut SystemTx,
        ctx: &dyn TenantContext,
        key: &IdempotencyKey,
        amount: Money,
    ) -> Result<Burn, BillingError> {
        let (now, tenant) = (self.clock.now(), ctx.tenant());
        let draft = above_zero(amount, Cause::CreditsBurnt, now)?;
        let chain = self.chain(tenant);
        ledger::lock_end(tx, chain, &[]).await?;
        if let Some(known) = ledger::find_request(tx, chain, (Some(key.as_str()), None)).await? {
            // Of a burn the tenant has less.
            let less = amount.checked_neg().map_err(out_of_range)?;
            return if known.is(Cause::CreditsBurnt, less.minor(), less.currency()) {
                Ok(Burn::Before { sequence: known.sequence })
            } else {
                Err(reused(key))
            };
        }
        let left = self.credits_left(tx, chain, amount.currency()).await?;
        let after = left.checked_sub(amount).map_err(out_of_range)?;
        if after.minor() < 0 {
            return Ok(Burn::Short { left });
        }
        let request = Request { actor: ctx.actor(), key: Some(key.as_str()), reverses: None };
        let subject = format!("burn:{}", key.as_str());
        let booking = Booking { subject: &subject, payment: None, drafts: vec![draft] };
        let sequence = self.append(tx, tenant, vec![booking], &request, now).await?.last;
        Ok(Burn::Burnt { left: after, sequence })
    }

    /// Takes a grant or a burn back by an entry of its own, once. What follows from a Stripe object is corrected at Stripe.
    ///
    /// # Errors
    /// `NotFound` when there is no such grant or burn.
    pub async fn reverse_credits(&self, ctx: &dyn TenantContext, sequence: i64) -> Result<Reversal, BillingError> {
        let (now, tenant) = (self.clock.now(), ctx.tenant());
        let mut tx = SystemTx::begin(&self.system, ctx.actor().clone(), "take an entry back").await?;
        let chain = self.chain(tenant);
        ledger::lock_end(&mut tx, chain, &[]).await?;
        let known = ledger::find_request(&mut tx, chain, (None, Some(sequence))).await?;
        let Some(known) = known.filter(|known| matches!(known.cause, Cause::CreditsGranted | Cause::CreditsBurnt))
        else {
            return Err(CoreError::NotFound { what: "grant or burn of credits" }.into());
        };
        if let Some(sequence) = known.reversed_by {
            return Ok(Reversal::Before { sequence });
        }
        let amount = Money::new(known.minor, known.currency);
        let other = if known.cause == Cause::CreditsGranted { Account::CreditsGranted } else { Account::CreditsBurnt };
        let back = amount.checked_neg().map_err(out_of_range)?;
        let postings = vec![Posting { account: Account::Credits, amount }, Posting { account: other, amount: back }];
        let drafts = vec![Draft { cause: Cause::Reversed, at: now, postings }];
        let key = format!("reverse:{sequence}");
        let request = Request { actor: ctx.actor(), key: Some(&key), reverses: Some(sequence) };
        let payment = known.payment.as_deref();
        let booking = Booking { subject: &known.subject, payment, drafts };
        let reversal = self.append(&mut tx, tenant, vec![booking], &request, now).await?.last;
        self.revoke_credits(&mut tx, tenant, payment.as_slice(), now).await?;
        let entry = audit::Entry::new("ledger.reversed", &known.subject).with_detail(json!({"sequence": sequence}));
        audit::record_for(&mut tx, ctx, entry, now).await?;
        tx.commit().await?;
        Ok(Reversal::Now { sequence: reversal })
    }

    async fn credits_left(
        &self,
        tx: &mut SystemTx,
        chain: ledger::Chain,
        currency: Currency,
    ) -> Result<Money, BillingError> {
        let owed = ledger::balance(tx, chain, (Account::Credits, currency)).await?;
        let left = owed.checked_neg().and_then(|left| i64::try_from(left).ok());
        let out_of_range = CoreError::Corrupt { table: "saas.ledger_entry", column: "amount" };
        Ok(Money::new(left.ok_or(out_of_range)?, currency))
    }
}

impl Requested {
    fn is(&self, cause: Cause, minor: i64, currency: Currency) -> bool {
        (self.cause, self.minor, self.currency) == (cause, minor, currency)
    }
}

/// A grant or a burn.
fn above_zero(amount: Money, cause: Cause, at: DateTime<Utc>) -> Result<Draft, BillingError> {
    if amount.minor() <= 0 {
        return Err(
            InvalidInput::new("the amount of credits", "is not above zero", "pass what is granted or burnt").into()
        );
    }
    let back = amount.checked_neg().map_err(out_of_range)?;
    let (debit, credit) = if cause == Cause::CreditsGranted {
        (Account::CreditsGranted, Account::Credits)
    } else {
        (Account::Credits, Account::CreditsBurnt)
    };
    let mut postings = vec![Posting { account: debit, amount }, Posting { account: credit, amount: back }];
    postings.sort_by_key(|posting| posting.account);
    Ok(Draft { cause, at, postings })
}

fn out_of_range(why: crate::money::MoneyError) -> BillingError {
    InvalidInput::new("the amount of credits", why.to_string(), "pass an amount that exists").into()
}

fn reused(key: &IdempotencyKey) -> BillingError {
    CoreError::KeyReused { key: key.as_str().to_owned() }.into()
}
