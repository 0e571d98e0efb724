//! Lets the gate hear of new revisions.

use std::sync::Arc;

use saas_core::revision::Listener;
use sqlx::postgres::PgConnectOptions;

use crate::{Entitlements, gate::GateHolder};

/// Listens in a task until it is dropped.
#[derive(Debug)]
#[must_use = "the listener stops when it is dropped"]
pub struct RevisionListener {
    _listener: Listener,
}

impl RevisionListener {
    /// Starts to listen, on a connection of its own that is opened with `options` and kept.
    ///
    /// Any login of the database will do, and it must reach the server itself: a transaction pooler in between drops
    /// notifications. Returns at once; until the first connection stands, the gate's TTL is the bound.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(entitlements: Entitlements, options: PgConnectOptions) -> Self {
        Self { _listener: Listener::start(Arc::new(GateHolder::new(entitlements, "notify")), options) }
    }
}
