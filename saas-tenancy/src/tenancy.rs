//! The service: creates tenants, and changes who is in them.

use chrono::{DateTime, Utc};
use saas_core::{
    Actor, CoreError, EmailAddress, Page, PageSize, RequestContext, SharedClock, SystemPool, SystemTx, TenantContext,
    TenantId, TenantPool, TenantTx, UserId,
    audit::{self, Entry},
    mail::{self, Mail},
    tenant::{self, NewTenant},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    Permission, Role, TenancyError,
    lifecycle::{self, State},
    postgres as store,
};

/// A tenant that was just created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Created {
    /// The tenant.
    pub tenant: TenantId,
    /// Its first owner.
    pub owner: UserId,
}

/// One person in one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Membership {
    /// Who.
    pub user: UserId,
    /// As what.
    pub role: Role,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// An address whose owner has shown that it is theirs.
///
/// Whoever holds one enters the account behind the address, in every tenant. Make it only after a link that was sent
/// there came back, or from an identity provider that says `email_verified: true` (the boolean).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedEmail(EmailAddress);

impl VerifiedEmail {
    /// Vouches that the address was verified.
    #[must_use]
    pub const fn vouched(address: EmailAddress) -> Self {
        Self(address)
    }

    /// The address.
    #[must_use]
    pub const fn address(&self) -> &EmailAddress {
        &self.0
    }
}

/// Tenants and the people in them.
#[derive(Debug, Clone)]
pub struct Tenancy {
    pub(crate) tenants: TenantPool,
    pub(crate) system: SystemPool,
    pub(crate) clock: SharedClock,
}

impl Tenancy {
    /// The service over an application's two pools.
    #[must_use]
    pub fn new(tenants: TenantPool, system: SystemPool, clock: SharedClock) -> Self {
        Self { tenants, system, clock }
    }

    /// Creates a tenant with its owner, its line in the operators' list and the welcome message: all or nothing.
    ///
    /// A person who has an account keeps it.
    ///
    /// # Errors
    /// [`SlugTaken`](TenancyError::SlugTaken) when the address belongs to another tenant.
    pub async fn create_tenant(&self, new: &NewTenant, owner: &VerifiedEmail) -> Result<Created, TenancyError> {
        let mut tx = SystemTx::begin(&self.system, SIGN_UP, "create a tenant").await?;
        let created = self.create_tenant_in(&mut tx, new, owner).await?;
        tx.commit().await?;
        Ok(created)
    }

    /// [`create_tenant`](Self::create_tenant) in the caller's transaction.
    ///
    /// # Errors
    /// As [`create_tenant`](Self::create_tenant); the transaction cannot be used further then.
    pub async fn create_tenant_in(
        &self,
        tx: &mut SystemTx,
        new: &NewTenant,
        owner: &VerifiedEmail,
    ) -> Result<Created, TenancyError> {
        let now = self.clock.now();
        let tenant = tenant::create_in(tx, new, now).await.map_err(|error| match error.constraint() {
            Some("tenant_slug_pkey") => TenancyError::SlugTaken(new.slug().to_string()),
            _ => error.into(),
        })?;
        let user = store::ensure_user(tx, owner.address(), now).await?;
        store::add(tx, tenant, user, Role::Owner, now).await?;
        let ctx = RequestContext::new_at(tenant, Actor::user(user), now);
        let named = Entry::new("tenant.created", new.slug()).with_detail(json!({ "name": new.name() }));
        audit::record_for(tx, &ctx, named, now).await?;
        record_membership(tx, &ctx, "membership.added", user, json!({ "role": Role::Owner }), now).await?;
        let welcome = Mail::new(
            owner.address().clone(),
            format!("Welcome to {}", new.name()),
            format!("{} is ready. You are its owner.\n", new.name()),
        )?;
        mail::enqueue_in(tx, tenant, &welcome, now).await?;
        Ok(Created { tenant, owner: user })
    }

    /// The account behind a verified address, for a sign-in; created if there is none.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn account(&self, email: &VerifiedEmail) -> Result<UserId, TenancyError> {
        let mut tx = SystemTx::begin(&self.system, SIGN_UP, "find an account").await?;
        let user = store::ensure_user(&mut tx, email.address(), self.clock.now()).await?;
        tx.commit().await?;
        Ok(user)
    }

    /// The context of a request by `user` in `tenant`, with the role that the membership gives.
    ///
    /// # Errors
    /// - [`NotMember`](TenancyError::NotMember) when there is no such tenant or the person is not in it, and when the tenant
    ///   is being erased.
    /// - [`Suspended`](TenancyError::Suspended), [`InMaintenance`](TenancyError::InMaintenance): only members are told.
    pub async fn enter(&self, tenant: TenantId, user: UserId) -> Result<RequestContext, TenancyError> {
        let ctx = RequestContext::new(tenant, Actor::user(user), self.clock.as_ref());
        let mut tx = TenantTx::begin(&self.tenants, &ctx).await?;
        let (role, status) = store::entry_of(&mut tx, tenant, user).await?.ok_or(TenancyError::NotMember)?;
        if let Some(status) = status {
            status.state.admit(status.since)?;
        }
        Ok(ctx.with_role(role.name()))
    }

    /// The context of an operator who sees the tenant as `user` does, for support; also while the tenant is suspended or in
    /// maintenance. It stands in the tenant's audit log, with both names. Whether the operator may is the caller's to check.
    ///
    /// # Errors
    /// [`NotMember`](TenancyError::NotMember) as for [`enter`](Self::enter).
    pub async fn enter_as_support(
        &self,
        tenant: TenantId,
        operator: UserId,
        user: UserId,
    ) -> Result<RequestContext, TenancyError> {
        let now = self.clock.now();
        let actor = Actor::Impersonation { operator, user };
        let ctx = RequestContext::new_at(tenant, actor.clone(), now);
        let mut tx = SystemTx::begin(&self.system, actor, "enter a tenant for support").await?;
        let (role, status) = store::entry_of(&mut tx, tenant, user).await?.ok_or(TenancyError::NotMember)?;
        match status.map(|status| status.state) {
            Some(State::Erasing | State::Erased) => return Err(TenancyError::NotMember),
            Some(State::ReadOnly | State::Suspended | State::Maintenance) | None => {}
        }
        audit::record_for(&mut tx, &ctx, Entry::new("support.entered", user), now).await?;
        tx.commit().await?;
        Ok(ctx.with_role(role.name()))
    }

    /// Lists the tenant's members in the order in which they joined.
    ///
    /// # Errors
    /// [`NotAllowed`](TenancyError::NotAllowed) without the permission to read members.
    pub async fn list_members(
        &self,
        ctx: &dyn TenantContext,
        after: Option<(DateTime<Utc>, UserId)>,
        size: PageSize,
    ) -> Result<Page<Membership, (DateTime<Utc>, UserId)>, TenancyError> {
        let mut tx = TenantTx::begin(&self.tenants, ctx).await?;
        authorize(&mut tx, ctx, Permission::ReadMembers).await?;
        let rows = store::list(&mut tx, ctx.tenant(), after, size).await?;
        Ok(Page::from_rows(rows, size, |member| (member.since, member.user)))
    }

    /// Adds a person under their address, and creates their account if there is none.
    ///
    /// # Errors
    /// [`NotAllowed`](TenancyError::NotAllowed), [`RankTooLow`](TenancyError::RankTooLow),
    /// [`AlreadyMember`](TenancyError::AlreadyMember).
    pub async fn add_member(
        &self,
        ctx: &dyn TenantContext,
        email: &EmailAddress,
        role: Role,
    ) -> Result<UserId, TenancyError> {
        let now = self.clock.now();
        let mut tx = self.begin_change(ctx, "add a member").await?;
        let actor = authorize(&mut tx, ctx, Permission::ManageMembers).await?;
        may_give(actor, role)?;
        let user = store::ensure_user(&mut tx, email, now).await?;
        if store::role_of(&mut tx, ctx.tenant(), user).await?.is_some() {
            return Err(TenancyError::AlreadyMember);
        }
        store::add(&mut tx, ctx.tenant(), user, role, now).await?;
        record_membership(&mut tx, ctx, "membership.added", user, json!({ "role": role }), now).await?;
        tx.commit().await?;
        Ok(user)
    }

    /// Gives a member another role.
    ///
    /// # Errors
    /// [`NotAllowed`](TenancyError::NotAllowed), [`RankTooLow`](TenancyError::RankTooLow),
    /// [`NotMember`](TenancyError::NotMember), [`LastOwner`](TenancyError::LastOwner).
    pub async fn change_role(&self, ctx: &dyn TenantContext, user: UserId, role: Role) -> Result<(), TenancyError> {
        let now = self.clock.now();
        let mut tx = self.begin_change(ctx, "change a role").await?;
        let actor = authorize(&mut tx, ctx, Permission::ManageMembers).await?;
        let present = store::role_of(&mut tx, ctx.tenant(), user).await?.ok_or(TenancyError::NotMember)?;
        within_rank(actor, present)?;
        may_give(actor, role)?;
        if role != Role::Owner {
            keep_an_owner(&mut tx, ctx.tenant(), present).await?;
        }
        store::set_role(&mut tx, ctx.tenant(), user, role).await?;
        let change = json!({ "role": role, "before": present });
        record_membership(&mut tx, ctx, "membership.role_changed", user, change, now).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Removes a member. Anyone may leave, except the last owner.
    ///
    /// # Errors
    /// [`NotAllowed`](TenancyError::NotAllowed), [`RankTooLow`](TenancyError::RankTooLow),
    /// [`NotMember`](TenancyError::NotMember), [`LastOwner`](TenancyError::LastOwner).
    pub async fn remove_member(&self, ctx: &dyn TenantContext, user: UserId) -> Result<(), TenancyError> {
        let now = self.clock.now();
        let mut tx = self.begin_change(ctx, "remove a member").await?;
        let leaving = person(ctx)? == user;
        let permission = if leaving { Permission::ReadData } else { Permission::ManageMembers };
        let actor = authorize(&mut tx, ctx, permission).await?;
        let present = store::role_of(&mut tx, ctx.tenant(), user).await?.ok_or(TenancyError::NotMember)?;
        within_rank(actor, present)?;
        keep_an_owner(&mut tx, ctx.tenant(), present).await?;
        store::remove(&mut tx, ctx.tenant(), user).await?;
        record_membership(&mut tx, ctx, "membership.removed", user, json!({ "before": present }), now).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Opens a transaction that changes the tenant: one at a time, so that two owners cannot demote each other at once.
    pub(crate) async fn begin_change(
        &self,
        ctx: &dyn TenantContext,
        reason: &'static str,
    ) -> Result<SystemTx, TenancyError> {
        person(ctx)?;
        let mut tx = SystemTx::begin(&self.system, ctx.actor().clone(), reason).await?;
        tenant::lock_in(&mut tx, ctx.tenant()).await.map_err(|error| match error {
            CoreError::NotFound { .. } => TenancyError::NotMember,
            other => other.into(),
        })?;
        // As the system, which no door stops.
        if let Some(status) = lifecycle::store::find(&mut tx, ctx.tenant()).await? {
            status.state.admit_change(status.since)?;
        }
        Ok(tx)
    }
}

const SIGN_UP: Actor = Actor::system("sign-up");

/// The person behind a request. Impersonators, machines and jobs do not change who is in a tenant.
pub(crate) fn person(ctx: &dyn TenantContext) -> Result<UserId, TenancyError> {
    match ctx.actor() {
        Actor::User { id } => Ok(*id),
        other
        @ (Actor::ApiKey { .. } | Actor::Operator { .. } | Actor::Impersonation { .. } | Actor::System { .. }) => {
            Err(TenancyError::NotAPerson { actor: other.to_string() })
        }
    }
}

/// Reads the actor's role from the database, in the caller's transaction: a role in the context may be out of date.
pub(crate) async fn authorize(
    connection: &mut sqlx::PgConnection,
    ctx: &dyn TenantContext,
    permission: Permission,
) -> Result<Role, TenancyError> {
    let role = store::role_of(connection, ctx.tenant(), person(ctx)?).await?.ok_or(TenancyError::NotMember)?;
    if role.allows(permission) { Ok(role) } else { Err(TenancyError::NotAllowed { role, permission }) }
}

fn within_rank(actor: Role, target: Role) -> Result<(), TenancyError> {
    if actor.outranks_or_equals(target) { Ok(()) } else { Err(TenancyError::RankTooLow { actor, target }) }
}

/// Nobody gives what they do not have.
fn may_give(actor: Role, role: Role) -> Result<(), TenancyError> {
    if actor.includes(role) { Ok(()) } else { Err(TenancyError::RankTooLow { actor, target: role }) }
}

async fn keep_an_owner(tx: &mut SystemTx, tenant: TenantId, leaving: Role) -> Result<(), TenancyError> {
    if leaving == Role::Owner && store::count_owners(tx, tenant).await? <= 1 {
        return Err(TenancyError::LastOwner);
    }
    Ok(())
}

async fn record_membership(
    tx: &mut SystemTx,
    ctx: &dyn TenantContext,
    action: &'static str,
    user: UserId,
    detail: Value,
    now: DateTime<Utc>,
) -> Result<(), TenancyError> {
    store::count_seats(tx, ctx.tenant()).await?;
    audit::record_for(tx, ctx, Entry::new(action, user).with_detail(detail), now).await?;
    Ok(())
}
