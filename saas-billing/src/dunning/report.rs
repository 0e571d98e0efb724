//! What a tenant and an operator are told about a debt.

use std::{collections::BTreeMap, fmt};

use chrono::{DateTime, Utc};
use saas_core::{
    Actor, CoreError, MessageKey, Page, PageSize, SystemTx, TenantContext, TenantId, TenantTx,
    subscription::AccessLevel,
};
use serde::Serialize;
use sqlx::PgConnection;

use super::{DunningException, MessageCause, NextStep};
use crate::{
    Billing, BillingError,
    derive::Derived,
    money::{Currency, Money},
    object::{ObjectId, ObjectKind},
    postgres::{
        dunning::{self, word},
        state,
    },
    provider::{Fetched, ObjectSource, WebAddress},
    subscription::read_invoice,
};

/// Everything about what a tenant owes, at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DunningReport {
    /// The access that it has.
    pub access: AccessLevel,
    /// What that becomes if nothing is paid, and when.
    pub next_access: Option<(AccessLevel, DateTime<Utc>)>,
    /// Since when it owes; access goes by that. Without an invoice that says why, Stripe calls its subscription behind, and
    /// the invoice is being read.
    pub unpaid_since: Option<DateTime<Utc>>,
    /// The invoices that are owed, the oldest debt first.
    pub invoices: Vec<OwedInvoice>,
    /// The exception from its plan's policy, while that holds.
    pub exception: Option<DunningException>,
}

/// An invoice that is owed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OwedInvoice {
    /// Which.
    pub invoice: ObjectId,
    /// What is to be paid, where its currency is known.
    pub amount: Option<Money>,
    /// When its clock began or begins.
    pub since: DateTime<Utc>,
    /// Since when the buyer has to confirm the payment.
    pub confirm_since: Option<DateTime<Utc>>,
    /// What was sent, the earliest first.
    pub sent: Vec<(DateTime<Utc>, MessageKey)>,
    /// A message whose time has come, and which the worker has not sent yet.
    pub waiting: Option<MessageKey>,
    /// What comes next.
    pub next: Option<NextStep>,
    /// Where it can be paid; `None` where Stripe did not answer, or was not asked.
    pub pay_link: Option<WebAddress>,
}

/// A tenant that owes, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InDunning {
    /// Who.
    pub tenant: TenantId,
    /// What about. Without pay links.
    pub report: DunningReport,
    /// What it owes, per currency.
    pub owed: Vec<Money>,
}

/// A place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DunningCursor(TenantId);

/// What all tenants owe in one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Outstanding {
    /// All of it.
    pub amount: Money,
    /// How many tenants.
    pub tenants: i64,
    /// How many invoices.
    pub invoices: i64,
}

impl DunningReport {
    /// The next message, of all invoices.
    #[must_use]
    pub fn next_message(&self) -> Option<(DateTime<Utc>, &MessageKey)> {
        let next = self.invoices.iter().filter_map(|invoice| invoice.next.as_ref());
        next.filter_map(|next| Some((next.at, next.message.as_ref()?))).min_by_key(|(at, _)| *at)
    }
}

impl Billing {
    /// Explains what the tenant owes: which invoice, since when, what was said, what comes next and when, and where to pay.
    /// Whoever has a pay link sees the invoice: show it to those who may see bills.
    ///
    /// # Errors
    /// When the database does not answer. Stripe's silence only leaves the links out.
    pub async fn explain_dunning(
        &self,
        source: &dyn ObjectSource,
        ctx: &dyn TenantContext,
    ) -> Result<DunningReport, BillingError> {
        let mut tx = TenantTx::begin(self.tenants.as_ref(), ctx).await?;
        let now = self.clock.now();
        let mut report = self.report(&mut tx, ctx.tenant(), now).await?;
        tx.commit().await?;
        for invoice in &mut report.invoices {
            if let Ok(Fetched::Found { object, .. }) = source.fetch(ObjectKind::Invoice, &invoice.invoice).await {
                invoice.pay_link = read_invoice(&object).ok().and_then(|(_, summary)| summary.page);
            }
        }
        Ok(report)
    }

    /// Lists the tenants that owe, with what, since when, which step and which message comes next.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_dunning(
        &self,
        actor: &Actor,
        after: Option<DunningCursor>,
        size: PageSize,
    ) -> Result<Page<InDunning, DunningCursor>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "list tenants that owe").await?;
        let now = self.clock.now();
        let after = after.map(|cursor| cursor.0);
        let tenants = dunning::tenants(&mut tx, self.scope.livemode, after, i64::from(size.get()) + 1).await?;
        let mut items = Vec::with_capacity(tenants.len());
        for tenant in tenants {
            let report = self.report(&mut tx, tenant, now).await?;
            let mut owed: BTreeMap<Currency, Money> = BTreeMap::new();
            for amount in report.invoices.iter().filter_map(|invoice| invoice.amount) {
                let sum = owed.entry(amount.currency()).or_insert_with(|| Money::new(0, amount.currency()));
                *sum = sum.checked_add(amount).unwrap_or(*sum);
            }
            items.push(InDunning { tenant, report, owed: owed.into_values().collect() });
        }
        tx.commit().await?;
        Ok(Page::from_rows(items, size, |item| DunningCursor(item.tenant)))
    }

    /// What all tenants owe, per currency.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn dunning_outstanding(&self, actor: &Actor) -> Result<Vec<Outstanding>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "add up what is owed").await?;
        let rows = dunning::outstanding(&mut tx, self.scope.livemode).await?;
        tx.commit().await?;
        let corrupt = CoreError::Corrupt { table: "saas.dunning_invoice", column: "currency" };
        let read = |(currency, tenants, invoices, sum): (String, i64, i64, String)| {
            let amount = Money::new(sum.parse().ok()?, currency.parse().ok()?);
            Some(Outstanding { amount, tenants, invoices })
        };
        rows.into_iter().map(read).collect::<Option<Vec<_>>>().ok_or(corrupt.into())
    }

    async fn report(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        now: DateTime<Utc>,
    ) -> Result<DunningReport, CoreError> {
        let livemode = self.scope.livemode;
        let (derived, exception) = state::find_with_exception(connection, tenant, livemode).await?;
        let derived: Derived = derived.unwrap_or_default();
        let sent = dunning::sent(connection, &[tenant], livemode, derived.debts.keys()).await?;
        let held = self.held_with(&derived, exception.as_ref());
        let (paid, pairs) = (BTreeMap::new(), dunning::pairs(&sent));
        let situation = held.situation(&paid, &pairs);
        let due = situation.agenda(now).due;
        let mut invoices: Vec<OwedInvoice> = derived
            .debts
            .iter()
            .map(|(invoice, debt)| {
                let about = sent.iter().filter(|((of, _), _)| of == invoice);
                let mut sent: Vec<_> = about.map(|((_, message), at)| (*at, message.clone())).collect();
                sent.sort();
                let waiting = due.iter().find(|due| due.invoice == *invoice && due.cause != MessageCause::Recovery);
                OwedInvoice {
                    invoice: invoice.clone(),
                    amount: debt.currency.map(|currency| Money::new(debt.minor, currency)),
                    since: debt.since,
                    confirm_since: debt.confirm_since,
                    sent,
                    waiting: waiting.map(|due| due.message.clone()),
                    next: situation.next_of(invoice, debt, now),
                    pay_link: None,
                }
            })
            .collect();
        invoices.sort_by(|a, b| (a.since, &a.invoice).cmp(&(b.since, &b.invoice)));
        Ok(DunningReport {
            access: situation.access(now),
            next_access: situation.next_access(now),
            unpaid_since: derived.unpaid_since,
            invoices,
            exception: exception.filter(|exception| now < exception.expires_at),
        })
    }
}

const FORMAT: &str = "%Y-%m-%d %H:%M UTC";

/// A sentence for each invoice, and one about access.
impl fmt::Display for DunningReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.unpaid_since, self.invoices.is_empty()) {
            (None, _) => f.write_str("nothing is owed")?,
            (Some(since), true) => {
                write!(
                    f,
                    "Stripe says that payments are behind since {}; the invoice is being read",
                    since.format(FORMAT)
                )?;
            }
            (Some(_), false) => {
                for (n, invoice) in self.invoices.iter().enumerate() {
                    write!(f, "{}{invoice}", if n == 0 { "" } else { "; " })?;
                }
            }
        }
        write!(f, "; access is {}", word(self.access))?;
        if let Some((access, at)) = self.next_access {
            write!(f, ", from {} {}", at.format(FORMAT), word(access))?;
        }
        if let Some(exception) = &self.exception {
            let DunningException { author, reason, expires_at, .. } = exception;
            write!(f, "; an exception of {author} holds until {} ({reason})", expires_at.format(FORMAT))?;
        }
        Ok(())
    }
}

impl fmt::Display for OwedInvoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.invoice)?;
        if let Some(amount) = self.amount {
            write!(f, " over {amount}")?;
        }
        match self.confirm_since.filter(|asked| self.since > *asked) {
            Some(asked) => write!(f, " waits to be confirmed by the buyer since {}", asked.format(FORMAT))?,
            None => write!(f, " is unpaid since {}", self.since.format(FORMAT))?,
        }
        if let Some((at, message)) = self.sent.last() {
            write!(f, ", `{message}` was sent on {}", at.format(FORMAT))?;
        }
        if let Some(message) = &self.waiting {
            write!(f, ", `{message}` is being sent")?;
        }
        if let Some(next) = &self.next {
            let what = next.message.as_ref().map_or_else(String::new, |message| format!("`{message}` "));
            write!(f, ", next {what}on {}", next.at.format(FORMAT))?;
        }
        match &self.pay_link {
            Some(link) => write!(f, ", to be paid at {}", link.as_str()),
            None => Ok(()),
        }
    }
}
