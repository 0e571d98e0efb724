//! A schedule, read tolerantly from a list of Stripe's.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{object::ObjectId, provider::ProviderError};

/// A schedule that is at work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub(crate) id: ObjectId,
    /// From when to when it does what it does now.
    pub(crate) present: (DateTime<Utc>, DateTime<Utc>),
    phases: Vec<PlannedPhase>,
}

/// What it does for a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedPhase {
    start: DateTime<Utc>,
    /// By price.
    pub(crate) items: Vec<(ObjectId, Option<u64>)>,
}

#[derive(Deserialize)]
struct Wire {
    id: ObjectId,
    current_phase: Option<WireSpan>,
    #[serde(default)]
    phases: Vec<WirePhase>,
}

#[derive(Deserialize)]
struct WireSpan {
    start_date: i64,
    end_date: i64,
}

#[derive(Deserialize)]
struct WirePhase {
    start_date: i64,
    #[serde(default)]
    items: Vec<WireItem>,
}

#[derive(Deserialize)]
struct WireItem {
    price: WirePrice,
    quantity: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WirePrice {
    Id(ObjectId),
    Whole { id: ObjectId },
}

impl Schedule {
    /// Reads one of a list; `None` when it does nothing at present.
    pub(crate) fn read(object: &RawValue) -> Result<Option<Self>, ProviderError> {
        let unreadable = |_| ProviderError::Unreadable { what: "a subscription schedule" };
        let wire: Wire = serde_json::from_str(object.get()).map_err(unreadable)?;
        let Some(present) = wire.current_phase.and_then(|span| Some((at(span.start_date)?, at(span.end_date)?))) else {
            return Ok(None);
        };
        let mut phases = Vec::new();
        for phase in wire.phases {
            let Some(start) = at(phase.start_date) else { continue };
            let mut items: Vec<_> = phase
                .items
                .into_iter()
                .map(|item| match item.price {
                    WirePrice::Id(id) | WirePrice::Whole { id } => (id, item.quantity),
                })
                .collect();
            items.sort();
            phases.push(PlannedPhase { start, items });
        }
        Ok(Some(Self { id: wire.id, present, phases }))
    }

    /// What it does after what it does now.
    pub(crate) fn following(&self) -> Option<&PlannedPhase> {
        self.phases.iter().find(|phase| phase.start >= self.present.1)
    }

    /// When that begins.
    pub(crate) const fn present_end(&self) -> DateTime<Utc> {
        self.present.1
    }
}

fn at(seconds: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(seconds, 0)
}
