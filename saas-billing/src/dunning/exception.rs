//! Another policy for one tenant: with an author, a reason and an end.

use chrono::{DateTime, Utc};
use saas_core::{Actor, InvalidInput, SystemTx, TenantId, audit, tenant};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::DunningPolicy;
use crate::{Billing, BillingError, postgres::dunning};

/// An exception to be made.
#[derive(Debug, Clone)]
pub struct NewDunningException {
    policy: DunningPolicy,
    reason: String,
    expires_at: DateTime<Utc>,
}

/// An exception as it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DunningException {
    /// What holds instead of the plan's policy.
    pub policy: DunningPolicy,
    /// Who made it.
    pub author: String,
    /// Why.
    pub reason: String,
    /// When.
    pub created_at: DateTime<Utc>,
    /// Until when its steps count.
    pub expires_at: DateTime<Utc>,
}

impl NewDunningException {
    /// An exception with its reason (1 to 500 characters) and its end.
    ///
    /// # Errors
    /// When the reason is empty, too long or holds a control character.
    pub fn new(
        policy: DunningPolicy,
        reason: impl Into<String>,
        expires_at: DateTime<Utc>,
    ) -> Result<Self, InvalidInput> {
        let reason = reason.into();
        let reason = reason.trim();
        if !(1..=500).contains(&reason.chars().count()) || reason.chars().any(char::is_control) {
            return Err(InvalidInput::new(
                "the reason of the exception",
                "is empty, longer than 500 characters or holds a control character",
                "say in a sentence why this tenant is dunned otherwise",
            ));
        }
        Ok(Self { policy, reason: reason.to_owned(), expires_at })
    }
}

impl Billing {
    /// Has another dunning policy hold for a tenant, also for what it owes already, in place of an earlier exception. Access
    /// and messages follow in the same transaction; what was sent stays sent.
    ///
    /// # Errors
    /// When it would be over already, there is no such tenant, or the database does not answer. Nothing is written then.
    pub async fn put_dunning_exception(
        &self,
        tenant: TenantId,
        new: NewDunningException,
        author: &Actor,
    ) -> Result<DunningException, BillingError> {
        let mut tx = SystemTx::begin(&self.system, author.clone(), "make an exception from the dunning policy").await?;
        tenant::lock_in(&mut tx, tenant).await?;
        let now = self.clock.now();
        if new.expires_at <= now {
            let remedy = "choose an end in the future";
            return Err(InvalidInput::new("the end of the exception", "has passed already", remedy).into());
        }
        let NewDunningException { policy, reason, expires_at } = new;
        let put = DunningException { policy, author: author.to_string(), reason, created_at: now, expires_at };
        let before = dunning::exception(&mut tx, tenant, self.scope.livemode).await?;
        dunning::store_exception(&mut tx, tenant, self.scope.livemode, &put).await?;
        let detail = json!({"exception": &put, "replaced": &before});
        let entry = audit::Entry::new("billing.dunning_exception_put", tenant).with_detail(detail);
        audit::record_in(&mut tx, tenant, author, entry, now).await?;
        self.rederive_in(&mut tx, author, tenant, before.as_ref()).await?;
        tx.commit().await?;
        Ok(put)
    }

    /// Takes an exception back: the plan's policy holds again, as if there had never been another. `false` when there was
    /// none.
    ///
    /// # Errors
    /// When there is no such tenant or the database does not answer.
    pub async fn remove_dunning_exception(&self, tenant: TenantId, author: &Actor) -> Result<bool, BillingError> {
        let mut tx = SystemTx::begin(&self.system, author.clone(), "end an exception from the dunning policy").await?;
        tenant::lock_in(&mut tx, tenant).await?;
        let before = dunning::exception(&mut tx, tenant, self.scope.livemode).await?;
        if !dunning::delete_exception(&mut tx, tenant, self.scope.livemode).await? {
            return Ok(false);
        }
        let entry = audit::Entry::new("billing.dunning_exception_removed", tenant);
        let entry = entry.with_detail(json!({"removed": &before}));
        audit::record_in(&mut tx, tenant, author, entry, self.clock.now()).await?;
        self.rederive_in(&mut tx, author, tenant, before.as_ref()).await?;
        tx.commit().await?;
        Ok(true)
    }
}
