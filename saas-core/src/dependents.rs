//! The port through which a crate or the application says that a tenant cannot go yet.

use std::fmt;

use async_trait::async_trait;
use serde::Serialize;

use crate::{CoreError, SystemTx, TenantId};

/// Something outside a tenant's own rows that still depends on the tenant, such as a subscription that is paid for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dependent {
    /// What: `a live subscription (sub_123)`.
    pub what: String,
    /// What to do first: `cancel it in Stripe and wait for the event`.
    pub remedy: String,
}

impl fmt::Display for Dependent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

/// Finds what forbids to erase a tenant.
///
/// # Contract
/// - *Complete*: an empty answer says that, as far as the implementation can know, nothing depends on the tenant.
/// - *Looks only*: runs in the transaction that begins the erasure, and changes nothing.
#[async_trait]
pub trait Dependents: fmt::Debug + Send + Sync + 'static {
    /// What depends on the tenant, at most a handful for a person to read.
    async fn find(&self, tx: &mut SystemTx, tenant: TenantId) -> Result<Vec<Dependent>, CoreError>;
}
