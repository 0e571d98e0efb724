//! The second generation of the API: the stream of readings, and events that are read whole.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::{
    ApiError, ApiRequest, Outcome, REFUSED,
    usage::{NEWEST, OLDEST, REMEMBERED},
};
use crate::testing::{
    engine::Engine,
    world::{SimEvent, SimMisread, SimReading},
};

/// Where readings are handed over.
pub(super) const PATH: &str = "/v2/billing/meter_event_stream";
/// How long a session lasts.
const SESSION: TimeDelta = TimeDelta::minutes(15);
/// Readings of one call.
const MOST: usize = 100;

pub(super) fn route(engine: &mut Engine<'_>, request: &ApiRequest, path: &str) -> Outcome {
    let parts: Vec<&str> = path.split('/').collect();
    match (request.method.as_str(), parts.as_slice()) {
        ("POST", ["billing", "meter_event_session"]) => open(engine),
        ("POST", ["billing", "meter_event_stream"]) => take(engine, request),
        ("GET", ["core", "events", id]) => {
            engine.world.thin.get(*id).cloned().ok_or_else(|| ApiError::not_found("event", id))
        }
        (method, _) => {
            Err(ApiError::new(404, REFUSED, "", format!("Unrecognized request URL ({method}: /v2/{path}).")))
        }
    }
}

fn open(engine: &mut Engine<'_>) -> Outcome {
    let (id, token) = (engine.world.mint("mes"), engine.world.mint("met"));
    let until = engine.now + SESSION;
    engine.world.streams.insert(token.clone(), until);
    Ok(json!({
        "id": id, "object": "v2.billing.meter_event_session", "authentication_token": token,
        "created": engine.now.to_rfc3339(), "expires_at": until.to_rfc3339(), "livemode": engine.livemode
    }))
}

fn take(engine: &mut Engine<'_>, request: &ApiRequest) -> Outcome {
    let token = request.authorization.as_deref().and_then(|text| text.strip_prefix("Bearer "));
    if token.and_then(|token| engine.world.streams.get(token)).is_none_or(|until| engine.now >= *until) {
        let code = "billing_meter_event_session_expired";
        return Err(ApiError::new(400, REFUSED, code, "The temporary session token has expired."));
    }
    let body: Value =
        serde_json::from_slice(&request.body).map_err(|_| ApiError::invalid("invalid_request_body", "events"))?;
    let events = body["events"].as_array().filter(|events| (1..=MOST).contains(&events.len()));
    let events = events.ok_or_else(|| ApiError::invalid("invalid_fields", "events"))?;
    let readings: Option<Vec<SimReading>> = events.iter().map(|event| reading(event, engine.now)).collect();
    // All or none: what is wrong with the meaning of one of them is told later.
    for reading in readings.ok_or_else(|| ApiError::invalid("invalid_fields", "events"))? {
        let is_old = reading.at < engine.now - OLDEST;
        if is_old || reading.at > engine.now + NEWEST {
            let code = if is_old { "timestamp_too_far_in_past" } else { "timestamp_in_future" };
            engine.misread(&reading, code);
        } else if !engine.remembers(&reading.identifier) {
            engine.count(reading);
        }
    }
    Ok(json!({}))
}

fn reading(event: &Value, now: DateTime<Utc>) -> Option<SimReading> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Some(SimReading {
        event_name: text(&event["event_name"])?,
        customer: text(&event["payload"]["stripe_customer_id"])?,
        value: event["payload"]["value"].as_str()?.parse().ok()?,
        at: DateTime::parse_from_rfc3339(event["timestamp"].as_str()?).ok()?.to_utc(),
        received: now,
        identifier: text(&event["identifier"])?,
        void: false,
    })
}

impl Engine<'_> {
    /// Whether the identifier was used within the time for which it is remembered.
    pub(super) fn remembers(&self, identifier: &str) -> bool {
        let known = |reading: &SimReading| reading.identifier == identifier && self.now - reading.received < REMEMBERED;
        self.world.readings.iter().any(known)
    }

    /// Takes a reading; one that belongs nowhere is told of later and counts nowhere.
    pub(super) fn count(&mut self, mut reading: SimReading) {
        let meter = self.world.meters.values().find(|meter| meter.event_name == reading.event_name);
        let code = match meter {
            None => Some("no_meter"),
            Some(meter) if !meter.active => Some("archived_meter"),
            Some(_) => {
                let lives = self.world.customers.get(&reading.customer).is_some_and(|customer| !customer.deleted);
                (!lives).then_some("meter_event_customer_not_found")
            }
        };
        if let Some(code) = code {
            self.misread(&reading, code);
            reading.void = true;
        }
        self.world.readings.push(reading);
    }

    fn misread(&mut self, reading: &SimReading, code: &'static str) {
        let meter = self.world.meters.values().find(|meter| meter.event_name == reading.event_name);
        let meter = meter.map(|meter| meter.id.clone());
        self.world.misread.push(SimMisread { meter, code, identifier: reading.identifier.clone() });
    }

    /// Tells what could not be counted: one event for each meter, and one for what has none.
    pub(in crate::testing) fn tell_misread(&mut self) {
        let mut misread = std::mem::take(&mut self.world.misread);
        misread.sort_by(|one, other| one.meter.cmp(&other.meter));
        for same in misread.chunk_by(|one, other| one.meter == other.meter) {
            let Some(meter) = same.first().map(|first| first.meter.clone()) else { continue };
            self.tell(meter, same);
        }
    }

    fn tell(&mut self, meter: Option<String>, misread: &[SimMisread]) {
        let id = self.world.mint("evt");
        let event_type = match meter {
            Some(_) => "v1.billing.meter.error_report_triggered",
            None => "v1.billing.meter.no_meter_found",
        };
        let now = self.now.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        let mut notice = json!({
            "id": id, "object": "v2.core.event", "type": event_type, "livemode": self.livemode, "created": now,
            "context": null
        });
        if let Some(meter) = &meter {
            let url = format!("/v1/billing/meters/{meter}");
            notice["related_object"] = json!({"id": meter, "type": "billing.meter", "url": url});
        }
        let mut kinds: Vec<Value> = Vec::new();
        let mut by_code = misread.to_vec();
        by_code.sort_by_key(|one| one.code);
        for same in by_code.chunk_by(|one, other| one.code == other.code) {
            // Stripe shows some of them.
            let samples = same.iter().take(10);
            let samples: Vec<Value> = samples
                .map(|one| json!({"error_message": "injected", "request": {"identifier": one.identifier}}))
                .collect();
            kinds.push(json!({
                "code": same.first().map(|first| first.code), "error_count": same.len(), "sample_errors": samples
            }));
        }
        let mut whole = notice.clone();
        whole["data"] = json!({
            "developer_message_summary": "There are errors in the usage events.",
            "reason": {"error_count": misread.len(), "error_types": kinds},
            "validation_start": now, "validation_end": now
        });
        self.world.thin.insert(id.clone(), whole);
        let body = serde_json::to_vec_pretty(&notice).unwrap_or_default();
        let event = SimEvent { id, event_type: event_type.to_owned(), created: self.now, body };
        self.world.events.push(event.clone());
        self.world.queue.push(event);
    }
}
