//! What channels of revisions tell the gate.

use std::time::Duration;

use saas_core::{Revision, TenantId, revision::Holder};

use super::count;
use crate::{ChannelWatch, Entitlements};

/// Not on [`Entitlements`] itself: what it hears is not for its callers to say.
#[derive(Debug)]
pub(crate) struct GateHolder {
    entitlements: Entitlements,
    channel: ChannelWatch,
}

impl GateHolder {
    /// For a channel that is shown under `name` while this lives.
    pub(crate) fn new(entitlements: Entitlements, name: &'static str) -> Self {
        let channel = entitlements.watch_channel(name);
        Self { entitlements, channel }
    }
}

impl Holder for GateHolder {
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
