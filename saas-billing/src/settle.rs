//! The one transaction in which a snapshot changes what a tenant has.
//!
//! Locks in the order tenant → objects → ledger. Merging, what follows from it, the entries of the ledger, the revision,
//! the audit row, the operators' list, the notices and the fetches all commit with the mark on the receipt, or none of it
//! does.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, TenantId, audit, outbox, tenant};
use serde_json::json;
use sqlx::PgConnection;

use crate::{
    billing::{ACTOR, Billing},
    derive::{AnyMerged, FetchRequest, TenantObjects},
    event::AnySnapshot,
    merge::{Fact, Origin},
    object::{CheckoutStatus, ObjectId, ObjectKind, Subscription},
    postgres::{
        command, desk,
        directory::{self, Link},
        fetch, object, trial,
    },
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

/// Whose an object is.
enum Place {
    Of(TenantId),
    Nowhere(Settled),
}

/// What to call the report in the audit log.
pub(crate) struct Report<'a> {
    /// The event's id, or the fetch.
    pub(crate) source: &'a str,
    /// The event's type.
    pub(crate) event_type: &'a str,
}

impl Billing {
    /// Merges a snapshot into its tenant's objects.
    pub(crate) async fn settle(
        &self,
        connection: &mut PgConnection,
        snapshot: AnySnapshot,
        report: Report<'_>,
        now: DateTime<Utc>,
    ) -> Result<Settled, CoreError> {
        // Who holds a tenant's lock for long must not hold up the worker for all others.
        sqlx::query("set local lock_timeout = '500ms'")
            .execute(&mut *connection)
            .await
            .map_err(CoreError::from_database)?;
        let tenant = match self.place(connection, &snapshot, now).await? {
            Place::Of(tenant) => tenant,
            Place::Nowhere(settled) => return Ok(settled),
        };
        tenant::lock_in(connection, tenant).await?;
        if let Some(settled) = self.link_buyer(connection, &snapshot, tenant, now).await? {
            return Ok(settled);
        }
        if let Some(settled) = self.link_charge(connection, &snapshot, tenant, now).await? {
            return Ok(settled);
        }
        let (kind, id) = (snapshot.kind(), snapshot.id().clone());
        if snapshot.is_over() {
            command::close(connection, (tenant, &self.scope), &id).await?;
        }
        let mut objects = object::load(connection, tenant, self.scope.livemode, &[id.as_str()]).await?;
        let before = objects.find(kind, &id);
        objects.merge(snapshot);
        self.load_unseen(connection, tenant, &mut objects).await?;
        let after = objects.find(kind, &id).filter(|after| before.as_ref() != Some(after));
        let still_ambiguous = objects.is_uncertain(&id);
        let derived = self.derive_in(connection, &objects).await?;
        if let Some(AnyMerged::Subscription(merged)) = &after {
            self.note_trial(connection, tenant, merged.value(), now).await?;
        }
        if let Some(AnyMerged::Subscription(merged)) = after.as_ref().filter(|_| !still_ambiguous) {
            self.note_subscription(connection, tenant, merged.value(), now).await?;
        }
        let facts = match &after {
            Some(after) => {
                let facts = self.write_object(connection, tenant, (kind, &id), after, now).await?;
                self.post(connection, tenant, &id, after, now).await?;
                self.note_outcome(connection, tenant, after).await?;
                facts
            }
            None => Vec::new(),
        };
        // The answer can change although the object does not: the catalogue may have.
        // What was fetched without a date has none.
        let at = after.as_ref().map(AnyMerged::as_of).filter(|at| *at > DateTime::UNIX_EPOCH).unwrap_or(now);
        let change = self.write_derived(connection, tenant, &derived, (after.is_some(), at), now).await?;
        if after.is_some() || change.is_change() {
            let status = objects.find(kind, &id).map(|object| object.status().to_owned());
            let detail = json!({
                "event": report.source, "type": report.event_type, "kind": kind, "status": status, "facts": facts,
            });
            let action = facts.iter().map(action).next().unwrap_or(change.action());
            change.record(connection, &ACTOR, (action, id.as_str()), detail, now).await?;
        }
        Ok(Settled::Applied { tenant, still_ambiguous })
    }

    async fn place(
        &self,
        connection: &mut PgConnection,
        snapshot: &AnySnapshot,
        now: DateTime<Utc>,
    ) -> Result<Place, CoreError> {
        let customer = snapshot.customer();
        let linked = match customer {
            Some(customer) => directory::tenant_of(connection, &self.scope, customer).await?,
            None => None,
        };
        if let AnySnapshot::CheckoutSession(_) = snapshot {
            let ours = directory::tenant_of(connection, &self.scope, snapshot.id()).await?;
            if let Some(ours) = ours {
                return Ok(Place::Of(ours));
            }
            let meanwhile = directory::lock_unlinked(connection, &self.scope, (snapshot.kind(), snapshot.id())).await?;
            let waits_for = snapshot.id().clone();
            return Ok(Place::Nowhere(match (meanwhile, linked) {
                (Some(_), _) => Settled::Again,
                // Whoever made it may not have come to record it yet.
                (None, Some(_)) => Settled::Parked(waits_for),
                (None, None) => Settled::Quarantined {
                    reason: "a checkout that was not made here: its reference may be the buyer's own words",
                    waits_for,
                },
            }));
        }
        if let Some(charge) = snapshot.charge() {
            return self.place_of_charge(connection, charge, now).await;
        }
        let Some(customer) = customer else {
            return Ok(Place::Nowhere(Settled::Ignored("an object without a customer")));
        };
        if let Some(tenant) = linked {
            return Ok(Place::Of(tenant));
        }
        let meanwhile = directory::lock_unlinked(connection, &self.scope, (ObjectKind::Customer, customer)).await?;
        Ok(Place::Nowhere(if meanwhile.is_some() { Settled::Again } else { Settled::Parked(customer.clone()) }))
    }

    /// Whose a refund or a dispute is. One that comes before its charge waits for it, and has it fetched: the event about
    /// the charge may be lost.
    async fn place_of_charge(
        &self,
        connection: &mut PgConnection,
        charge: &ObjectId,
        now: DateTime<Utc>,
    ) -> Result<Place, CoreError> {
        if let Some(tenant) = directory::tenant_of(connection, &self.scope, charge).await? {
            return Ok(Place::Of(tenant));
        }
        let meanwhile = directory::lock_unlinked(connection, &self.scope, (ObjectKind::Charge, charge)).await?;
        if meanwhile.is_some() {
            return Ok(Place::Nowhere(Settled::Again));
        }
        let reason = "a refund or a dispute of a charge that no event has told about".to_owned();
        let request = FetchRequest { kind: ObjectKind::Charge, id: charge.clone(), reason };
        fetch::request(connection, &self.scope, &request, now).await?;
        Ok(Place::Nowhere(Settled::Parked(charge.clone())))
    }

    /// Remembers whose a charge is, and sets free what waited for that.
    async fn link_charge(
        &self,
        connection: &mut PgConnection,
        snapshot: &AnySnapshot,
        tenant: TenantId,
        now: DateTime<Utc>,
    ) -> Result<Option<Settled>, CoreError> {
        let AnySnapshot::Charge(charge) = snapshot else { return Ok(None) };
        let id = &charge.value.id;
        match directory::link(connection, &self.scope, (ObjectKind::Charge, id), tenant, now).await? {
            Link::Known => {}
            Link::New => {
                desk::free(connection, &self.scope, id.as_str(), now).await?;
                fetch::free(connection, &self.scope, id.as_str(), now).await?;
            }
            Link::Foreign => {
                let reason = "a charge of one tenant under the customer of another";
                return Ok(Some(Settled::Quarantined { reason, waits_for: id.clone() }));
            }
        }
        Ok(None)
    }

    /// Links the customer of a completed checkout that was made for the tenant, and sets free what waited for that.
    async fn link_buyer(
        &self,
        connection: &mut PgConnection,
        snapshot: &AnySnapshot,
        tenant: TenantId,
        now: DateTime<Utc>,
    ) -> Result<Option<Settled>, CoreError> {
        let AnySnapshot::CheckoutSession(session) = snapshot else { return Ok(None) };
        let Some(customer) =
            session.value.customer.as_ref().filter(|_| session.value.status == CheckoutStatus::Complete)
        else {
            return Ok(None);
        };
        match directory::link(connection, &self.scope, (ObjectKind::Customer, customer), tenant, now).await? {
            Link::Known => {}
            Link::New => {
                desk::free(connection, &self.scope, customer.as_str(), now).await?;
                fetch::free(connection, &self.scope, customer.as_str(), now).await?;
            }
            Link::Foreign => {
                let reason = "a checkout of one tenant by the customer of another";
                return Ok(Some(Settled::Quarantined { reason, waits_for: session.value.id.clone() }));
            }
        }
        Ok(None)
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

    /// Stores what is known about an object, and announces the facts that are new.
    async fn write_object(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        (kind, id): (ObjectKind, &ObjectId),
        after: &AnyMerged,
        now: DateTime<Utc>,
    ) -> Result<Vec<Fact>, CoreError> {
        let livemode = self.scope.livemode;
        object::store(connection, tenant, livemode, (kind, id), after, now).await?;
        let facts = object::record_facts(connection, tenant, livemode, id, &after.facts(), now).await?;
        self.notify(connection, tenant, id, after, &facts, now).await?;
        Ok(facts)
    }

    /// One job per new fact. A failed payment that has been made good meanwhile is on record and not announced.
    async fn notify(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        id: &ObjectId,
        after: &AnyMerged,
        facts: &[Fact],
        now: DateTime<Utc>,
    ) -> Result<(), CoreError> {
        let Some(topic) = &self.config.notices else { return Ok(()) };
        for fact in facts {
            let over =
                matches!(fact, Fact::PaymentFailed(_) | Fact::ConfirmationAsked(_)) && after.is_settled_invoice();
            if !over {
                let job = outbox::NewJob::of(topic.clone(), &json!({"fact": fact, "object": id}))?;
                outbox::enqueue_in(connection, tenant, job, now).await?;
            }
        }
        Ok(())
    }
}

/// The name of a fact in the audit log.
fn action(fact: &Fact) -> &'static str {
    match fact {
        Fact::CheckoutCompleted => "checkout.completed",
        Fact::CustomerDeleted => "customer.deleted",
        Fact::InvoicePaid => "invoice.paid",
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
