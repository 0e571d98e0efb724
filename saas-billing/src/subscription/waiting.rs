//! What a payment decides: a change that waits is made with it, or dropped without it.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, TenantId};
use sqlx::PgConnection;

use super::{
    Change, Goal,
    goal::{Next, Seen, next},
};
use crate::{
    billing::Billing,
    object::Subscription,
    postgres::request::{self, Progress},
};

impl Billing {
    /// Ends the requests that waited for what a subscription has become.
    pub(crate) async fn note_subscription(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        subscription: &Subscription,
        now: DateTime<Utc>,
    ) -> Result<(), CoreError> {
        for request in request::waiting(connection, (tenant, &self.scope), &subscription.id).await? {
            let Progress::Waiting(goal, _) = &request.progress else { continue };
            let change = match goal.as_ref() {
                Goal::Running if subscription.is_final() => Change::RolledBack,
                goal => {
                    // No step is left: what a schedule says does not matter.
                    let seen = Seen { subscription: subscription.clone(), schedule: None };
                    match next(goal, &seen, &self.catalog(), &request.steps) {
                        Ok(Next::Stop(Change::AwaitingPayment { .. })) => continue,
                        Ok(Next::Stop(change)) => change,
                        // Another change has taken its place.
                        Ok(Next::Do(..)) | Err(_) => Change::RolledBack,
                    }
                }
            };
            self.conclude_in(connection, tenant, &request, &change, now).await?;
        }
        Ok(())
    }
}
