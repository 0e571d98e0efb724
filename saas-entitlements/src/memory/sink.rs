//! A product analytics service that remembers what it was told.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use saas_core::UsageEventId;

use crate::{
    analytics::{AnalyticsSink, ProductEvent, SinkError},
    usage::Delivery,
};

/// Takes everything, each event once.
#[derive(Debug, Default)]
pub struct InMemorySink {
    taken: Mutex<BTreeMap<UsageEventId, ProductEvent>>,
}

impl InMemorySink {
    /// An empty sink.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What it was told, each event once, in the order in which the uses were recorded.
    #[must_use]
    pub fn events(&self) -> Vec<ProductEvent> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[async_trait]
impl AnalyticsSink for InMemorySink {
    async fn take(&self, events: &[ProductEvent]) -> Result<Vec<Delivery>, SinkError> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            taken.entry(event.id).or_insert_with(|| event.clone());
        }
        Ok(vec![Delivery::Taken; events.len()])
    }
}
