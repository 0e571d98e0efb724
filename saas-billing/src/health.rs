//! Whether webhooks come in and get through: what the inbox holds, and how the endpoint stands at Stripe.

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::Actor;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    billing::Billing,
    door::DoorHealth,
    error::BillingError,
    event,
    mode::Mode,
    object::ObjectId,
    provider::{PageLimit, PaymentProvider, ProviderError, Query},
    receipts::InboxHealth,
};

/// A receipt that has waited longer for the worker is worth a look.
const SLOW: TimeDelta = TimeDelta::minutes(5);

/// A receipt is parked until its customer is linked, which is a matter of seconds where the checkout does it.
const LONG: TimeDelta = TimeDelta::days(1);

/// Seconds on the way that are still no sign of a clock that is off.
const MAX_AGE: i64 = 30;

/// How webhooks are doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WebhookHealth {
    /// What this process has seen at its door.
    pub door: DoorHealth,
    /// What came in, and what became of it.
    pub inbox: InboxHealth,
    /// The endpoint at Stripe, or all of the account when its address was not configured
    /// ([`with_endpoint`](crate::BillingConfig::with_endpoint)).
    pub endpoints: Vec<EndpointHealth>,
    /// Tenants with an alert that needs a person ([`Billing::list_alerts`]).
    pub urgent_tenants: u64,
    /// What somebody has to look at; empty when all is well.
    pub alarms: Vec<WebhookAlarm>,
}

/// An endpoint as Stripe has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EndpointHealth {
    /// `we_…`
    pub id: ObjectId,
    /// Where Stripe delivers.
    pub url: String,
    /// Whether Stripe delivers there: it stops after days of failures, or when somebody stops it.
    pub enabled: bool,
    /// The version of its payloads; the account's if `None`.
    pub api_version: Option<String>,
    /// Types that are handled here and not delivered there.
    pub missing: Vec<&'static str>,
}

/// What somebody has to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "alarm", rename_all = "snake_case")]
#[non_exhaustive]
pub enum WebhookAlarm {
    /// Stripe has stopped to deliver. Enable it in the dashboard, then [`back_fill`](Billing::back_fill).
    EndpointDisabled {
        /// Which.
        endpoint: ObjectId,
    },
    /// No endpoint of the account has the configured address.
    NoEndpoint,
    /// Types are not delivered. Subscribe the endpoint to them.
    TypesMissing {
        /// Which endpoint.
        endpoint: ObjectId,
        /// Which types.
        types: Vec<&'static str>,
    },
    /// The endpoint's payloads are of another version than was configured.
    OtherVersion {
        /// Which endpoint.
        endpoint: ObjectId,
        /// Its version.
        version: String,
    },
    /// Stripe could not be asked about its endpoints.
    NotAsked {
        /// Why.
        code: String,
    },
    /// This machine's clock is off, or deliveries are held up on the way: beyond 300 seconds every one is refused.
    Clock {
        /// Seconds between the signing of the last delivery and its arrival; negative when it was signed in our future.
        age_seconds: i64,
    },
    /// Receipts wait: the worker does not run, or is too slow.
    Lag {
        /// Since when the oldest waits.
        since: DateTime<Utc>,
    },
    /// Receipts failed and are tried again.
    Failing {
        /// How many.
        receipts: u64,
    },
    /// Receipts were given up, or objects could not be read from Stripe.
    Dead {
        /// How many receipts.
        receipts: u64,
        /// How many objects.
        fetches: u64,
    },
    /// Receipts of another mode or account, or of checkouts that were not made here.
    Quarantined {
        /// How many.
        receipts: u64,
    },
    /// One id with two bodies: a fixture, or a leaked secret.
    Conflicts {
        /// How many bodies.
        bodies: u64,
    },
    /// Receipts have waited for their customer's link to a tenant for more than a day: somebody sells on this account by other
    /// ways than the checkout, or a link was lost.
    Parked {
        /// How many wait.
        receipts: u64,
        /// Since when the oldest does.
        since: DateTime<Utc>,
    },
    /// A run of reconciliation that finished within the last day found what no event had told
    /// ([`reconcile_report`](Billing::reconcile_report)).
    Drift {
        /// The last one that did.
        run: Uuid,
        /// How many objects differed.
        objects: u64,
        /// Of those, the ones that are read again.
        repaired: u64,
    },
    /// Tenants have alerts that need a person: two subscriptions, a price that no plan has.
    Alerts {
        /// How many tenants.
        tenants: u64,
    },
}

impl Billing {
    /// How webhooks are doing: the inbox, and the endpoint at Stripe, whose list of subscribed types is compared with
    /// [`event::TABLE`]. Does not fail when Stripe does not answer: that is an alarm.
    ///
    /// # Errors
    /// When the database does not answer.
    #[tracing::instrument(name = "saas.billing.webhook.health", level = "debug", skip_all)]
    pub async fn webhook_health(
        &self,
        provider: &dyn PaymentProvider,
        actor: &Actor,
    ) -> Result<WebhookHealth, BillingError> {
        let inbox = self.inbox_health(actor).await?;
        let door = self.door.health();
        let mut alarms = inbox_alarms(&inbox, self.clock.now());
        if door.age_seconds.abs() > MAX_AGE {
            alarms.push(WebhookAlarm::Clock { age_seconds: door.age_seconds });
        }
        let urgent_tenants = self.count_urgent(actor).await?;
        if urgent_tenants > 0 {
            alarms.push(WebhookAlarm::Alerts { tenants: urgent_tenants });
        }
        if let Some(run) = self.recent_drift(actor).await? {
            alarms.push(WebhookAlarm::Drift { run: run.id, objects: run.drifted, repaired: run.repaired });
        }
        let endpoints = match self.endpoints(provider).await {
            Ok(endpoints) => endpoints,
            Err(why) => {
                alarms.push(WebhookAlarm::NotAsked { code: why.code().to_owned() });
                return Ok(WebhookHealth { door, inbox, endpoints: Vec::new(), urgent_tenants, alarms });
            }
        };
        if endpoints.is_empty() {
            alarms.push(WebhookAlarm::NoEndpoint);
        }
        // Of several, which are other applications' is not known: an alarm about them would be noise.
        let ours: &[EndpointHealth] =
            if self.config.endpoint.is_some() || endpoints.len() == 1 { &endpoints } else { &[] };
        for endpoint in ours {
            alarms.extend(self.endpoint_alarms(endpoint));
        }
        Ok(WebhookHealth { door, inbox, endpoints, urgent_tenants, alarms })
    }

    async fn endpoints(&self, provider: &dyn PaymentProvider) -> Result<Vec<EndpointHealth>, ProviderError> {
        let listed = provider.list(&Query::WebhookEndpoints, None, PageLimit::MAX).await?;
        let live = self.config.mode == Mode::Live;
        let mut endpoints = Vec::new();
        for json in &listed.objects {
            let wire: Wire = serde_json::from_str(json.get())
                .map_err(|_| ProviderError::Unreadable { what: "a webhook endpoint" })?;
            let is_ours = self.config.endpoint.as_ref().is_none_or(|url| url.as_str() == wire.url);
            if is_ours && wire.livemode == live {
                endpoints.push(wire.into());
            }
        }
        Ok(endpoints)
    }

    fn endpoint_alarms(&self, endpoint: &EndpointHealth) -> Vec<WebhookAlarm> {
        let mut alarms = Vec::new();
        let id = || endpoint.id.clone();
        if !endpoint.enabled {
            alarms.push(WebhookAlarm::EndpointDisabled { endpoint: id() });
        }
        if !endpoint.missing.is_empty() {
            alarms.push(WebhookAlarm::TypesMissing { endpoint: id(), types: endpoint.missing.clone() });
        }
        if let (Some(version), Some(expected)) = (&endpoint.api_version, &self.config.api_version)
            && version != expected
        {
            alarms.push(WebhookAlarm::OtherVersion { endpoint: id(), version: version.clone() });
        }
        alarms
    }
}

fn inbox_alarms(inbox: &InboxHealth, now: DateTime<Utc>) -> Vec<WebhookAlarm> {
    let mut alarms = Vec::new();
    if let Some(since) = inbox.oldest_pending.filter(|since| now - *since > SLOW) {
        alarms.push(WebhookAlarm::Lag { since });
    }
    if inbox.failing > 0 {
        alarms.push(WebhookAlarm::Failing { receipts: inbox.failing });
    }
    if inbox.dead + inbox.dead_fetches > 0 {
        alarms.push(WebhookAlarm::Dead { receipts: inbox.dead, fetches: inbox.dead_fetches });
    }
    if inbox.quarantined > 0 {
        alarms.push(WebhookAlarm::Quarantined { receipts: inbox.quarantined });
    }
    if inbox.conflicts > 0 {
        alarms.push(WebhookAlarm::Conflicts { bodies: inbox.conflicts });
    }
    if let Some(since) = inbox.oldest_parked.filter(|since| now - *since > LONG) {
        alarms.push(WebhookAlarm::Parked { receipts: inbox.parked, since });
    }
    alarms
}

#[derive(Deserialize)]
struct Wire {
    id: ObjectId,
    url: String,
    status: String,
    livemode: bool,
    api_version: Option<String>,
    enabled_events: Vec<String>,
}

impl From<Wire> for EndpointHealth {
    fn from(wire: Wire) -> Self {
        let delivered = |name: &&'static str| wire.enabled_events.iter().any(|one| one == "*" || one == name);
        // Thin events go to destinations of another kind, which this list does not hold.
        let snapshot = |name: &&'static str| !name.starts_with("v1.") && !name.starts_with("v2.");
        let missing = event::needed().filter(snapshot).filter(|name| !delivered(name)).collect();
        Self { id: wire.id, url: wire.url, enabled: wire.status == "enabled", api_version: wire.api_version, missing }
    }
}
