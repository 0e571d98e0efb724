//! An operator's way out when what is known about an object is wrong.

use saas_core::{Actor, CoreError, SystemTx, audit};
use serde_json::json;

use crate::{
    billing::Billing,
    derive::FetchRequest,
    error::BillingError,
    object::ObjectId,
    postgres::{fetch, object},
};

impl Billing {
    /// Has an object read from Stripe once more, and what that says stand for all that was known about it.
    ///
    /// Merging never goes back behind a final state, so a forged event that says "paid" or "ended" outlives every reconciliation:
    /// this is the way back. An object that Stripe does not have gives no access and moves no money from then on. The plan,
    /// dunning and the ledger follow, the ledger by entries of its own. It happens with the next
    /// [`fetch_pending`](Self::fetch_pending), and is on record with the actor.
    ///
    /// If something else is heard of the object while it is read, it is read again. If the read is given up (`dead_fetches` of the
    /// inbox's health), nothing is forgotten, and it has to be asked for again.
    ///
    /// # Errors
    /// [`NotFound`](CoreError::NotFound) when nothing is known about such an object; when the database does not answer.
    pub async fn reread(&self, actor: &Actor, id: &ObjectId) -> Result<(), BillingError> {
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "have an object read afresh").await?;
        let owner = object::owner_of(&mut tx, self.scope.livemode, id).await?;
        let (kind, tenant) = owner.ok_or(CoreError::NotFound { what: "Stripe object" })?;
        let request = FetchRequest { kind, id: id.clone(), reason: "an operator wants it read afresh".to_owned() };
        fetch::request_afresh(&mut tx, &self.scope, &request, now).await?;
        let entry = audit::Entry::new("billing.reread", id).with_detail(json!({"kind": kind}));
        audit::record_in(&mut tx, tenant, actor, entry, now).await?;
        Ok(tx.commit().await?)
    }
}
