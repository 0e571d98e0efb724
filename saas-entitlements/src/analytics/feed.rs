//! From the export of usage events to a sink.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{CoreError, SharedClock};
use uuid::Uuid;

use super::{AnalyticsSink, ProductEvent, SinkError};
use crate::{
    EntitlementsError,
    usage::{Delivery, UsageBatch, UsageExport, UsageKind, UsageRow},
};

/// Which texts under which members were recorded are ids that may leave the house. The others are left out, and their uses
/// are the tenant's alone: a member is whatever text the application recorded a use under, an e-mail address perhaps.
#[derive(Clone, Copy)]
pub enum MemberIds {
    /// UUIDs, such as those of [`UserId`](saas_core::UserId).
    Uuids,
    /// None: only tenants are known to the service.
    None,
    /// Those of which the function says so. It must accept no text that means something to others.
    Where(fn(&str) -> bool),
}

impl fmt::Debug for MemberIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uuids => "Uuids",
            Self::None => "None",
            Self::Where(_) => "Where(..)",
        })
    }
}

impl MemberIds {
    fn accept(self, member: &str) -> bool {
        match self {
            Self::Uuids => Uuid::try_parse(member).is_ok(),
            Self::None => false,
            Self::Where(accepts) => accepts(member),
        }
    }
}

/// A receiver of [`UsagePipeline::export`](crate::usage::UsagePipeline::export) that tells a sink of every use.
///
/// Corrections, and what was lost with a process, are not uses and are left out. While the sink asks for patience
/// (`Retry-After`), runs end at once without asking it.
#[derive(Debug)]
pub struct AnalyticsFeed {
    sink: Arc<dyn AnalyticsSink>,
    clock: SharedClock,
    members: MemberIds,
    /// Until when the sink wants to be left alone.
    not_before: Mutex<Option<DateTime<Utc>>>,
}

impl AnalyticsFeed {
    /// A feed for this sink; members that are UUIDs are named to it.
    #[must_use]
    pub fn new(sink: Arc<dyn AnalyticsSink>, clock: SharedClock) -> Self {
        Self { sink, clock, members: MemberIds::Uuids, not_before: Mutex::new(None) }
    }

    /// Names other members.
    #[must_use]
    pub fn with_members(self, members: MemberIds) -> Self {
        Self { members, ..self }
    }

    /// When to run again at the earliest; `None` when the sink has not asked for patience, or that is over.
    #[must_use]
    pub fn not_before(&self) -> Option<DateTime<Utc>> {
        let not_before = *self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        not_before.filter(|until| *until > self.clock.now())
    }

    fn product_event(&self, row: &UsageRow) -> Option<ProductEvent> {
        let is_use = match row.kind {
            UsageKind::Use => true,
            UsageKind::Correction | UsageKind::Stranded => false,
        };
        let amount = u64::try_from(row.amount).ok().filter(|_| is_use)?;
        let event = ProductEvent::new(row.id, row.tenant, row.meter.clone(), amount, row.at);
        Some(match row.member.as_deref().filter(|member| self.members.accept(member)) {
            Some(member) => event.with_member(member),
            None => event,
        })
    }

    fn failed(&self, error: SinkError) -> EntitlementsError {
        let core = match &error {
            SinkError::Busy { retry_after, .. } => {
                let until = retry_after.map(|wish| wish.from(self.clock.now()));
                *self.not_before.lock().unwrap_or_else(PoisonError::into_inner) = until;
                CoreError::Unavailable { cause: Box::new(error) }
            }
            SinkError::Misconfigured { .. } => CoreError::Misconfigured {
                what: error.to_string(),
                remedy: "correct its address or its key; the events wait".to_owned(),
            },
        };
        core.into()
    }
}

#[async_trait]
impl UsageExport for AnalyticsFeed {
    async fn deliver(&self, batch: &UsageBatch) -> Result<Vec<Delivery>, EntitlementsError> {
        if let Some(until) = self.not_before() {
            let why = format!("it asked for patience until {until}");
            return Err(CoreError::Unavailable { cause: why.into() }.into());
        }
        let events: Vec<Option<ProductEvent>> = batch.rows.iter().map(|row| self.product_event(row)).collect();
        let uses: Vec<ProductEvent> = events.iter().flatten().cloned().collect();
        if uses.is_empty() {
            return Ok(vec![Delivery::Taken; events.len()]);
        }
        let answers = self.sink.take(&uses).await.map_err(|error| self.failed(error))?;
        if answers.len() != uses.len() {
            let what = format!("{:?} answered {} of {} events", self.sink, answers.len(), uses.len());
            let remedy = "return one `Delivery` per event, in their order".to_owned();
            return Err(CoreError::Misconfigured { what, remedy }.into());
        }
        let mut answers = answers.into_iter();
        let answer = |event: &Option<ProductEvent>| match event {
            Some(_) => answers.next().unwrap_or(Delivery::Taken),
            None => Delivery::Taken,
        };
        Ok(events.iter().map(answer).collect())
    }
}
