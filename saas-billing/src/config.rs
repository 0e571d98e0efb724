//! What an adopter decides about billing. Never reads the environment.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::TimeDelta;
use saas_core::{PlanCatalog, PlanKey, Topic};

use crate::{
    dunning::{DunningException, DunningPolicy, DunningPolicyError, DunningTerms},
    mode::Mode,
    object::ObjectId,
    provider::WebAddress,
    seat::{Occupancy, OverviewMembers, SeatPolicy},
    signature::SigningSecrets,
};

/// The configuration of one webhook endpoint and of what follows from it.
#[derive(Debug, Clone)]
pub struct BillingConfig {
    pub(crate) catalog: PlanCatalog,
    pub(crate) secrets: SigningSecrets,
    pub(crate) mode: Mode,
    pub(crate) account: Option<ObjectId>,
    pub(crate) dunning: Arc<DunningPolicy>,
    pub(crate) dunning_of: BTreeMap<PlanKey, Arc<DunningPolicy>>,
    pub(crate) body_limit: usize,
    pub(crate) body_deadline: Duration,
    pub(crate) intake_deadline: Duration,
    pub(crate) attempts: u32,
    pub(crate) lease: TimeDelta,
    pub(crate) retention: TimeDelta,
    pub(crate) api_version: Option<String>,
    pub(crate) endpoint: Option<WebAddress>,
    pub(crate) notices: Option<Topic>,
    pub(crate) occupancy: Arc<dyn Occupancy>,
    pub(crate) seat_policies: BTreeMap<PlanKey, SeatPolicy>,
}

/// The shortest time for which receipts are kept.
const MIN_RETENTION: TimeDelta = TimeDelta::days(45);

impl BillingConfig {
    /// The usual: the platform's own account, the default dunning policy, bodies up to 4 MiB in ten
    /// seconds, five to store one, eight attempts to apply it.
    #[must_use]
    pub fn new(catalog: PlanCatalog, secrets: SigningSecrets, mode: Mode) -> Self {
        Self {
            catalog,
            secrets,
            mode,
            account: None,
            dunning: Arc::default(),
            dunning_of: BTreeMap::new(),
            body_limit: 4 * 1024 * 1024,
            body_deadline: Duration::from_secs(10),
            intake_deadline: Duration::from_secs(5),
            attempts: 8,
            lease: TimeDelta::seconds(60),
            retention: MIN_RETENTION,
            api_version: None,
            endpoint: None,
            notices: None,
            occupancy: Arc::new(OverviewMembers),
            seat_policies: BTreeMap::new(),
        }
    }

    /// Serves a connected account instead of the platform's own.
    #[must_use]
    pub fn with_account(mut self, account: ObjectId) -> Self {
        self.account = Some(account);
        self
    }

    /// What happens after a payment failed, instead of [`DunningPolicy::default`].
    #[must_use]
    pub fn with_dunning(mut self, policy: DunningPolicy) -> Self {
        self.dunning = Arc::new(policy);
        self
    }

    /// What happens after a payment failed to a tenant on this plan.
    ///
    /// # Errors
    /// [`UnknownPlan`](DunningPolicyError::UnknownPlan) when the catalogue lacks it: its tenants would be dunned otherwise
    /// than is written here.
    pub fn with_dunning_of(mut self, plan: PlanKey, policy: DunningPolicy) -> Result<Self, DunningPolicyError> {
        if self.catalog.plan(&plan).is_none() {
            return Err(DunningPolicyError::UnknownPlan { plan });
        }
        self.dunning_of.insert(plan, Arc::new(policy));
        Ok(self)
    }

    /// The largest body in bytes. Stripe's invoices can pass one mebibyte.
    #[must_use]
    pub const fn with_body_limit(mut self, bytes: usize) -> Self {
        self.body_limit = bytes;
        self
    }

    /// How long the whole body may take to come in. Nobody has proved to be Stripe by then: without an end, anybody could hold
    /// connections with a byte now and then.
    #[must_use]
    pub const fn with_body_deadline(mut self, deadline: Duration) -> Self {
        self.body_deadline = deadline;
        self
    }

    /// How long storing a receipt may take before Stripe is asked to come again.
    #[must_use]
    pub const fn with_intake_deadline(mut self, deadline: Duration) -> Self {
        self.intake_deadline = deadline;
        self
    }

    /// How often an event is tried, at least once, before it becomes a dead letter.
    #[must_use]
    pub fn with_attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// How long a worker may hold an event, at least one second, before another may take it over.
    #[must_use]
    pub fn with_lease(mut self, lease: TimeDelta) -> Self {
        self.lease = lease.max(TimeDelta::seconds(1));
        self
    }

    /// How long receipts are kept after they were applied, at least the default of 45 days: Stripe can be made to send an
    /// event again for 30.
    #[must_use]
    pub fn with_retention(mut self, retention: TimeDelta) -> Self {
        self.retention = retention.max(MIN_RETENTION);
        self
    }

    /// The API version that the endpoint is pinned to: events of another are applied, and reported.
    #[must_use]
    pub fn with_api_version(mut self, version: impl Into<String>) -> Self {
        self.api_version = Some(version.into());
        self
    }

    /// The address at which Stripe delivers, as it is registered there: for
    /// [`webhook_health`](crate::Billing::webhook_health), which asks how it stands.
    #[must_use]
    pub fn with_endpoint(mut self, url: WebAddress) -> Self {
        self.endpoint = Some(url);
        self
    }

    /// Counts members otherwise than by the operators' list, which `saas-tenancy` keeps.
    #[must_use]
    pub fn with_occupancy(mut self, occupancy: Arc<dyn Occupancy>) -> Self {
        self.occupancy = occupancy;
        self
    }

    /// What a plan charges when seats become more or fewer in mid-period, instead of [`SeatPolicy::DEFAULT`].
    #[must_use]
    pub fn with_seat_policy(mut self, plan: PlanKey, policy: SeatPolicy) -> Self {
        self.seat_policies.insert(plan, policy);
        self
    }

    /// The terms of a tenant: the policy of its plan, and the exception that was made.
    pub(crate) fn terms(&self, plan: Option<&PlanKey>, exception: Option<&DunningException>) -> DunningTerms {
        let of_plan = plan.and_then(|plan| self.dunning_of.get(plan));
        let terms = DunningTerms::new(Arc::clone(of_plan.unwrap_or(&self.dunning)));
        match exception {
            Some(exception) => terms.with_exception(Arc::new(exception.policy.clone()), exception.expires_at),
            None => terms,
        }
    }

    /// Puts a job on this topic of the outbox for every fact (a payment failed, a subscription started, …), once, in the
    /// transaction that learns of it. Needs a handler there.
    #[must_use]
    pub fn with_notices(mut self, topic: Topic) -> Self {
        self.notices = Some(topic);
        self
    }
}
