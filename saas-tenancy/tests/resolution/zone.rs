//! What the world publishes, as a test says.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use saas_tenancy::domain::{DomainName, DomainProof, ProofError};

#[derive(Debug, Clone, Default)]
pub(crate) struct Zone(Arc<Mutex<Published>>);

#[derive(Debug, Default)]
struct Published {
    records: BTreeMap<String, Vec<String>>,
    is_down: bool,
    looks: usize,
}

impl Zone {
    /// Replaces what is published for a domain.
    pub(crate) fn publish(&self, domain: &DomainName, values: &[&str]) {
        let values = values.iter().map(ToString::to_string).collect();
        self.0.lock().unwrap().records.insert(domain.challenge(), values);
    }

    pub(crate) fn set_down(&self, is_down: bool) {
        self.0.lock().unwrap().is_down = is_down;
    }

    pub(crate) fn looks(&self) -> usize {
        self.0.lock().unwrap().looks
    }
}

#[async_trait]
impl DomainProof for Zone {
    async fn published(&self, domain: &DomainName) -> Result<Vec<String>, ProofError> {
        let mut zone = self.0.lock().unwrap();
        zone.looks += 1;
        if zone.is_down {
            return Err(ProofError::new("no server answers"));
        }
        Ok(zone.records.get(&domain.challenge()).cloned().unwrap_or_default())
    }
}
