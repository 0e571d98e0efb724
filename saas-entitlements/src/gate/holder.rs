//! What channels of revisions tell the gate.

use saas_core::{Revision, TenantId, revision::Holder};

use super::count;
use crate::Entitlements;

/// Not on [`Entitlements`] itself: what it hears is not for its callers to say.
#[derive(Debug)]
pub(crate) struct GateHolder(pub(crate) Entitlements);

impl Holder for GateHolder {
    fn hear(&self, tenant: TenantId, revision: Revision) {
        self.0.hear(tenant, revision);
    }

    fn flush(&self) {
        self.0.flush();
    }

    fn count_unreadable(&self) {
        count(&self.0.core.counters.unreadable_announcements);
    }
}
