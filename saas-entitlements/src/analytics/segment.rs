//! Segment's `/v1/batch` endpoint.

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

/// Per request 500 KB and 2,500 events, per event 32 KB
/// (<https://segment.com/docs/connections/sources/catalog/libraries/server/http-api/>).
const MOST: Most = Most { body: 500_000, event: 32_000, events: 2_500 };

/// Sends product events to Segment as `track` calls.
///
/// An event is named after its meter, with `amount` as a property. `messageId` is the event's id, by which Segment counts it
/// once; the tenant is `context.groupId`, and the member the user id. An event without a member has the tenant's id as its
/// anonymous id. Segment answers 200 to calls that it drops later: its debugger shows those, and nothing here can.
#[derive(Debug)]
pub struct Segment(Courier);

impl Segment {
    /// A sink for the source of the write key. `base` is `https://api.segment.io`, or `https://events.eu1.segmentapis.com` for
    /// workspaces in the European Union.
    ///
    /// # Errors
    /// When `base` is no address, or the key is empty.
    pub fn new(base: &str, key: SecretString, http: Arc<dyn HttpPost>) -> Result<Self, InvalidInput> {
        Ok(Self(Courier::new(http, (base, "/v1/batch"), ("writeKey", key), MOST)?))
    }
}

#[async_trait]
impl AnalyticsSink for Segment {
    async fn take(&self, events: &[ProductEvent]) -> Result<Vec<Delivery>, SinkError> {
        let rendered: Vec<String> = events.iter().map(|event| render(event).to_string()).collect();
        self.0.carry(&rendered).await
    }
}

fn render(event: &ProductEvent) -> serde_json::Value {
    let tenant = event.tenant.to_string();
    let mut call = json!({
        "type": "track",
        "messageId": event.id.to_string(),
        "event": event.meter.as_str(),
        "timestamp": event.at.to_rfc3339_opts(SecondsFormat::Millis, true),
        "properties": {"amount": event.amount},
        "context": {"groupId": tenant},
    });
    match &event.member {
        Some(member) => call["userId"] = member.as_str().into(),
        None => call["anonymousId"] = tenant.into(),
    }
    call
}
