//! What is deleted when its time is over.

use chrono::TimeDelta;
use saas_core::SystemTx;

use crate::{
    billing::{ACTOR, Billing},
    error::BillingError,
    postgres::purge,
};

/// How long what needs a person waits for one.
const STUCK: TimeDelta = TimeDelta::days(365);
/// How long a settled command or request is kept: what a caller's key stands for is known for as long.
const SETTLED: TimeDelta = TimeDelta::days(90);

impl Billing {
    /// Deletes up to `limit` receipts that came in longer ago than the retention
    /// ([`with_retention`](crate::BillingConfig::with_retention)) and were applied or ignored, or kept from another endpoint;
    /// and as many that have waited for a person for a year. Returns how many; 0 when nothing older is left.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn purge_receipts(&self, limit: u16) -> Result<u64, BillingError> {
        let (now, limit) = (self.clock.now(), i64::from(limit));
        let retention = self.config.retention;
        let mut tx = SystemTx::begin(&self.system, ACTOR, "delete old webhook receipts").await?;
        let over = purge::receipts(&mut tx, &self.scope, now - retention, limit).await?;
        let stuck = purge::stuck(&mut tx, &self.scope, now - retention.max(STUCK), limit).await?;
        tx.commit().await?;
        Ok(over + stuck)
    }

    /// Deletes up to `limit` each of commands to Stripe and of requests that were settled 90 days ago, of all tenants, and of
    /// notices that were seen before the retention. Returns how many; 0 when nothing older is left. A caller's key that is
    /// used again after that begins anew.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn purge_settled(&self, limit: u16) -> Result<u64, BillingError> {
        let (now, limit) = (self.clock.now(), i64::from(limit));
        let mut tx = SystemTx::begin(&self.system, ACTOR, "delete settled commands and requests").await?;
        let settled = purge::settled(&mut tx, now - SETTLED, limit).await?;
        let seen = purge::notices(&mut tx, &self.scope, now - self.config.retention, limit).await?;
        tx.commit().await?;
        Ok(settled + seen)
    }
}
