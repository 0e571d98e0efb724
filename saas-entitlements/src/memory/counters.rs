//! Counters in memory.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{CoreError, IdempotencyKey, Limit, MeterKey, TenantContext, TenantId, plan::Window};

use crate::{CounterStore, Draw, Drawn, EntitlementsError, Period};

/// Counters in memory. It knows no revisions, so a draw is never outdated.
#[derive(Debug, Default)]
pub struct MemoryCounters(Mutex<Books>);

#[derive(Debug, Default)]
struct Books {
    counted: HashMap<(TenantId, MeterKey, IdempotencyKey), u64>,
    windows: HashMap<(TenantId, MeterKey, Window, DateTime<Utc>), Counter>,
}

#[derive(Debug, Default)]
struct Counter {
    used: u64,
    announced: BTreeSet<(u64, u16)>,
}

impl MemoryCounters {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl CounterStore for MemoryCounters {
    async fn consume(
        &self,
        ctx: &dyn TenantContext,
        draw: &Draw,
        _: DateTime<Utc>,
    ) -> Result<Drawn, EntitlementsError> {
        let mut books = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (ctx.tenant(), draw.meter.clone(), draw.key.clone());
        match books.counted.get(&key) {
            Some(prior) if *prior == draw.amount => return Ok(Drawn::AlreadyCounted),
            Some(_) => return Err(CoreError::KeyReused { key: draw.key.to_string() }.into()),
            None => {}
        }
        let window = (ctx.tenant(), draw.counter.clone(), draw.window, draw.period.start);
        let counter = books.windows.entry(window).or_default();
        let before = counter.used;
        let Some(after) = before.checked_add(draw.units).filter(|after| *after <= draw.cap) else {
            return Ok(Drawn::Refused { used: before });
        };
        counter.used = after;
        let limit = match draw.limit {
            Limit::Unlimited => u64::MAX,
            Limit::Max(max) => max,
        };
        let first = |percent: &u16| counter.announced.insert((limit, *percent));
        let crossed = draw.reached(after).into_iter().filter(first).collect();
        books.counted.insert(key, draw.amount);
        Ok(Drawn::Counted { before, after, crossed })
    }

    async fn used(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        window: Window,
        period: Period,
    ) -> Result<u64, EntitlementsError> {
        let books = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(books.windows.get(&(ctx.tenant(), meter.clone(), window, period.start)).map_or(0, |counter| counter.used))
    }
}
