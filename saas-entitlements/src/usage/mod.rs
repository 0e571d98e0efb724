//! Usage events as data: how long they stay, what they add up to, and who else learns of them.
//!
//! The events are the truth; counters, roll-ups and exports follow from them. [`UsagePipeline`] is what the application
//! schedules, as the system role: [`maintain`](UsagePipeline::maintain) once a day,
//! [`sweep`](UsagePipeline::sweep) and [`roll_up`](UsagePipeline::roll_up) every minute, [`export`](UsagePipeline::export) as often as its receiver likes.
//! Each can be stopped and started again at any point, and run in several processes at once.
//!
//! # How all events are read without missing one
//! The instant at which an event was recorded does not say when its transaction commits, so a reader that remembered the
//! last instant it saw would miss what commits late. Events carry the number of their transaction instead, and readers go
//! only up to the oldest transaction that still runs: below it, nothing can appear any more. The price is that one
//! transaction that stays open, in any database of the server, holds roll-ups and exports back until it ends. And the
//! numbers are of one server: after a restore into another one, readers refuse until
//! [`adopt_positions`](UsagePipeline::adopt_positions) was called.

mod export;
mod maintain;
mod position;
mod rebuild;
mod record;
mod roll_up;
mod series;
mod sweep;
mod writer;

use std::sync::Arc;

use chrono::{DateTime, Utc};
pub use export::{Delivery, ExportReport, UsageBatch, UsageExport, UsageKind, UsageRow};
pub use maintain::{HeldPart, Maintained, Retention};
pub use rebuild::{CounterDrift, DriftCursor, DriftReport, Rebuild};
pub use record::UsageRecord;
pub use roll_up::RolledUp;
use saas_core::{Actor, SharedClock, SystemPool, SystemTx};
pub use series::{Bucket, SeriesPoint, SeriesQuery, series_in};
pub use sweep::Swept;
pub use writer::{Recorded, Ticket, UsageWriter, WriterOptions, record_many};

use crate::{
    EntitlementsError,
    clock::{HeldClock, MAX_SKEW},
};

const ACTOR: Actor = Actor::system("usage");

/// Keeps, sums up and hands on the usage events of one database.
#[derive(Debug, Clone)]
pub struct UsagePipeline {
    system: SystemPool,
    clock: Arc<HeldClock>,
    retention: Retention,
}

impl UsagePipeline {
    /// A pipeline over the database of the pool.
    #[must_use]
    pub fn new(system: SystemPool, clock: SharedClock) -> Self {
        let clock = Arc::new(HeldClock::new(clock, MAX_SKEW));
        Self { system, clock, retention: Retention::default() }
    }

    /// Keeps events, and what makes a repeat recognisable, for as long as this says.
    #[must_use]
    pub fn with_retention(self, retention: Retention) -> Self {
        Self { retention, ..self }
    }

    /// The time to decide by: a clock that is ahead must not drop what has to stay, nor close what is open.
    async fn now(&self) -> Result<DateTime<Utc>, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "compare the clocks").await?;
        let now = self.clock.now_in(&mut tx).await?;
        tx.rollback().await?;
        Ok(now)
    }
}
