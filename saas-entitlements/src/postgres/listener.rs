//! Lets the gate hear of new revisions.

use std::{sync::Arc, time::Duration};

use saas_core::{
    Revision, TenantId,
    revision::{Holder, Listener},
};
use sqlx::postgres::PgConnectOptions;

use crate::{ChannelWatch, Entitlements, gate::count};

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
        let channel = entitlements.watch_channel("notify");
        Self { _listener: Listener::start(Arc::new(Gate { entitlements, channel }), options) }
    }
}

/// Not on [`Entitlements`] itself: what it hears is not for its callers to say.
#[derive(Debug)]
struct Gate {
    entitlements: Entitlements,
    channel: ChannelWatch,
}

impl Holder for Gate {
    fn hear(&self, tenant: TenantId, revision: Revision) {
        self.entitlements.hear(tenant, revision);
        self.channel.heard();
    }

    fn flush(&self) {
        self.entitlements.flush();
    }

    fn echoed(&self, after: Duration) {
        self.channel.heard_after(after);
    }

    fn count_unreadable(&self) {
        count(&self.entitlements.core.counters.unreadable_announcements);
    }
}
