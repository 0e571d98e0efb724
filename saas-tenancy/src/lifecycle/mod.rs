//! Whether a tenant is served: active, read-only, suspended, in maintenance, or gone.
//!
//! Owns `saas.tenant_status`, which tenants read and only the system writes. Promises that a change stands in the audit log
//! and raises the tenant's revision in the same transaction, so that every gate loads anew; that members are refused by
//! [`Tenancy::enter`](crate::Tenancy::enter) from then on; and that sessions whose binding knows a placement are refused by
//! the database, by way of `saas.resident`:
//!
//! | state | members enter | the door of the database |
//! |---|---|---|
//! | active | yes | open |
//! | read-only | yes | read only |
//! | suspended | no: `tenant_suspended` | read only: support can look, an export can run |
//! | maintenance | no: `tenant_in_maintenance` | closed |
//! | erasing, erased | no: as if there were no such tenant | closed |
//!
//! A tenant whose tables are in another database has its door there. It is set right after the status, and a change is not
//! reported as done before; one whose database did not answer is due, and [`Lifecycle::set_due_doors`] sets it later. While
//! a tenant moves, its status may change at any time: the mover opens the door of the target as the status is then.
//!
//! Leaves to the application: why, and what members are shown.

mod door;
pub(crate) mod store;

use std::fmt;

use chrono::{DateTime, Utc};
use saas_core::{
    Actor, CoreError, SharedClock, SystemPool, SystemTx, TenantId,
    audit::{self, Entry},
    revision, tenant,
};
use serde::Serialize;
use serde_json::json;

use self::store::Door;
use crate::{TenancyError, placement::Clusters};

/// What a tenant that is not active is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// Served, but nothing changes.
    ReadOnly,
    /// Not served, for what it did or owes.
    Suspended,
    /// Not served for a while, for work on it.
    Maintenance,
    /// Being erased.
    Erasing,
    /// Erased: a tombstone.
    Erased,
}

impl State {
    const ALL: &'static [Self] = &[Self::ReadOnly, Self::Suspended, Self::Maintenance, Self::Erasing, Self::Erased];

    /// The text that is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadOnly => "read_only",
            Self::Suspended => "suspended",
            Self::Maintenance => "maintenance",
            Self::Erasing => "erasing",
            Self::Erased => "erased",
        }
    }

    /// What stands in the audit log when it begins.
    const fn action(self) -> &'static str {
        match self {
            Self::ReadOnly => "tenant.made_read_only",
            Self::Suspended => "tenant.suspended",
            Self::Maintenance => "tenant.maintenance_started",
            Self::Erasing => "tenant.erase_started",
            Self::Erased => "tenant.erased",
        }
    }

    /// Whether a member may come in.
    pub(crate) const fn admit(self, since: DateTime<Utc>) -> Result<(), TenancyError> {
        match self {
            Self::ReadOnly => Ok(()),
            Self::Suspended => Err(TenancyError::Suspended { since }),
            Self::Maintenance => Err(TenancyError::InMaintenance { since }),
            Self::Erasing | Self::Erased => Err(TenancyError::NotMember),
        }
    }

    /// Whether a member may change something.
    pub(crate) const fn admit_change(self, since: DateTime<Utc>) -> Result<(), TenancyError> {
        match self {
            Self::ReadOnly => Err(TenancyError::ReadOnly { since }),
            Self::Suspended | Self::Maintenance | Self::Erasing | Self::Erased => self.admit(since),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a tenant that is not active is, and who said so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// What.
    pub state: State,
    /// Why: for operators, not for members.
    pub reason: String,
    /// By whom, as in the audit log.
    pub changed_by: String,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// Switches tenants off and on again. For operators and jobs of the system.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    system: SystemPool,
    clock: SharedClock,
    clusters: Option<Clusters>,
}

impl Lifecycle {
    /// The service over the system's pool of the control database.
    #[must_use]
    pub fn new(system: SystemPool, clock: SharedClock) -> Self {
        Self { system, clock, clusters: None }
    }

    /// Lets it set the doors of tenants whose tables are in other databases, as the system's login of their cluster.
    #[must_use]
    pub fn with_clusters(mut self, clusters: Clusters) -> Self {
        self.clusters = Some(clusters);
        self
    }

    /// What the tenant is; `None` for an active one.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn status(&self, tenant: TenantId) -> Result<Option<Status>, TenancyError> {
        let mut tx = SystemTx::begin(&self.system, LOOK, "read a tenant's status").await?;
        Ok(store::find(&mut tx, tenant).await?)
    }

    /// Refuses members from now on. Also a tenant that is read-only or in maintenance can be suspended.
    ///
    /// # Errors
    /// - [`NotAnOperator`](TenancyError::NotAnOperator): members and their keys cannot.
    /// - [`NotMember`](TenancyError::NotMember): there is no such tenant.
    /// - [`Status`](TenancyError::Status): it is being erased, or erased.
    /// - [`DoorNotSet`](TenancyError::DoorNotSet): it is suspended, and members are refused; the database that it lives in
    ///   has not heard of it. Repeat the call, or leave it to [`set_due_doors`](Self::set_due_doors).
    pub async fn suspend(&self, tenant: TenantId, actor: &Actor, reason: &str) -> Result<(), TenancyError> {
        self.begin(tenant, State::Suspended, &[State::ReadOnly, State::Maintenance], actor, reason).await
    }

    /// Serves a suspended tenant again.
    ///
    /// # Errors
    /// As [`suspend`](Self::suspend); [`Status`](TenancyError::Status) when it is something other than suspended. A tenant
    /// that is active stays so.
    pub async fn resume(&self, tenant: TenantId, actor: &Actor) -> Result<(), TenancyError> {
        self.end(tenant, State::Suspended, "tenant.resumed", actor).await
    }

    /// Refuses members for a while, and waits until the transactions that the database's door knows of have left.
    ///
    /// # Errors
    /// As [`suspend`](Self::suspend); [`Unavailable`](CoreError::Unavailable) when a transaction does not leave in time: the
    /// tenant is in maintenance then, and the call can be repeated to wait on.
    pub async fn start_maintenance(&self, tenant: TenantId, actor: &Actor, reason: &str) -> Result<(), TenancyError> {
        self.begin(tenant, State::Maintenance, &[State::ReadOnly], actor, reason).await?;
        self.wait_until_left(tenant, actor).await
    }

    /// Ends a maintenance. As [`resume`](Self::resume).
    ///
    /// # Errors
    /// As [`resume`](Self::resume).
    pub async fn end_maintenance(&self, tenant: TenantId, actor: &Actor) -> Result<(), TenancyError> {
        self.end(tenant, State::Maintenance, "tenant.maintenance_ended", actor).await
    }

    /// Lets members look and change nothing.
    ///
    /// # Errors
    /// As [`suspend`](Self::suspend).
    pub async fn make_read_only(&self, tenant: TenantId, actor: &Actor, reason: &str) -> Result<(), TenancyError> {
        self.begin(tenant, State::ReadOnly, &[], actor, reason).await
    }

    /// Lets members change things again. As [`resume`](Self::resume).
    ///
    /// # Errors
    /// As [`resume`](Self::resume).
    pub async fn end_read_only(&self, tenant: TenantId, actor: &Actor) -> Result<(), TenancyError> {
        self.end(tenant, State::ReadOnly, "tenant.read_only_ended", actor).await
    }

    async fn begin(
        &self,
        tenant: TenantId,
        state: State,
        from: &[State],
        actor: &Actor,
        reason: &str,
    ) -> Result<(), TenancyError> {
        let (mut tx, present) = self.lock(tenant, actor, "change a tenant's status").await?;
        match present {
            // Its door may still be due.
            Some(present) if present.state == state => {
                drop(tx);
                return self.set_door(tenant).await;
            }
            Some(present) if !from.contains(&present.state) => {
                return Err(TenancyError::Status { present: present.state });
            }
            Some(_) | None => {}
        }
        change_in(&mut tx, tenant, state, actor, reason, self.clock.now()).await?;
        tx.commit().await?;
        self.set_door(tenant).await
    }

    async fn end(
        &self,
        tenant: TenantId,
        state: State,
        action: &'static str,
        actor: &Actor,
    ) -> Result<(), TenancyError> {
        let (mut tx, present) = self.lock(tenant, actor, "end a tenant's status").await?;
        let Some(present) = present else {
            drop(tx);
            return self.set_door(tenant).await;
        };
        if present.state != state {
            return Err(TenancyError::Status { present: present.state });
        }
        let now = self.clock.now();
        store::remove(&mut tx, tenant).await?;
        store::set_door(&mut tx, tenant, Door::OPEN, now).await?;
        let entry = Entry::new(action, tenant).with_detail(json!({ "since": present.since }));
        audit::record_in(&mut tx, tenant, actor, entry, now).await?;
        revision::bump_in(&mut tx, tenant).await?;
        tx.commit().await?;
        self.set_door(tenant).await
    }

    /// One change of a tenant at a time.
    async fn lock(
        &self,
        tenant: TenantId,
        actor: &Actor,
        why: &'static str,
    ) -> Result<(SystemTx, Option<Status>), TenancyError> {
        match actor {
            Actor::Operator { .. } | Actor::System { .. } => {}
            other @ (Actor::User { .. } | Actor::ApiKey { .. } | Actor::Impersonation { .. }) => {
                return Err(TenancyError::NotAnOperator { actor: other.to_string() });
            }
        }
        let mut tx = SystemTx::begin(&self.system, actor.clone(), why).await?;
        lock_tenant(&mut tx, tenant).await?;
        let present = store::find(&mut tx, tenant).await?;
        Ok((tx, present))
    }
}

const LOOK: Actor = Actor::system("lifecycle");

pub(crate) async fn lock_tenant(tx: &mut SystemTx, tenant: TenantId) -> Result<(), TenancyError> {
    tenant::lock_in(tx, tenant).await.map_err(|error| match error {
        CoreError::NotFound { .. } => TenancyError::NotMember,
        other => other.into(),
    })
}

/// Sets a state with all that goes with it, in the caller's transaction.
pub(crate) async fn change_in(
    tx: &mut SystemTx,
    tenant: TenantId,
    state: State,
    actor: &Actor,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<(), TenancyError> {
    let reason = check_reason(reason)?;
    store::put(tx, tenant, state, reason, actor, now).await?;
    store::set_door(tx, tenant, Door::of(Some(state)), now).await?;
    let entry = Entry::new(state.action(), tenant).with_detail(json!({ "reason": reason }));
    audit::record_in(tx, tenant, actor, entry, now).await?;
    revision::bump_in(tx, tenant).await?;
    Ok(())
}

/// A reason is for people who read it months later.
pub(crate) fn check_reason(reason: &str) -> Result<&str, saas_core::InvalidInput> {
    let reason = reason.trim();
    if (1..=500).contains(&reason.chars().count()) && !reason.contains('\0') {
        return Ok(reason);
    }
    Err(saas_core::InvalidInput::new(
        "reason",
        "is empty, longer than 500 characters or holds NUL",
        "say in a sentence why, for whoever reads the audit log",
    ))
}
