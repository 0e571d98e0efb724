//! PostHog's `/batch/` endpoint.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::SecondsFormat;
use saas_core::InvalidInput;
use secrecy::SecretString;
use serde_json::json;

use super::{
    AnalyticsSink, HttpPost, ProductEvent, SinkError,
    courier::{Courier, Most},
};
use crate::usage::Delivery;

/// A request is 20 MB at most (<https://posthog.com/docs/api/capture>); a message of its pipeline 1 MB.
const MOST: Most = Most { body: 20_000_000, event: 1_000_000, events: 1_000 };

/// Sends product events to PostHog, in its cloud or elsewhere.
///
/// An event is named after its meter, with `amount` as a property. `uuid` is the event's id, by which PostHog counts it once;
/// the tenant is the group `tenant`, and the member the distinct id. An event without a member has the tenant's id there, and
/// makes no person.
#[derive(Debug)]
pub struct PostHog(Courier);

impl PostHog {
    /// A sink for the project of the key. `base` is such as `https://eu.i.posthog.com`.
    ///
    /// # Errors
    /// When `base` is no address, or the key is empty.
    pub fn new(base: &str, key: SecretString, http: Arc<dyn HttpPost>) -> Result<Self, InvalidInput> {
        Ok(Self(Courier::new(http, (base, "/batch/"), ("api_key", key), MOST)?))
    }
}

#[async_trait]
impl AnalyticsSink for PostHog {
    async fn take(&self, events: &[ProductEvent]) -> Result<Vec<Delivery>, SinkError> {
        let rendered: Vec<String> = events.iter().map(|event| render(event).to_string()).collect();
        self.0.carry(&rendered).await
    }
}

fn render(event: &ProductEvent) -> serde_json::Value {
    let tenant = event.tenant.to_string();
    let mut properties = json!({
        "$groups": {"tenant": tenant}, "amount": event.amount,
        // The address is this server's, not the member's.
        "$geoip_disable": true,
    });
    if event.member.is_none() {
        properties["$process_person_profile"] = false.into();
    }
    json!({
        "uuid": event.id.to_string(),
        "event": event.meter.as_str(),
        "distinct_id": event.member.as_ref().unwrap_or(&tenant),
        "timestamp": event.at.to_rfc3339_opts(SecondsFormat::Micros, true),
        "properties": properties,
    })
}
