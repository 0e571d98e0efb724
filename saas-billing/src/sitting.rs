//! What a transaction that merges several snapshots of one tenant knows already, and what it has yet to write: it asks once
//! and writes once for all of them.
//!
//! It holds the tenant's lock from the first snapshot on, so that nothing it knows can change beneath it.

use std::collections::{BTreeMap, BTreeSet};

use saas_core::{CoreError, TenantId, tenant};
use sqlx::PgConnection;

use crate::{
    billing::Billing,
    derive::{Derived, TenantObjects},
    event::AnySnapshot,
    merge::Fact,
    object::{ObjectId, ObjectKind},
    postgres::{Scope, directory, object},
    settle::Report,
};

/// One transaction's knowledge.
#[derive(Debug, Default)]
pub(crate) struct Sitting {
    /// What is to be merged, to be read with the tenant's other objects.
    ahead: BTreeSet<ObjectId>,
    /// Whether other snapshots share the transaction: what has no place must not take locks of its own then.
    shared: bool,
    whose: BTreeMap<String, TenantId>,
    locked: Option<TenantId>,
    seated: Option<Seated>,
}

/// The tenant whose lock is held.
#[derive(Debug)]
pub(crate) struct Seated {
    pub(crate) objects: TenantObjects,
    /// What is stored about it.
    pub(crate) stored: Derived,
    /// What was merged and is not written yet, in that order.
    pub(crate) heard: Vec<Heard>,
    read: BTreeSet<ObjectId>,
}

/// What one snapshot said.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) kind: ObjectKind,
    pub(crate) id: ObjectId,
    /// Whether anything is known about the object that was not before.
    pub(crate) is_news: bool,
    /// The object's status with it.
    pub(crate) status: Option<String>,
    /// What had happened to the object by then.
    pub(crate) facts: Vec<Fact>,
    pub(crate) report: Report,
}

impl Sitting {
    /// For these snapshots, of which each can be left to a transaction of its own.
    pub(crate) async fn of_many(
        connection: &mut PgConnection,
        scope: &Scope,
        snapshots: impl Iterator<Item = &AnySnapshot>,
    ) -> Result<Self, CoreError> {
        let (mut ahead, mut placing) = (BTreeSet::new(), BTreeSet::new());
        for snapshot in snapshots {
            ahead.insert(snapshot.id().clone());
            placing.extend([Some(snapshot.id()), snapshot.customer(), snapshot.charge()].into_iter().flatten());
        }
        let placing: Vec<&str> = placing.into_iter().map(ObjectId::as_str).collect();
        let whose = directory::tenants_of(connection, scope, &placing).await?.into_iter().collect();
        Ok(Self { ahead, shared: true, whose, ..Self::default() })
    }

    pub(crate) const fn is_shared(&self) -> bool {
        self.shared
    }

    /// The tenant that an object is linked to. A link is for good, so that it need not be looked up twice.
    pub(crate) async fn tenant_of(
        &mut self,
        connection: &mut PgConnection,
        scope: &Scope,
        object: &ObjectId,
    ) -> Result<Option<TenantId>, CoreError> {
        if let Some(tenant) = self.whose.get(object.as_str()) {
            return Ok(Some(*tenant));
        }
        let tenant = directory::tenant_of(connection, scope, object).await?;
        if let Some(tenant) = tenant {
            self.note_link(object, tenant);
        }
        Ok(tenant)
    }

    pub(crate) fn note_link(&mut self, object: &ObjectId, tenant: TenantId) {
        self.whose.insert(object.to_string(), tenant);
    }

    /// The tenant whose lock is held, with what was heard of it.
    pub(crate) fn take(&mut self) -> Option<(TenantId, Seated)> {
        self.locked.zip(self.seated.take())
    }

    pub(crate) fn is_linked(&self, object: &ObjectId, tenant: TenantId) -> bool {
        self.whose.get(object.as_str()) == Some(&tenant)
    }
}

impl Billing {
    /// Locks the tenant. `false` when the transaction is another one's: it never holds two tenants' locks.
    pub(crate) async fn lock_for(
        &self,
        connection: &mut PgConnection,
        sitting: &mut Sitting,
        tenant: TenantId,
    ) -> Result<bool, CoreError> {
        if let Some(locked) = sitting.locked {
            return Ok(locked == tenant);
        }
        tenant::lock_in(connection, tenant).await?;
        sitting.locked = Some(tenant);
        Ok(true)
    }

    /// What is known about the locked tenant, with the object about to be merged.
    pub(crate) async fn seat<'a>(
        &self,
        connection: &mut PgConnection,
        sitting: &'a mut Sitting,
        tenant: TenantId,
        (kind, id): (ObjectKind, &ObjectId),
    ) -> Result<&'a mut Seated, CoreError> {
        let livemode = self.scope.livemode;
        let mut seated = match sitting.seated.take() {
            Some(seated) => seated,
            None => {
                let mut read = std::mem::take(&mut sitting.ahead);
                read.insert(id.clone());
                let ids: Vec<&str> = read.iter().map(ObjectId::as_str).collect();
                let (objects, stored) = object::load(connection, tenant, livemode, &ids).await?;
                Seated { objects, stored: stored.unwrap_or_default(), heard: Vec::new(), read }
            }
        };
        if !seated.read.contains(id) && seated.objects.find(kind, id).is_none() {
            for merged in object::load_only(connection, tenant, livemode, &[id.as_str()]).await? {
                seated.objects.insert(merged);
            }
            seated.read.insert(id.clone());
        }
        Ok(sitting.seated.insert(seated))
    }
}
