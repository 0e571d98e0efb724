//! What is wrong with single tenants, for operators: logged when it begins, listed and counted while it stands.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use saas_core::{Actor, Page, PageSize, SystemTx, TenantId};
use serde::Serialize;

use crate::{
    billing::Billing,
    derive::{Alert, Derived},
    error::BillingError,
    postgres::state,
};

/// The names of those that need a person: all but what somebody decided at Stripe, and what the next read from Stripe settles.
const URGENT: &[&str] =
    &["unknown_price", "several_plans", "several_subscriptions", "unknown_status", "unexplained_debt"];

/// A tenant with alerts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TenantAlerts {
    /// Who.
    pub tenant: TenantId,
    /// What about.
    pub alerts: BTreeSet<Alert>,
    /// When what the tenant has was last derived to something new: the alerts are at least as old.
    pub updated_at: DateTime<Utc>,
}

/// A place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlertCursor(TenantId);

impl Alert {
    /// Whether a person has to act. Collection that is paused and a customer that was deleted are somebody's decision, and the
    /// terms of a discount are being read.
    #[must_use]
    pub const fn is_urgent(&self) -> bool {
        match self {
            Self::UnknownPrice { .. }
            | Self::SeveralPlans { .. }
            | Self::SeveralSubscriptions { .. }
            | Self::UnknownStatus { .. }
            | Self::UnexplainedDebt { .. } => true,
            Self::CollectionPaused { .. } | Self::UnknownDiscount { .. } | Self::CustomerDeleted { .. } => false,
        }
    }
}

impl Billing {
    /// Lists the tenants that have alerts, and which, by the tenant's id. [`Alert::is_urgent`] says which need a person.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_alerts(
        &self,
        actor: &Actor,
        after: Option<AlertCursor>,
        size: PageSize,
    ) -> Result<Page<TenantAlerts, AlertCursor>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "list tenants with alerts").await?;
        let after = after.map(|cursor| cursor.0);
        let rows = state::with_alerts(&mut tx, self.scope.livemode, after, i64::from(size.get()) + 1).await?;
        tx.commit().await?;
        let item = |(tenant, derived, updated_at): (TenantId, Derived, DateTime<Utc>)| TenantAlerts {
            tenant,
            alerts: derived.alerts,
            updated_at,
        };
        Ok(Page::from_rows(rows.into_iter().map(item).collect(), size, |last: &TenantAlerts| AlertCursor(last.tenant)))
    }

    /// How many tenants have an alert that needs a person.
    pub(crate) async fn count_urgent(&self, actor: &Actor) -> Result<u64, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "count tenants with alerts").await?;
        let tenants = state::count_with_alerts(&mut tx, self.scope.livemode, URGENT).await?;
        tx.commit().await?;
        Ok(tenants)
    }
}

/// Logs the alerts that were not there before. If the transaction comes to nothing, whoever repeats it logs them again.
pub(crate) fn tell(tenant: TenantId, previous: &Derived, stored: &Derived) {
    for alert in stored.alerts.difference(&previous.alerts) {
        if alert.is_urgent() {
            tracing::warn!(target: "saas.billing.alert", %tenant, ?alert, "a tenant needs a person");
        } else {
            tracing::info!(target: "saas.billing.alert", %tenant, ?alert, "a tenant has an alert");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_what_is_urgent() {
        let id = || "sub_1".parse().unwrap();
        let alerts = [
            Alert::UnknownPrice { subscription: id(), price: id() },
            Alert::SeveralPlans { subscription: id() },
            Alert::SeveralSubscriptions { subscriptions: BTreeSet::new() },
            Alert::UnknownStatus { subscription: id(), status: String::new() },
            Alert::CollectionPaused { subscription: id() },
            Alert::UnexplainedDebt { subscription: id() },
            Alert::UnknownDiscount { subscription: id(), discount: id() },
            Alert::CustomerDeleted { customer: id() },
        ];
        for alert in alerts {
            let stored = serde_json::to_value(&alert).unwrap();
            let name = stored["alert"].as_str().unwrap();
            assert_eq!(URGENT.contains(&name), alert.is_urgent(), "{name}");
        }
    }
}
