//! Balances and statements.

use chrono::{DateTime, Utc};
use saas_core::{Actor, CoreError, Page, PageSize, SystemTx, TenantContext, TenantTx};
use serde::{Deserialize, Serialize};

use super::{Account, Cause};
use crate::{
    Billing, BillingError,
    money::{Currency, Money},
    postgres::ledger_read,
};

/// What is on an account, in one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Balance {
    /// Where.
    pub account: Account,
    /// Debits less credits.
    pub amount: Money,
}

/// Which entries are wanted.
#[derive(Debug, Clone, Default)]
pub struct StatementFilter {
    /// Only of this account.
    pub account: Option<Account>,
    /// Only in this currency.
    pub currency: Option<Currency>,
    /// Only from this instant on.
    pub from: Option<DateTime<Utc>>,
    /// Only before this instant.
    pub until: Option<DateTime<Utc>>,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatementLine {
    /// The transaction that it is part of.
    pub sequence: i64,
    /// When it happened, by Stripe's clock.
    pub occurred_at: DateTime<Utc>,
    /// When it was written, by ours.
    pub recorded_at: DateTime<Utc>,
    /// Why.
    pub cause: Cause,
    /// The Stripe object, or the request.
    pub subject: String,
    /// Where.
    pub account: Account,
    /// A debit above zero, a credit below.
    pub amount: Money,
}

/// A place in a statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementCursor {
    pub(crate) at: DateTime<Utc>,
    pub(crate) sequence: i64,
    pub(crate) currency: Currency,
    pub(crate) account: Account,
}

impl Billing {
    /// What is on each of the tenant's accounts, of what happened before `until`; of a period, the difference of two.
    /// Accounts without entries are left out.
    ///
    /// # Errors
    /// When the database does not answer; `Corrupt` for a sum that no amount can hold.
    pub async fn balances(
        &self,
        ctx: &dyn TenantContext,
        until: Option<DateTime<Utc>>,
    ) -> Result<Vec<Balance>, BillingError> {
        let mut tx = TenantTx::begin_read_only(self.tenants.as_ref(), ctx).await?;
        let sums = ledger_read::balances(&mut tx, self.chain(ctx.tenant()), until).await?;
        sums.into_iter().map(|sum| Ok(balance(sum)?)).collect()
    }

    /// What is on each account over all tenants. Reads the whole ledger: for an operator, not for a page.
    ///
    /// # Errors
    /// As [`balances`](Self::balances).
    pub async fn ledger_totals(&self, actor: &Actor) -> Result<Vec<Balance>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "add up the ledgers of all tenants").await?;
        let sums = ledger_read::totals(&mut tx, self.scope.livemode).await?;
        tx.commit().await?;
        sums.into_iter().map(|sum| Ok(balance(sum)?)).collect()
    }

    /// The tenant's entries in the order of their dates. What is written late about an earlier day stands at that day.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn statement(
        &self,
        ctx: &dyn TenantContext,
        filter: &StatementFilter,
        after: Option<&StatementCursor>,
        size: PageSize,
    ) -> Result<Page<StatementLine, StatementCursor>, BillingError> {
        let mut tx = TenantTx::begin_read_only(self.tenants.as_ref(), ctx).await?;
        let limit = i64::from(size.get()) + 1;
        let lines = ledger_read::statement(&mut tx, self.chain(ctx.tenant()), filter, after, limit).await?;
        Ok(Page::from_rows(lines, size, |line| StatementCursor {
            at: line.occurred_at,
            sequence: line.sequence,
            currency: line.amount.currency(),
            account: line.account,
        }))
    }
}

fn balance((currency, account, minor): (Currency, Account, i128)) -> Result<Balance, CoreError> {
    let too_much = CoreError::Corrupt { table: "saas.ledger_entry", column: "amount" };
    let amount = Money::new(i64::try_from(minor).map_err(|_| too_much)?, currency);
    Ok(Balance { account, amount })
}
