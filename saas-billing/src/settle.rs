//! The one transaction in which a snapshot changes what a tenant has.
//!
//! Locks in the order tenant → objects. Merging, what follows from it, the revision, the audit row, the operators' list,
//! the notices and the fetches all commit with the mark on the receipt, or none of it does.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, TenantId, outbox, tenant};
use serde_json::json;
use sqlx::PgConnection;

use crate::{
    billing::{ACTOR, Billing},
    derive::{AnyMerged, TenantObjects, derive},
    event::AnySnapshot,
    merge::{Fact, Origin},
    object::{CheckoutStatus, ObjectId, ObjectKind},
    postgres::{
        command, desk,
        directory::{self, Link},
        fetch, object,
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
        let tenant = match self.place(connection, &snapshot).await? {
            Place::Of(tenant) => tenant,
            Place::Nowhere(settled) => return Ok(settled),
        };
        tenant::lock_in(connection, tenant).await?;
        if let Some(settled) = self.link_buyer(connection, &snapshot, tenant, now).await? {
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
        let derived = derive(&objects, &self.config.catalog);
        let facts = match &after {
            Some(after) => self.write_object(connection, tenant, (kind, &id), after, now).await?,
            None => Vec::new(),
        };
        // The answer can change although the object does not: the catalogue may have.
        let change = self.write_derived(connection, tenant, &derived, after.is_some(), now).await?;
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

    async fn place(&self, connection: &mut PgConnection, snapshot: &AnySnapshot) -> Result<Place, CoreError> {
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
        let Some(customer) = customer else {
            return Ok(Place::Nowhere(Settled::Ignored("an object without a customer")));
        };
        if let Some(tenant) = linked {
            return Ok(Place::Of(tenant));
        }
        let meanwhile = directory::lock_unlinked(connection, &self.scope, (ObjectKind::Customer, customer)).await?;
        Ok(Place::Nowhere(if meanwhile.is_some() { Settled::Again } else { Settled::Parked(customer.clone()) }))
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
            let over = matches!(fact, Fact::PaymentFailed(_)) && after.is_settled_invoice();
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
