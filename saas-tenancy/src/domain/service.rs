//! The service: claims, verifies and releases.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use saas_core::{
    Actor, CoreError, DomainToken, InvalidInput, SystemTx, TenantContext, TenantId, TenantTx,
    audit::{self, Entry},
    revision, tenant,
};

use super::{
    DomainName, DomainProof, postgres as store,
    proof::{Finding, judge, value_for},
};
use crate::{
    Permission, Tenancy, TenancyError, lifecycle,
    resolve::Host,
    tenancy::{authorize, person},
};

/// How many domains one tenant may claim.
pub const MAX_DOMAINS: u32 = 50;

/// What a tenant says about a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Which.
    pub domain: DomainName,
    /// What is to be published; new with every claim.
    pub token: DomainToken,
    /// How far it is.
    pub state: ClaimState,
    /// Since when.
    pub claimed_at: DateTime<Utc>,
}

impl Claim {
    /// The name of the TXT record.
    #[must_use]
    pub fn record(&self) -> String {
        self.domain.challenge()
    }

    /// The value of the TXT record.
    #[must_use]
    pub fn value(&self) -> String {
        value_for(self.token)
    }
}

/// How far a claim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimState {
    /// Not proven yet.
    Pending,
    /// Proven: the domain leads to the tenant.
    Active {
        /// Since when.
        verified_at: DateTime<Utc>,
        /// Since when its proof is not found any more; the domain is lost some time after.
        failing_since: Option<DateTime<Utc>>,
    },
    /// The proof was gone for too long, or someone else proved the domain to be theirs. Claim it again.
    Lost,
}

/// What a look at the published proof came to.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verification {
    /// The domain leads to the tenant.
    Active,
    /// The value is not published, or not everywhere yet. Nothing changed.
    Missing,
    /// Another value of the kind is published as well: remove it, wait for it to be gone, and verify again. Nothing changed.
    Contested,
}

/// The domains of tenants.
#[derive(Debug, Clone)]
pub struct Domains {
    pub(super) tenancy: Tenancy,
    pub(super) proof: Arc<dyn DomainProof>,
    own: Vec<Host>,
}

impl Domains {
    /// The service; `own` are the vendor's domains, which with everything below them no tenant may claim.
    ///
    /// # Errors
    /// When one of `own` is no host name.
    pub fn new(tenancy: Tenancy, proof: Arc<dyn DomainProof>, own: &[&str]) -> Result<Self, InvalidInput> {
        let own = own.iter().map(|host| Host::name(host)).collect::<Result<_, _>>()?;
        Ok(Self { tenancy, proof, own })
    }

    /// Claims a domain, and says what to publish. A claim that is pending or active stays as it is; a lost one begins anew.
    ///
    /// Nothing is said about claims of others: several tenants may claim a domain, and one can prove it.
    ///
    /// # Errors
    /// [`NotAllowed`](TenancyError::NotAllowed) without the permission to manage the tenant;
    /// [`TooManyDomains`](TenancyError::TooManyDomains); `Invalid` for a domain of the vendor's.
    pub async fn claim(&self, ctx: &dyn TenantContext, domain: &DomainName) -> Result<Claim, TenancyError> {
        if self.own.iter().any(|own| domain.is_within(own)) {
            return Err(InvalidInput::new("domain", "belongs to the service itself", "pass one of your own").into());
        }
        let (tenant, now) = (ctx.tenant(), self.tenancy.clock.now());
        let mut tx = self.tenancy.begin_change(ctx, "claim a domain").await?;
        authorize(&mut tx, ctx, Permission::ManageTenant).await?;
        let present = store::find(&mut tx, tenant, domain).await?;
        match present {
            Some(claim) if claim.state != ClaimState::Lost => return Ok(claim),
            None if store::count(&mut tx, tenant).await? >= i64::from(MAX_DOMAINS) => {
                return Err(TenancyError::TooManyDomains { limit: MAX_DOMAINS });
            }
            Some(_) | None => {}
        }
        let token = DomainToken::mint_at(now);
        store::put_pending(&mut tx, tenant, domain, token, now).await?;
        audit::record_for(&mut tx, ctx, Entry::new("domain.claimed", domain), now).await?;
        tx.commit().await?;
        Ok(Claim { domain: domain.clone(), token, state: ClaimState::Pending, claimed_at: now })
    }

    /// Lists the tenant's claims by name, at most [`MAX_DOMAINS`].
    ///
    /// # Errors
    /// [`NotAllowed`](TenancyError::NotAllowed) without the permission to manage the tenant.
    pub async fn list(&self, ctx: &dyn TenantContext) -> Result<Vec<Claim>, TenancyError> {
        let mut tx = TenantTx::begin(&self.tenancy.tenants, ctx).await?;
        authorize(&mut tx, ctx, Permission::ManageTenant).await?;
        Ok(store::list(&mut tx, ctx.tenant()).await?)
    }

    /// Looks at what is published, and makes the domain lead to the tenant if that proves the claim.
    ///
    /// A tenant to which it led until then loses it in the same transaction: whoever publishes is the owner. On a domain
    /// that is active already, the look only confirms it; nothing is taken away here.
    ///
    /// # Errors
    /// [`NotAllowed`](TenancyError::NotAllowed) without the permission to manage the tenant;
    /// [`DomainNotClaimed`](TenancyError::DomainNotClaimed) for a domain that is not claimed, was lost, or was claimed anew
    /// meanwhile; [`ProofUnread`](TenancyError::ProofUnread) when the port got no answer: try again.
    pub async fn verify(&self, ctx: &dyn TenantContext, domain: &DomainName) -> Result<Verification, TenancyError> {
        let mut tx = TenantTx::begin(&self.tenancy.tenants, ctx).await?;
        authorize(&mut tx, ctx, Permission::ManageTenant).await?;
        let claim = live(store::find(&mut tx, ctx.tenant(), domain).await?)?;
        tx.rollback().await?;
        // No transaction is open while the world is asked.
        let looked_at = self.tenancy.clock.now();
        let published = self.proof.published(domain).await;
        let published = published.map_err(|error| TenancyError::ProofUnread { cause: Box::new(error) })?;
        match judge(&published, claim.token) {
            Finding::Proven => self.settle(ctx, &claim, looked_at).await,
            Finding::Missing => Ok(Verification::Missing),
            Finding::Contested => Ok(Verification::Contested),
        }
    }

    /// Writes down that a claim was proven by a look that began at `looked_at`.
    async fn settle(
        &self,
        ctx: &dyn TenantContext,
        proven: &Claim,
        looked_at: DateTime<Utc>,
    ) -> Result<Verification, TenancyError> {
        let (tenant, domain, now) = (ctx.tenant(), &proven.domain, self.tenancy.clock.now());
        let (mut tx, holder) = self.begin_move(ctx, domain, "verify a domain").await?;
        // All of it may have changed while the world was asked.
        authorize(&mut tx, ctx, Permission::ManageTenant).await?;
        let claim = live(store::find(&mut tx, tenant, domain).await?)?;
        if claim.token != proven.token {
            return Err(TenancyError::DomainNotClaimed);
        }
        if let Some((other, proven_at)) = holder.filter(|(holder, _)| *holder != tenant) {
            // Someone else's proof was read after this one, and so is the newer truth.
            if proven_at >= looked_at {
                return Ok(Verification::Contested);
            }
            lose(&mut tx, other, domain, now).await?;
        }
        store::activate(&mut tx, tenant, domain, looked_at).await?;
        if claim.state == ClaimState::Pending {
            audit::record_for(&mut tx, ctx, Entry::new("domain.verified", domain), now).await?;
            revision::bump_in(&mut tx, tenant).await?;
        }
        tx.commit().await?;
        Ok(Verification::Active)
    }

    /// Gives a claim up; an active domain leads nowhere from then on.
    ///
    /// # Errors
    /// [`NotAllowed`](TenancyError::NotAllowed) without the permission to manage the tenant;
    /// [`DomainNotClaimed`](TenancyError::DomainNotClaimed).
    pub async fn release(&self, ctx: &dyn TenantContext, domain: &DomainName) -> Result<(), TenancyError> {
        let (tenant, now) = (ctx.tenant(), self.tenancy.clock.now());
        let (mut tx, _) = self.begin_move(ctx, domain, "release a domain").await?;
        authorize(&mut tx, ctx, Permission::ManageTenant).await?;
        store::find(&mut tx, tenant, domain).await?.ok_or(TenancyError::DomainNotClaimed)?;
        let was_active = store::deactivate(&mut tx, tenant, domain).await?;
        store::remove(&mut tx, tenant, domain).await?;
        audit::record_for(&mut tx, ctx, Entry::new("domain.released", domain), now).await?;
        if was_active {
            revision::bump_in(&mut tx, tenant).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Opens a transaction that may change to whom a domain leads. Locks the domain, then the tenants concerned in the
    /// order of their ids, so that two that take a domain from each other do not wait for each other.
    async fn begin_move(
        &self,
        ctx: &dyn TenantContext,
        domain: &DomainName,
        reason: &'static str,
    ) -> Result<(SystemTx, Option<(TenantId, DateTime<Utc>)>), TenancyError> {
        person(ctx)?;
        let mut tx = SystemTx::begin(&self.tenancy.system, ctx.actor().clone(), reason).await?;
        store::lock_domain(&mut tx, domain).await?;
        let holder = store::holder(&mut tx, domain).await?;
        let mut concerned = [Some(ctx.tenant()), holder.map(|(tenant, _)| tenant).filter(|t| *t != ctx.tenant())];
        concerned.sort_unstable();
        for tenant in concerned.into_iter().flatten() {
            tenant::lock_in(&mut tx, tenant).await.map_err(|error| match error {
                CoreError::NotFound { .. } => TenancyError::NotMember,
                other => other.into(),
            })?;
        }
        // As the system, which no door stops.
        if let Some(status) = lifecycle::store::find(&mut tx, ctx.tenant()).await? {
            status.state.admit_change(status.since)?;
        }
        Ok((tx, holder))
    }
}

/// A claim that can be proven.
fn live(claim: Option<Claim>) -> Result<Claim, TenancyError> {
    claim.filter(|claim| claim.state != ClaimState::Lost).ok_or(TenancyError::DomainNotClaimed)
}

/// Takes a domain from a tenant. Its record does not say who has it now.
pub(super) async fn lose(
    tx: &mut SystemTx,
    tenant: TenantId,
    domain: &DomainName,
    now: DateTime<Utc>,
) -> Result<(), TenancyError> {
    store::deactivate(tx, tenant, domain).await?;
    store::set_lost(tx, tenant, domain).await?;
    audit::record_in(tx, tenant, &CARETAKER, Entry::new("domain.lost", domain), now).await?;
    revision::bump_in(tx, tenant).await?;
    Ok(())
}

pub(super) const CARETAKER: Actor = Actor::system("custom domains");
