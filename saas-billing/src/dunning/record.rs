//! Keeping the rows of dunning and its one waking job in step with what was derived, in the caller's transaction.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use saas_core::{CoreError, MessageKey, TenantId, audit, outbox, subscription::AccessLevel};
use serde_json::json;
use sqlx::PgConnection;

use super::{DUNNING, DunningTerms, Situation, agenda::Agenda};
use crate::{
    Billing,
    billing::ACTOR,
    derive::{AnyMerged, Derived},
    object::{InvoiceStatus, ObjectId},
    postgres::{
        dunning::{self, Head},
        object,
    },
};

/// What was derived for a tenant, and the terms that it has.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    pub(crate) derived: &'a Derived,
    pub(crate) terms: DunningTerms,
}

/// What is stored about a tenant's dunning.
#[derive(Debug)]
pub(super) struct Known {
    head: Option<Head>,
    /// Paid ones of which that is still to be said.
    pub(super) paid: BTreeMap<ObjectId, DateTime<Utc>>,
    pub(super) sent: BTreeMap<(ObjectId, MessageKey), DateTime<Utc>>,
}

impl<'a> Held<'a> {
    pub(super) fn situation(
        &'a self,
        paid: &'a BTreeMap<ObjectId, DateTime<Utc>>,
        sent: &'a super::Sent,
    ) -> Situation<'a> {
        Situation {
            debts: &self.derived.debts,
            paid,
            unpaid_since: self.derived.unpaid_since,
            suspended_since: self.derived.suspended_since,
            terms: &self.terms,
            sent,
        }
    }

    fn owes(&self) -> bool {
        !self.derived.debts.is_empty() || self.derived.unpaid_since.is_some()
    }
}

impl Billing {
    /// Brings the record of a tenant's dunning, `head`, up to what was derived. The tenant's row is locked.
    pub(crate) async fn write_dunning(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        held: &Held<'_>,
        head: Option<Head>,
        now: DateTime<Utc>,
    ) -> Result<(), CoreError> {
        let livemode = self.scope.livemode;
        if head.is_none() && !held.owes() {
            return Ok(());
        }
        dunning::store_debts(connection, tenant, livemode, &held.derived.debts).await?;
        let mut known = self.what_is_known(connection, tenant, held, head).await?;
        let agenda = held.situation(&known.paid, &dunning::pairs(&known.sent)).agenda(now);
        // Of a payment about which there is nothing to be said the row is not needed.
        for invoice in known.paid.keys().filter(|paid| agenda.due.iter().all(|due| due.invoice != **paid)) {
            dunning::close_invoice(connection, tenant, livemode, invoice, None).await?;
        }
        known.paid.retain(|paid, _| agenda.due.iter().any(|due| due.invoice == *paid));
        let wake_at = agenda.due.iter().map(|due| due.at).min().or(agenda.next_at);
        self.keep(connection, tenant, (held, &known), wake_at, now).await
    }

    /// What is stored, after invoices that are owed no more were closed.
    pub(super) async fn what_is_known(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        held: &Held<'_>,
        head: Option<Head>,
    ) -> Result<Known, CoreError> {
        let (livemode, debts) = (self.scope.livemode, &held.derived.debts);
        let invoices = dunning::invoices(connection, tenant, livemode).await?;
        let sent = dunning::sent(connection, &[tenant], livemode, invoices.keys()).await?;
        let gone = invoices.iter().filter(|(invoice, _)| !debts.contains_key(*invoice));
        let mut paid: BTreeMap<ObjectId, DateTime<Utc>> =
            gone.clone().filter_map(|(invoice, at)| Some((invoice.clone(), (*at)?))).collect();
        let closed: Vec<&ObjectId> = gone.filter(|(_, at)| at.is_none()).map(|(invoice, _)| invoice).collect();
        let paid_now = self.paid_of(connection, tenant, &closed).await?;
        for invoice in closed {
            // Who was told of the debt is told of its end.
            let told = sent.keys().any(|(about, _)| about == invoice);
            let paid_at = paid_now.get(invoice).copied().filter(|_| told);
            dunning::close_invoice(connection, tenant, livemode, invoice, paid_at).await?;
            paid.extend(paid_at.map(|at| (invoice.clone(), at)));
        }
        Ok(Known { head, paid, sent })
    }

    /// Which of these invoices were paid, and when.
    async fn paid_of(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        invoices: &[&ObjectId],
    ) -> Result<BTreeMap<ObjectId, DateTime<Utc>>, CoreError> {
        if invoices.is_empty() {
            return Ok(BTreeMap::new());
        }
        let ids: Vec<&str> = invoices.iter().map(|id| id.as_str()).collect();
        let objects = object::load_only(connection, tenant, self.scope.livemode, &ids).await?;
        let paid = objects.into_iter().filter_map(|object| {
            let AnyMerged::Invoice(merged) = object else { return None };
            let invoice = merged.value();
            let is_paid = invoice.status == InvoiceStatus::Paid;
            is_paid.then(|| (invoice.id.clone(), invoice.paid_at.unwrap_or_else(|| merged.as_of())))
        });
        Ok(paid.collect())
    }

    /// Records the level of access, and has the tenant looked at again at `wake_at`.
    pub(super) async fn keep(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        (held, known): (&Held<'_>, &Known),
        wake_at: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Result<(), CoreError> {
        let livemode = self.scope.livemode;
        let access = held.situation(&known.paid, &super::Sent::new()).access(now);
        let before = known.access();
        if access != before {
            let detail = json!({"from": before, "to": access, "unpaid_since": held.derived.unpaid_since});
            let entry = audit::Entry::new("billing.access_changed", tenant).with_detail(detail);
            audit::record_in(connection, tenant, &ACTOR, entry, now).await?;
        }
        let old = known.head.as_ref().and_then(|head| head.wake);
        let over = !held.owes() && known.paid.is_empty();
        let wake_at = wake_at.filter(|_| !over);
        let wake = match (old, wake_at) {
            (Some((at, job)), Some(wake_at)) if at == wake_at => Some((at, job)),
            (old, wake_at) => {
                if let Some((_, job)) = old {
                    outbox::withdraw_in(connection, tenant, job).await?;
                }
                match wake_at {
                    Some(at) => {
                        let job = outbox::NewJob::of(DUNNING, &json!({"livemode": livemode}))?.with_due_at(at);
                        Some((at, outbox::enqueue_in(connection, tenant, job, now).await?))
                    }
                    None => None,
                }
            }
        };
        if over {
            return dunning::delete_head(connection, tenant, livemode).await;
        }
        let head = Head { access, wake };
        if known.head.as_ref() == Some(&head) {
            return Ok(());
        }
        dunning::store_head(connection, tenant, livemode, &head).await
    }

    /// What is due at `now`, by what is stored.
    pub(super) async fn agenda(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        held: &Held<'_>,
        now: DateTime<Utc>,
    ) -> Result<(Known, Agenda), CoreError> {
        let head = dunning::head(connection, tenant, self.scope.livemode).await?;
        let known = self.what_is_known(connection, tenant, held, head).await?;
        let agenda = held.situation(&known.paid, &dunning::pairs(&known.sent)).agenda(now);
        Ok((known, agenda))
    }
}

impl Known {
    /// The level of access that was put on record last.
    pub(super) fn access(&self) -> AccessLevel {
        self.head.as_ref().map_or(AccessLevel::Full, |head| head.access)
    }
}
