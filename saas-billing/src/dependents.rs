//! Why billing would not have a tenant erased: Stripe goes on charging whom we forget.

use async_trait::async_trait;
use saas_core::{
    CoreError, SystemTx, TenantId,
    dependents::{Dependent, Dependents},
};

/// Objects that still cost a customer money, or us the answer: for a person to read, so not all of them.
const MOST: i64 = 10;

/// Finds live subscriptions and open invoices of a tenant, of every account and mode that was ever connected.
///
/// Nothing else ends them: after an erasure nobody would know whose they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct LiveBilling;

#[async_trait]
impl Dependents for LiveBilling {
    async fn find(&self, tx: &mut SystemTx, tenant: TenantId) -> Result<Vec<Dependent>, CoreError> {
        let live: Vec<(String, String, String)> = sqlx::query_as(
            "select kind, object_id, status
             from saas.billing_object
             where tenant_id = $1 and is_current
               and (kind = 'subscription' or (kind = 'invoice' and status in ('draft', 'open')))
             order by kind desc, object_id
             limit $2",
        )
        .bind(tenant.as_uuid())
        .bind(MOST)
        .fetch_all(&mut **tx)
        .await
        .map_err(CoreError::from_database)?;
        let dependent = |(kind, id, status): (String, String, String)| Dependent {
            what: format!("the {kind} {id} is {status}"),
            remedy: if kind == "subscription" {
                "cancel it in Stripe and wait for the event".to_owned()
            } else {
                "collect or void it in Stripe and wait for the event".to_owned()
            },
        };
        Ok(live.into_iter().map(dependent).collect())
    }
}
