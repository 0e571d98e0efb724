//! Meters, events, test clocks.

use chrono::{DateTime, NaiveTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::{ApiError, Outcome, REFUSED, Request};
use crate::testing::world::{SimEvent, SimMeter, SimReading};

/// How old and how far ahead a reading may be.
pub(super) const OLDEST: TimeDelta = TimeDelta::days(35);
pub(super) const NEWEST: TimeDelta = TimeDelta::minutes(5);
/// How long an identifier is remembered.
pub(super) const REMEMBERED: TimeDelta = TimeDelta::hours(24);
/// How long events can be listed.
const LISTED: TimeDelta = TimeDelta::days(30);

impl Request<'_, '_> {
    pub(super) fn create_meter(mut self) -> Outcome {
        let (name, event_name) = (self.params.need("display_name")?, self.params.need("event_name")?);
        let formula = self.params.need("default_aggregation[formula]")?;
        if !["sum", "count", "last"].contains(&formula.as_str()) {
            return Err(ApiError::invalid("parameter_invalid_string_enum", "default_aggregation[formula]"));
        }
        std::mem::take(&mut self.params).finish()?;
        if self.engine.world.meters.values().any(|meter| meter.active && meter.event_name == event_name) {
            let message = "An active meter already uses that event name.";
            return Err(ApiError::new(400, REFUSED, "resource_already_exists", message));
        }
        let id = self.engine.world.mint("mtr");
        let meter = SimMeter { id: id.clone(), name, event_name, formula, active: true, created: self.engine.now };
        let object = meter_of(&meter, self.engine.livemode);
        self.engine.world.meters.insert(id, meter);
        Ok(object)
    }

    pub(super) fn rename_meter(mut self, id: &str) -> Outcome {
        let name = self.params.need("display_name")?;
        std::mem::take(&mut self.params).finish()?;
        let live = self.engine.livemode;
        let meter = self.engine.world.meters.get_mut(id).ok_or_else(|| ApiError::not_found("billing.meter", id))?;
        meter.name = name;
        Ok(meter_of(meter, live))
    }

    pub(super) fn activate_meter(self, id: &str, active: bool) -> Outcome {
        self.params.finish()?;
        let live = self.engine.livemode;
        let meter = self.engine.world.meters.get_mut(id).ok_or_else(|| ApiError::not_found("billing.meter", id))?;
        meter.active = active;
        Ok(meter_of(meter, live))
    }

    pub(super) fn list_meters(self) -> Outcome {
        let live = self.engine.livemode;
        let all = self.engine.world.meters.values().map(|meter| (meter.id.clone(), meter_of(meter, live))).collect();
        self.page("/v1/billing/meters", all)
    }

    pub(super) fn meter_totals(mut self, id: &str) -> Outcome {
        let customer = self.params.need("customer")?;
        let missing = |name: &'static str| move || ApiError::missing(name);
        let from = self.params.instant("start_time")?.ok_or_else(missing("start_time"))?;
        let to = self.params.instant("end_time")?.ok_or_else(missing("end_time"))?;
        if !self.engine.world.meters.contains_key(id) {
            return Err(ApiError::not_found("billing.meter", id));
        }
        let daily = self.params.word("value_grouping_window", &[("day", ())])?.is_some();
        let is_midnight = |at: DateTime<Utc>| at.time() == NaiveTime::MIN;
        if daily && !(is_midnight(from) && is_midnight(to)) {
            // <https://docs.stripe.com/api/billing/meter-event-summary/list>: aligned with days.
            return Err(ApiError::invalid("timestamp_invalid", "start_time"));
        }
        let mut spans = vec![(from, to)];
        if daily {
            let days = std::iter::successors(Some(from), |day| Some(*day + TimeDelta::days(1)));
            spans = days.take_while(|day| *day < to).map(|day| (day, day + TimeDelta::days(1))).collect();
            spans.retain(|span| self.engine.has_used(id, &customer, *span));
        }
        let summary = |(from, to): (DateTime<Utc>, DateTime<Utc>)| {
            let name = format!("mtrusg_{}_of_{id}", from.timestamp());
            let summary = json!({
                "id": name, "object": "billing.meter_event_summary",
                "aggregated_value": self.engine.used(id, &customer, (from, to)), "start_time": from.timestamp(),
                "end_time": to.timestamp(), "livemode": self.engine.livemode, "meter": id
            });
            (name, summary)
        };
        let all = spans.into_iter().map(summary).collect();
        self.page(&format!("/v1/billing/meters/{id}/event_summaries"), all)
    }

    pub(super) fn report_usage(mut self) -> Outcome {
        let event_name = self.params.need("event_name")?;
        let customer = self.params.need("payload[stripe_customer_id]")?;
        let value: u64 = self.params.number("payload[value]")?.ok_or_else(|| ApiError::missing("payload[value]"))?;
        let at = self.params.instant("timestamp")?.unwrap_or(self.engine.now);
        let identifier = self.params.take("identifier").unwrap_or_else(|| self.engine.world.mint("mevt"));
        std::mem::take(&mut self.params).finish()?;
        let now = self.engine.now;
        if at < now - OLDEST || at > now + NEWEST {
            return Err(ApiError::invalid("timestamp_invalid", "timestamp"));
        }
        if self.engine.remembers(&identifier) {
            let message = format!("An event already exists with identifier {identifier}.");
            return Err(ApiError::new(400, REFUSED, "", message));
        }
        let object = json!({
            "object": "billing.meter_event", "created": now.timestamp(), "event_name": event_name,
            "identifier": identifier, "livemode": self.engine.livemode, "timestamp": at.timestamp(),
            "payload": {"stripe_customer_id": customer, "value": value.to_string()}
        });
        let reading = SimReading { event_name, customer, value, at, received: now, identifier, void: false };
        self.engine.count(reading);
        Ok(object)
    }

    pub(super) fn cancel_reading(mut self) -> Outcome {
        let event_name = self.params.need("event_name")?;
        let _ = self.params.word("type", &[("cancel", ())])?;
        let identifier = self.params.need("cancel[identifier]")?;
        std::mem::take(&mut self.params).finish()?;
        let (now, live) = (self.engine.now, self.engine.livemode);
        let is_it = |reading: &&mut SimReading| {
            reading.identifier == identifier && reading.event_name == event_name && now - reading.received < REMEMBERED
        };
        // <https://docs.stripe.com/api/billing/meter-event-adjustment/create>: within 24 hours of Stripe receiving it.
        let reading = self.engine.world.readings.iter_mut().find(is_it);
        let reading = reading.ok_or_else(|| ApiError::no_such("meter_event", &identifier, "cancel[identifier]"))?;
        reading.void = true;
        Ok(json!({
            "object": "billing.meter_event_adjustment", "cancel": {"identifier": identifier}, "event_name": event_name,
            "livemode": live, "status": "pending", "type": "cancel"
        }))
    }

    pub(super) fn list_events(mut self) -> Outcome {
        let from = self.params.instant("created[gte]")?;
        let oldest = self.engine.now - LISTED;
        let events = self.engine.world.events.iter();
        let listed = events.filter(|event| event.created >= oldest && from.is_none_or(|from| event.created >= from));
        let all = listed.filter_map(shown).collect();
        self.page("/v1/events", all)
    }

    pub(super) fn event(self, id: &str) -> Outcome {
        let event = self.engine.world.events.iter().find(|event| event.id == id);
        event.and_then(shown).map(|(_, event)| event).ok_or_else(|| ApiError::not_found("event", id))
    }

    pub(super) fn create_clock(mut self) -> Outcome {
        let frozen = self.params.instant("frozen_time")?.ok_or_else(|| ApiError::missing("frozen_time"))?;
        let _ = self.params.take("name");
        std::mem::take(&mut self.params).finish()?;
        let id = self.engine.world.mint("clock");
        self.engine.world.test_clocks.insert(id.clone(), frozen);
        self.clock(&id)
    }

    /// Its customers stay, for whoever looks at them in the process.
    pub(super) fn delete_clock(self, id: &str) -> Outcome {
        self.engine.world.test_clocks.remove(id).ok_or_else(|| ApiError::not_found("test_clock", id))?;
        Ok(json!({"id": id, "object": "test_helpers.test_clock", "deleted": true}))
    }

    /// All of the simulator lives by one clock, which every test clock shows.
    pub(super) fn clock(self, id: &str) -> Outcome {
        if !self.engine.world.test_clocks.contains_key(id) {
            return Err(ApiError::not_found("test_clock", id));
        }
        let now = self.engine.now.timestamp();
        Ok(json!({
            "id": id, "object": "test_helpers.test_clock", "created": now, "deletes_after": now + 2_592_000,
            "frozen_time": now, "livemode": false, "name": null, "status": "ready"
        }))
    }
}

/// Thin events are not in the list.
fn shown(event: &SimEvent) -> Option<(String, Value)> {
    let body: Value = serde_json::from_slice(&event.body).ok()?;
    (body["object"] == "event").then(|| (event.id.clone(), body))
}

fn meter_of(meter: &SimMeter, livemode: bool) -> Value {
    json!({
        "id": meter.id, "object": "billing.meter", "created": meter.created.timestamp(),
        "customer_mapping": {"event_payload_key": "stripe_customer_id", "type": "by_id"},
        "default_aggregation": {"formula": meter.formula}, "display_name": meter.name, "event_name": meter.event_name,
        "event_time_window": null, "livemode": livemode,
        "status": if meter.active { "active" } else { "inactive" },
        "status_transitions": {"deactivated_at": null}, "updated": meter.created.timestamp(),
        "value_settings": {"event_payload_key": "value"}
    })
}
