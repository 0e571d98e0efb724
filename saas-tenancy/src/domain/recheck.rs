//! Looking again: a domain whose proof is gone for long is lost.

use chrono::TimeDelta;
use saas_core::{
    SystemTx, TenantId,
    audit::{self, Entry},
    tenant,
};

use super::{
    Claim, ClaimState, DomainName, Domains, postgres as store,
    proof::{Finding, judge},
    service::{CARETAKER, lose},
};
use crate::TenancyError;

/// How often active domains are looked at again.
#[derive(Debug, Clone, Copy)]
pub struct Recheck {
    /// How long after the last look.
    pub every: TimeDelta,
    /// How long the proof may be gone before the domain is lost.
    pub grace: TimeDelta,
    /// How many domains one call looks at.
    pub limit: u32,
}

impl Default for Recheck {
    /// Daily, with 14 days of grace, 100 at a time.
    fn default() -> Self {
        Self { every: TimeDelta::days(1), grace: TimeDelta::days(14), limit: 100 }
    }
}

/// What one call found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rechecked {
    /// Proof was there.
    pub proven: u32,
    /// Proof was gone, but not for long enough.
    pub failing: u32,
    /// Lost by this call.
    pub lost: u32,
    /// Nobody answered: nothing follows from that.
    pub unanswered: u32,
}

impl Domains {
    /// Looks at the active domains of all tenants whose last look is long ago, one after the other. For a worker; call it
    /// until it finds nothing.
    ///
    /// A proof that is missing or contested starts the grace, and stands in the tenant's audit log as `domain.failing`. A
    /// proof that is there again ends it.
    ///
    /// # Errors
    /// When the database does not answer; what was found until then is kept.
    pub async fn recheck(&self, how: Recheck) -> Result<Rechecked, TenancyError> {
        let before = self.tenancy.clock.now() - how.every;
        let mut tx = SystemTx::begin(&self.tenancy.system, CARETAKER, "list domains to look at again").await?;
        let due = store::due(&mut tx, before, how.limit).await?;
        tx.rollback().await?;
        let mut report = Rechecked::default();
        for (tenant, domain) in due {
            self.look_again(tenant, &domain, how.grace, &mut report).await?;
        }
        Ok(report)
    }

    async fn look_again(
        &self,
        tenant: TenantId,
        domain: &DomainName,
        grace: TimeDelta,
        report: &mut Rechecked,
    ) -> Result<(), TenancyError> {
        let looked_at = self.tenancy.clock.now();
        let published = self.proof.published(domain).await;
        let now = self.tenancy.clock.now();
        let mut tx = SystemTx::begin(&self.tenancy.system, CARETAKER, "look at a domain again").await?;
        store::lock_domain(&mut tx, domain).await?;
        // The look says nothing about what was proven after it began, or about what is not the tenant's any more.
        let holder = store::holder(&mut tx, domain).await?;
        if holder.is_none_or(|(holder, proven_at)| holder != tenant || proven_at > looked_at) {
            return Ok(());
        }
        tenant::lock_in(&mut tx, tenant).await?;
        let Some(Claim { token, state: ClaimState::Active { failing_since, .. }, .. }) =
            store::find(&mut tx, tenant, domain).await?
        else {
            return Ok(());
        };
        let Ok(published) = published else {
            store::set_checked(&mut tx, tenant, domain, looked_at).await?;
            tx.commit().await?;
            report.unanswered += 1;
            return Ok(());
        };
        let outcome = match (judge(&published, token), failing_since) {
            (Finding::Proven, _) => {
                store::activate(&mut tx, tenant, domain, looked_at).await?;
                &mut report.proven
            }
            (Finding::Missing | Finding::Contested, Some(since)) if looked_at - since >= grace => {
                lose(&mut tx, tenant, domain, now).await?;
                &mut report.lost
            }
            (Finding::Missing | Finding::Contested, since) => {
                store::set_failing(&mut tx, tenant, domain, looked_at).await?;
                if since.is_none() {
                    audit::record_in(&mut tx, tenant, &CARETAKER, Entry::new("domain.failing", domain), now).await?;
                }
                &mut report.failing
            }
        };
        tx.commit().await?;
        *outcome += 1;
        Ok(())
    }
}
