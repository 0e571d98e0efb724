//! A use that was admitted and is not settled.

use chrono::{DateTime, Utc};
use saas_core::{MeterKey, TenantContext, UsageEventId};
use serde::{Deserialize, Serialize};

use crate::Draw;

/// What is written of it, and what Redis keeps of it meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Use {
    pub(super) id: UsageEventId,
    meter: MeterKey,
    key: String,
    amount: u64,
    pub(super) units: u64,
    at: DateTime<Utc>,
    member: Option<Box<str>>,
    actor: String,
}

impl Use {
    pub(super) fn new(ctx: &dyn TenantContext, draw: &Draw, now: DateTime<Utc>) -> Self {
        Self {
            id: UsageEventId::mint_at(now),
            meter: draw.meter.clone(),
            key: draw.key.to_string(),
            amount: draw.amount,
            units: draw.units,
            at: draw.at,
            member: draw.member.clone(),
            actor: ctx.actor().to_string(),
        }
    }

    pub(super) fn to_json(&self) -> String {
        // Numbers and texts: it cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// `None` for what another version wrote.
    pub(super) fn from_json(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}
