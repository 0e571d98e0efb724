//! The one transaction in which snapshots change what a tenant has: all are heard, then what they come to is written down.
//!
//! Locks in the order tenant → objects → ledger. Merging, what follows from it, the entries of the ledger, the revision,
//! the audit row, the operators' list, the notices and the fetches all commit with the mark on the receipt, or none of it
//! does.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use saas_core::{CoreError, TenantId, audit, outbox};
use serde_json::json;
use sqlx::PgConnection;

use crate::{
    billing::{ACTOR, Billing},
    derive::{AnyMerged, TenantObjects},
    event::AnySnapshot,
    merge::{Fact, Origin},
    object::{ObjectId, ObjectKind, Subscription},
    place::Place,
    postgres::{command, object, trial},
    rederive::Change,
    sitting::{Heard, Seated, Sitting},
};

/// What a snapshot came to.
#[derive(Debug)]
pub(crate) enum Settled {
    /// Merged for this tenant.
    Applied { tenant: TenantId, still_ambiguous: bool },
    /// Nothing hangs on it.
    Ignored(&'static str),
    /// Its customer has no tenant yet, or it is a checkout that nobody has recorded yet.
    Parked(ObjectId),
    /// It must not have an effect; a link of the object named would change that.
    Quarantined { reason: &'static str, waits_for: ObjectId },
    /// A link came in between; nothing was written, look again.
    Again,
}

/// Where a snapshot comes from.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    /// The event's id, or the fetch: what the audit log calls it.
    pub(crate) source: String,
    /// The event's type.
    pub(crate) event_type: String,
    /// What was known about the object when it was read, if what was read stands for all of that.
    pub(crate) afresh: Option<Box<AnyMerged>>,
}

impl Billing {
    /// Merges a snapshot into its tenant's objects.
    pub(crate) async fn settle(
        &self,
        connection: &mut PgConnection,
        snapshot: AnySnapshot,
        report: Report,
        now: DateTime<Utc>,
    ) -> Result<Settled, CoreError> {
        bound_costs(connection).await?;
        let mut sitting = Sitting::default();
        let settled = self.hear(connection, &mut sitting, snapshot, report, now).await?;
        self.write_down(connection, &mut sitting, now).await?;
        Ok(settled)
    }

    /// Merges a snapshot into what is known, in a transaction whose costs are bounded. Links are made at once; what follows
    /// for the tenant waits for [`write_down`](Self::write_down). What has no tenant yet, or another one than those before it,
    /// is left to a transaction of its own: [`Settled::Again`].
    pub(crate) async fn hear(
        &self,
        connection: &mut PgConnection,
        sitting: &mut Sitting,
        snapshot: AnySnapshot,
        report: Report,
        now: DateTime<Utc>,
    ) -> Result<Settled, CoreError> {
        let tenant = match self.place(connection, sitting, &snapshot, now).await? {
            Place::Of(tenant) => tenant,
            Place::Nowhere(settled) => return Ok(settled),
        };
        if !self.lock_for(connection, sitting, tenant).await? {
            return Ok(Settled::Again);
        }
        if let Some(settled) = self.link_buyer(connection, sitting, &snapshot, tenant, now).await? {
            return Ok(settled);
        }
        if let Some(settled) = self.link_charge(connection, sitting, &snapshot, tenant, now).await? {
            return Ok(settled);
        }
        let (kind, id) = (snapshot.kind(), snapshot.id().clone());
        if snapshot.is_over() {
            command::close(connection, (tenant, &self.scope), &id).await?;
        }
        let Seated { objects, heard, .. } = self.seat(connection, sitting, tenant, (kind, &id)).await?;
        let before = objects.find(kind, &id);
        if let Some(known) = &report.afresh {
            // What was heard since the read must not be forgotten with the rest.
            if before.as_ref() != Some(known) {
                return Ok(Settled::Again);
            }
            objects.forget(kind, &id);
        }
        objects.merge(snapshot);
        let after = objects.find(kind, &id);
        heard.push(Heard {
            kind,
            is_news: before != after,
            status: after.as_ref().map(|object| object.status().to_owned()),
            facts: after.as_ref().map(AnyMerged::facts).unwrap_or_default(),
            report,
            id: id.clone(),
        });
        Ok(Settled::Applied { tenant, still_ambiguous: objects.is_uncertain(&id) })
    }

    /// Writes what was heard, and what follows from all of it together: as if the newest had come first.
    pub(crate) async fn write_down(
        &self,
        connection: &mut PgConnection,
        sitting: &mut Sitting,
        now: DateTime<Utc>,
    ) -> Result<(), CoreError> {
        let Some((tenant, Seated { mut objects, stored, heard, .. })) = sitting.take() else { return Ok(()) };
        self.load_unseen(connection, tenant, &mut objects).await?;
        let derived = self.derive_in(connection, &objects).await?;
        let news: BTreeSet<_> =
            heard.iter().filter(|heard| heard.is_news).map(|heard| (heard.kind, &heard.id)).collect();
        let changed: Vec<AnyMerged> = news.into_iter().filter_map(|(kind, id)| objects.find(kind, id)).collect();
        for object in &changed {
            let AnyMerged::Subscription(merged) = object else { continue };
            self.note_trial(connection, tenant, merged.value(), now).await?;
            if !objects.is_uncertain(object.id()) {
                self.note_subscription(connection, tenant, merged.value(), now).await?;
            }
        }
        let mut facts = Vec::new();
        if !changed.is_empty() {
            let afresh: Vec<ObjectId> =
                heard.iter().filter(|heard| heard.report.afresh.is_some()).map(|heard| heard.id.clone()).collect();
            facts = self.write_objects(connection, tenant, &changed, &afresh, now).await?;
            self.post(connection, tenant, &changed, now).await?;
        }
        for object in &changed {
            self.note_outcome(connection, tenant, object).await?;
        }
        // The answer can change although the object does not: the catalogue may have.
        // A change is dated by the subscriptions where there are any: what else was heard may have come days later.
        let (subscriptions, others): (Vec<&AnyMerged>, Vec<&AnyMerged>) =
            changed.iter().partition(|object| object.kind() == ObjectKind::Subscription);
        let newest = |objects: Vec<&AnyMerged>| objects.into_iter().map(AnyMerged::as_of).max();
        // What was fetched without a date has none.
        let dated = newest(subscriptions).or_else(|| newest(others)).filter(|at| *at > DateTime::UNIX_EPOCH);
        let at = dated.unwrap_or(now);
        let change = self.write_derived(connection, (tenant, stored), &derived, (!changed.is_empty(), at), now).await?;
        let entries = entries(heard, facts, &change);
        audit::record_all_in(connection, tenant, &ACTOR, entries, now).await
    }

    /// Adds the latest invoices of live subscriptions, settled or not: deriving asks whether they are known.
    pub(crate) async fn load_unseen(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        objects: &mut TenantObjects,
    ) -> Result<(), CoreError> {
        let unseen = objects.unseen_invoices();
        if unseen.is_empty() {
            return Ok(());
        }
        let ids: Vec<&str> = unseen.iter().map(ObjectId::as_str).collect();
        for merged in object::load_only(connection, tenant, self.scope.livemode, &ids).await? {
            objects.insert(merged);
        }
        Ok(())
    }

    /// Records for ever that the tenant has had its trial.
    async fn note_trial(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        subscription: &Subscription,
        now: DateTime<Utc>,
    ) -> Result<(), CoreError> {
        if subscription.trial_end.is_some()
            && trial::consume(connection, (tenant, &self.scope), &subscription.id, now).await?
        {
            let entry = audit::Entry::new("billing.trial_consumed", &subscription.id);
            audit::record_in(connection, tenant, &ACTOR, entry, now).await?;
        }
        Ok(())
    }

    /// Stores what is known about objects, and announces the facts that are new.
    async fn write_objects(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        changed: &[AnyMerged],
        afresh: &[ObjectId],
        now: DateTime<Utc>,
    ) -> Result<Vec<(ObjectId, Fact)>, CoreError> {
        let livemode = self.scope.livemode;
        let told = |object: &AnyMerged| {
            let id = object.id().clone();
            object.facts().into_iter().map(move |fact| (id.clone(), fact))
        };
        let facts: Vec<(ObjectId, Fact)> = changed.iter().flat_map(told).collect();
        let afresh: Vec<&str> = afresh.iter().map(|id| id.as_str()).collect();
        object::forget_effects(connection, (tenant, livemode), &afresh, &facts).await?;
        let facts = object::store(connection, (tenant, livemode), changed, &facts, now).await?;
        for (id, fact) in &facts {
            let is_settled = || changed.iter().any(|object| object.id() == id && object.is_settled_invoice());
            // A failed payment that has been made good meanwhile is on record and not announced.
            let is_over = matches!(fact, Fact::PaymentFailed(_) | Fact::ConfirmationAsked(_)) && is_settled();
            if let Some(topic) = self.config.notices.as_ref().filter(|_| !is_over) {
                let job = outbox::NewJob::of(topic.clone(), &json!({"fact": fact, "object": id}))?;
                outbox::enqueue_in(connection, tenant, job, now).await?;
            }
        }
        Ok(facts)
    }
}

/// One entry for each report that had an effect, with the facts that it brought; the last says what all came to.
fn entries(heard: Vec<Heard>, mut facts: Vec<(ObjectId, Fact)>, change: &Change) -> Vec<audit::Entry> {
    let last = heard.iter().rposition(|heard| heard.is_news).or(heard.len().checked_sub(1));
    let mut entries = Vec::new();
    for (place, heard) in heard.into_iter().enumerate() {
        let closing = Some(place) == last && (heard.is_news || change.is_change());
        if !heard.is_news && !closing {
            continue;
        }
        let brought = |(id, fact): &(ObjectId, Fact)| *id == heard.id && heard.facts.contains(fact);
        let (mine, rest): (Vec<_>, Vec<_>) = facts.into_iter().partition(brought);
        facts = rest;
        let mine: Vec<Fact> = mine.into_iter().map(|(_, fact)| fact).collect();
        let Report { source, event_type, .. } = &heard.report;
        let mut detail = json!({
            "event": source, "type": event_type, "kind": heard.kind, "status": heard.status, "facts": mine,
        });
        let mut otherwise = "billing.object_updated";
        if closing {
            change.describe(&mut detail);
            otherwise = change.action();
        }
        let action = mine.first().map_or(otherwise, action);
        entries.push(audit::Entry::new(action, &heard.id).with_detail(detail));
    }
    entries
}

/// Bounds what a merging transaction can cost the others: who holds a tenant's lock for long must not hold up the worker for
/// all. And has its statements find rows by their keys, whatever the planner knew when it made their plans: one that goes
/// through a whole table is from when that was empty.
pub(crate) const BOUNDS: &[(&str, &str)] =
    &[("lock_timeout", "500ms"), ("enable_seqscan", "off"), ("plan_cache_mode", "force_generic_plan")];

/// Sets the [`BOUNDS`] in a transaction that began without them.
async fn bound_costs(connection: &mut PgConnection) -> Result<(), CoreError> {
    let (names, values): (Vec<&str>, Vec<&str>) = BOUNDS.iter().copied().unzip();
    sqlx::query("select set_config(name, value, true) from unnest($1::text[], $2::text[]) as bound (name, value)")
        .bind(names)
        .bind(values)
        .execute(connection)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
}

/// The name of a fact in the audit log.
fn action(fact: &Fact) -> &'static str {
    match fact {
        Fact::CheckoutCompleted => "checkout.completed",
        Fact::CustomerDeleted => "customer.deleted",
        Fact::InvoicePaid => "invoice.paid",
        Fact::PaidElsewhere(_) => "invoice.paid_elsewhere",
        Fact::PaymentFailed(_) => "invoice.payment_failed",
        Fact::ConfirmationAsked(_) => "invoice.payment_action_required",
        Fact::CreditNoteIssued => "credit_note.issued",
        Fact::CreditNoteVoided => "credit_note.voided",
        Fact::DisputeLost => "dispute.lost",
        Fact::DisputeOpened => "dispute.opened",
        Fact::DisputeWon => "dispute.won",
        Fact::PaymentReceived => "payment.received",
        Fact::RefundFailed => "refund.failed",
        Fact::Refunded => "payment.refunded",
        Fact::SubscriptionEnded => "subscription.ended",
        Fact::SubscriptionStarted => "subscription.started",
    }
}

/// The origin of a snapshot about to be fetched, from what is known now.
pub(crate) fn fetch_origin(
    known: Option<&AnyMerged>,
    sequence: u64,
    as_of: Option<DateTime<Utc>>,
) -> (Origin, DateTime<Utc>) {
    match known {
        Some(merged) => merged.fetch_origin(sequence, as_of),
        // Of an object that nobody has told about, any event knows better when it cannot be dated.
        None => {
            let origin = Origin::Fetch { sequence, covers: Default::default(), covers_overflow: false };
            (origin, as_of.unwrap_or(DateTime::UNIX_EPOCH))
        }
    }
}
