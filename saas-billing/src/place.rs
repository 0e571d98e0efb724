//! Whose a snapshot is, and the links that it brings.
//!
//! What has no tenant yet is parked under the lock of its link's row, so that whoever links it meanwhile finds it parked.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, TenantId};
use sqlx::PgConnection;

use crate::{
    billing::Billing,
    derive::FetchRequest,
    event::AnySnapshot,
    object::{CheckoutStatus, ObjectId, ObjectKind},
    postgres::{
        desk,
        directory::{self, Link},
        fetch, usage,
    },
    settle::Settled,
    sitting::Sitting,
};

/// Whose an object is.
pub(crate) enum Place {
    Of(TenantId),
    Nowhere(Settled),
}

impl Billing {
    /// Finds the tenant of a snapshot by what is linked.
    pub(crate) async fn place(
        &self,
        connection: &mut PgConnection,
        sitting: &mut Sitting,
        snapshot: &AnySnapshot,
        now: DateTime<Utc>,
    ) -> Result<Place, CoreError> {
        let customer = snapshot.customer();
        let linked = match customer {
            Some(customer) => sitting.tenant_of(connection, &self.scope, customer).await?,
            None => None,
        };
        if let AnySnapshot::CheckoutSession(_) = snapshot {
            let ours = sitting.tenant_of(connection, &self.scope, snapshot.id()).await?;
            if let Some(ours) = ours {
                return Ok(Place::Of(ours));
            }
            // What parks holds the lock of a link, which comes after the tenant's: never both.
            if sitting.is_shared() {
                return Ok(Place::Nowhere(Settled::Again));
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
            return self.place_of_charge(connection, sitting, charge, now).await;
        }
        let Some(customer) = customer else {
            return Ok(Place::Nowhere(Settled::Ignored("an object without a customer")));
        };
        if let Some(tenant) = linked {
            return Ok(Place::Of(tenant));
        }
        if sitting.is_shared() {
            return Ok(Place::Nowhere(Settled::Again));
        }
        let meanwhile = directory::lock_unlinked(connection, &self.scope, (ObjectKind::Customer, customer)).await?;
        Ok(Place::Nowhere(if meanwhile.is_some() { Settled::Again } else { Settled::Parked(customer.clone()) }))
    }

    /// Whose a refund or a dispute is. One that comes before its charge waits for it, and has it fetched: the event about
    /// the charge may be lost.
    async fn place_of_charge(
        &self,
        connection: &mut PgConnection,
        sitting: &mut Sitting,
        charge: &ObjectId,
        now: DateTime<Utc>,
    ) -> Result<Place, CoreError> {
        if let Some(tenant) = sitting.tenant_of(connection, &self.scope, charge).await? {
            return Ok(Place::Of(tenant));
        }
        if sitting.is_shared() {
            return Ok(Place::Nowhere(Settled::Again));
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

    /// Links an object to a tenant, whose lock is held, and sets free what waited for that.
    pub(crate) async fn link_object(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        (kind, id): (ObjectKind, &ObjectId),
        now: DateTime<Utc>,
    ) -> Result<Link, CoreError> {
        let link = directory::link(connection, &self.scope, (kind, id), tenant, now).await?;
        let Link::New { awaited } = link else { return Ok(link) };
        if awaited {
            desk::free(connection, &self.scope, id.as_str(), now).await?;
            fetch::free(connection, &self.scope, id.as_str(), now).await?;
        }
        if kind == ObjectKind::Customer {
            usage::free(connection, &self.scope, tenant, now).await?;
        }
        Ok(link)
    }

    /// Remembers whose a charge is, and sets free what waited for that.
    pub(crate) async fn link_charge(
        &self,
        connection: &mut PgConnection,
        sitting: &mut Sitting,
        snapshot: &AnySnapshot,
        tenant: TenantId,
        now: DateTime<Utc>,
    ) -> Result<Option<Settled>, CoreError> {
        let AnySnapshot::Charge(charge) = snapshot else { return Ok(None) };
        let id = &charge.value.id;
        if sitting.is_linked(id, tenant) {
            return Ok(None);
        }
        if self.link_object(connection, tenant, (ObjectKind::Charge, id), now).await? == Link::Foreign {
            let reason = "a charge of one tenant under the customer of another";
            return Ok(Some(Settled::Quarantined { reason, waits_for: id.clone() }));
        }
        sitting.note_link(id, tenant);
        Ok(None)
    }

    /// Links the customer of a completed checkout that was made for the tenant, and sets free what waited for that.
    pub(crate) async fn link_buyer(
        &self,
        connection: &mut PgConnection,
        sitting: &mut Sitting,
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
        if sitting.is_linked(customer, tenant) {
            return Ok(None);
        }
        if self.link_object(connection, tenant, (ObjectKind::Customer, customer), now).await? == Link::Foreign {
            let reason = "a checkout of one tenant by the customer of another";
            return Ok(Some(Settled::Quarantined { reason, waits_for: session.value.id.clone() }));
        }
        sitting.note_link(customer, tenant);
        Ok(None)
    }
}
