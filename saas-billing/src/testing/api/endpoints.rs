//! Webhook endpoints, as the account's owner has registered them.

use serde_json::{Value, json};

use super::{Outcome, Request};
use crate::testing::world::SimEndpoint;

impl Request<'_, '_> {
    pub(super) fn list_endpoints(self) -> Outcome {
        let livemode = self.engine.livemode;
        let all = self.engine.world.endpoints.values();
        let all: Vec<(String, Value)> = all.map(|one| (one.id.clone(), endpoint(one, livemode))).collect();
        self.page("/v1/webhook_endpoints", all)
    }
}

fn endpoint(of: &SimEndpoint, livemode: bool) -> Value {
    json!({
        "id": of.id, "object": "webhook_endpoint", "api_version": of.api_version, "application": null,
        "created": 1_721_948_530, "description": null, "enabled_events": of.enabled_events, "livemode": livemode,
        "metadata": {}, "status": if of.enabled { "enabled" } else { "disabled" }, "url": of.url
    })
}
