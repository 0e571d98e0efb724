//! Whether the ledger is what this crate wrote: the chain link by link, the entries against the objects.
//!
//! Finds what was changed, removed, put in by hand, or cut off. Cannot find, from the inside, an owner who writes the whole
//! chain and the objects anew, or who throws both away: that is what an anchor is for, kept where the owner of the database
//! cannot reach it. Nor can it find what Stripe never told: that is the reconciliation's.

use std::collections::BTreeMap;

use saas_core::{Actor, CoreError, PageSize, SystemTx, TenantId};

use super::{GENESIS, Hash, LedgerAnchor, LedgerFault, LedgerReport, Record, difference, legs};
use crate::{
    Billing, BillingError,
    derive::AnyMerged,
    money::Currency,
    object::ObjectId,
    postgres::{
        ledger::{self, Chain},
        ledger_read::{self, Stored},
        object,
    },
};

/// Transactions or objects in memory at a time.
const PAGE: i64 = 500;
/// Faults of one sort that are looked for.
const MOST: i64 = 100;

/// A place among the tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyCursor(TenantId);

/// What a page of [`Billing::verify_ledgers`] found.
#[must_use]
#[derive(Debug, Clone, Default)]
pub struct VerifiedLedgers {
    /// Tenants that were looked at.
    pub tenants: usize,
    /// Transactions that were read.
    pub transactions: u64,
    /// Of whom something is wrong.
    pub unsound: Vec<(TenantId, LedgerReport)>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<VerifyCursor>,
}

/// How far the chain was walked.
struct Walk {
    sequence: i64,
    hash: Hash,
}

impl Billing {
    /// Looks through one tenant's ledger: every link and every hash, balance by transaction, the end of the chain, and that
    /// what is written about each stored object is what follows from it.
    ///
    /// Memory is bounded whatever the size, and nobody waits for it: what is added meanwhile is for the next time. Hand it
    /// the anchor that an earlier report ended with, from where you keep it, to find a chain that was cut off or written
    /// anew.
    ///
    /// # Errors
    /// When the database does not answer. What is wrong with the ledger is in the report.
    pub async fn verify_ledger(
        &self,
        actor: &Actor,
        tenant: TenantId,
        anchor: Option<&LedgerAnchor>,
    ) -> Result<LedgerReport, BillingError> {
        let chain = self.chain(tenant);
        let mut tx = self.begin_look(actor).await?;
        let end = ledger_read::end(&mut tx, chain).await?;
        let beyond = ledger_read::beyond(&mut tx, chain).await?;
        let orphans = ledger_read::orphans(&mut tx, chain, MOST).await?;
        let unexplained = ledger_read::unexplained(&mut tx, chain, MOST).await?;
        tx.commit().await?;
        let (last, end_hash) = end.unwrap_or((0, GENESIS));
        let mut report = LedgerReport::new(LedgerAnchor { sequence: last, hash: end_hash });
        let walk = self.walk(actor, chain, last, anchor, &mut report).await?;
        if walk.hash != end_hash {
            report.push(LedgerFault::EndChanged);
        }
        if let Some(sequence) = beyond {
            report.push(LedgerFault::BeyondEnd { sequence });
        }
        for sequence in orphans {
            report.push(LedgerFault::Orphans { sequence });
        }
        for subject in unexplained {
            report.push(LedgerFault::Unexplained { subject });
        }
        self.compare(actor, chain, &mut report).await?;
        if !report.is_sound() {
            tracing::error!(target: "saas.billing.ledger", %tenant, faults = report.faults.len(), "a ledger is not what was written");
        }
        Ok(report)
    }

    /// As [`verify_ledger`](Self::verify_ledger), for a page of tenants.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn verify_ledgers(
        &self,
        actor: &Actor,
        after: Option<VerifyCursor>,
        size: PageSize,
    ) -> Result<VerifiedLedgers, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "list ledgers to verify").await?;
        let after = after.map(|cursor| cursor.0);
        let tenants = ledger_read::tenants(&mut tx, self.scope.livemode, after, i64::from(size.get())).await?;
        tx.commit().await?;
        let full = tenants.len() == usize::from(size.get());
        let next = tenants.last().copied().filter(|_| full).map(VerifyCursor);
        let mut page = VerifiedLedgers { next, ..VerifiedLedgers::default() };
        for tenant in tenants {
            let report = self.verify_ledger(actor, tenant, None).await?;
            page.tenants += 1;
            page.transactions += report.transactions;
            if !report.is_sound() {
                page.unsound.push((tenant, report));
            }
        }
        Ok(page)
    }

    /// A transaction whose statements all see one instant.
    async fn begin_look(&self, actor: &Actor) -> Result<SystemTx, CoreError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "verify a ledger").await?;
        sqlx::query("set transaction isolation level repeatable read, read only")
            .execute(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        Ok(tx)
    }

    async fn walk(
        &self,
        actor: &Actor,
        chain: Chain,
        last: i64,
        anchor: Option<&LedgerAnchor>,
        report: &mut LedgerReport,
    ) -> Result<Walk, BillingError> {
        let mut walk = Walk { sequence: 0, hash: GENESIS };
        let mut anchored = anchor.is_none_or(|anchor| anchor.sequence == 0 && anchor.hash == GENESIS);
        loop {
            let mut tx = self.begin_look(actor).await?;
            let page = ledger_read::transactions(&mut tx, chain, (walk.sequence, last), PAGE).await?;
            tx.commit().await?;
            if page.is_empty() {
                break;
            }
            for stored in &page {
                walk.step(chain, stored, report);
                anchored |= anchor.is_some_and(|anchor| (anchor.sequence, anchor.hash) == (walk.sequence, walk.hash));
            }
        }
        walk.expect(last, report);
        if let Some(anchor) = anchor.filter(|_| !anchored) {
            report.push(LedgerFault::AnchorLost { sequence: anchor.sequence });
        }
        Ok(walk)
    }

    /// What is written about each object against what follows from it.
    async fn compare(&self, actor: &Actor, chain: Chain, report: &mut LedgerReport) -> Result<(), BillingError> {
        let (tenant, livemode) = chain;
        let mut after: Option<ObjectId> = None;
        loop {
            let mut tx = self.begin_look(actor).await?;
            let page = match object::page(&mut tx, tenant, livemode, after.as_ref(), PAGE).await {
                Ok(page) => page,
                Err(CoreError::Corrupt { .. }) => {
                    // Whichever it is, what follows from those after it is not looked at.
                    let subject =
                        after.map_or_else(|| "the first objects".to_owned(), |id| format!("objects after {id}"));
                    report.push(LedgerFault::Unreadable { subject });
                    return Ok(());
                }
                Err(why) => return Err(why.into()),
            };
            for merged in &page {
                let booked = match merged {
                    AnyMerged::Subscription(_) | AnyMerged::CheckoutSession(_) => continue,
                    AnyMerged::Customer(_)
                    | AnyMerged::Invoice(_)
                    | AnyMerged::Charge(_)
                    | AnyMerged::Refund(_)
                    | AnyMerged::Dispute(_)
                    | AnyMerged::CreditNote(_) => legs(merged),
                };
                report.objects += 1;
                let subject = merged.id().to_string();
                let written = match ledger::written(&mut tx, chain, &[&subject]).await {
                    Ok(mut written) => written.remove(&subject).unwrap_or_default(),
                    Err(CoreError::Corrupt { .. }) => {
                        report.push(LedgerFault::Unreadable { subject });
                        continue;
                    }
                    Err(why) => return Err(why.into()),
                };
                match booked.and_then(|target| difference(&target, &written, merged.as_of())) {
                    Ok(drafts) => {
                        let differs = drafts.first().and_then(|draft| draft.postings.first());
                        if let Some(posting) = differs {
                            report.push(LedgerFault::Differs { subject, account: posting.account });
                        }
                    }
                    Err(why) => report.push(LedgerFault::Unbookable { subject, reason: why.to_string() }),
                }
            }
            tx.commit().await?;
            match page.last() {
                Some(last) if i64::try_from(page.len()) == Ok(PAGE) => after = Some(last.id().clone()),
                Some(_) | None => return Ok(()),
            }
        }
    }
}

impl Walk {
    /// Whatever is between here and `sequence` is missing.
    fn expect(&mut self, sequence: i64, report: &mut LedgerReport) {
        if self.sequence < sequence {
            let first = self.sequence.saturating_add(1);
            report.push(LedgerFault::Missing { sequence: first });
            report.more += u64::try_from(sequence.saturating_sub(first)).unwrap_or(0);
            self.sequence = sequence;
        }
    }

    fn step(&mut self, chain: Chain, stored: &Stored, report: &mut LedgerReport) {
        self.expect(stored.sequence.saturating_sub(1), report);
        let sequence = stored.sequence;
        let expected = stored.record.as_ref().map(|record| record.hash(chain, &self.hash));
        // From here on by what is stored, so that one change is one fault and not one of every transaction after it.
        let hash = Hash::try_from(stored.hash.as_slice()).unwrap_or_default();
        if expected != Some(hash) {
            report.push(LedgerFault::Changed { sequence });
        }
        for currency in stored.record.iter().flat_map(unbalanced) {
            report.push(LedgerFault::Unbalanced { sequence, currency });
        }
        report.transactions += 1;
        *self = Self { sequence, hash };
    }
}

fn unbalanced(record: &Record) -> Vec<Currency> {
    let mut sums: BTreeMap<Currency, i128> = BTreeMap::new();
    for posting in &record.postings {
        *sums.entry(posting.amount.currency()).or_default() += i128::from(posting.amount.minor());
    }
    sums.into_iter().filter(|(_, sum)| *sum != 0).map(|(currency, _)| currency).collect()
}
