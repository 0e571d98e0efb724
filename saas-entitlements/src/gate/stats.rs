//! What the gate counted, for metrics and alarms. Hits are not counted: a shared counter would cost more than a hit.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Totals since the gate was made.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
        #[non_exhaustive]
        pub struct GateStats {
            $($(#[$doc])* pub $name: u64,)+
        }

        /// The running totals.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)+
        }

        impl Counters {
            pub(crate) fn read(&self) -> GateStats {
                GateStats { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Questions that the published table could not answer by itself.
    misses,
    /// Times the source was asked.
    loads,
    /// Times the source failed, timed out or was too old.
    load_failures,
    /// Loads thrown away because something newer had been announced meanwhile.
    outdated_loads,
    /// Answers given from the last known state because the source could not be read. Alarm on a rise.
    last_known_answers,
    /// Answers given by fail policy. Alarm on a rise.
    fail_policy_answers,
    /// Questions about tenants that do not exist.
    unknown_tenants,
    /// Questions about features that the catalogue does not have: a defect of the caller. Alarm on a rise.
    unknown_features,
    /// Announcements heard.
    announcements,
    /// Announced revisions that the source turned out not to have: forged, or of a transaction that was rolled back.
    /// Alarm on a rise.
    unfounded_announcements,
    /// Messages on the revision channel that are no announcements, and were ignored. Alarm on a rise.
    unreadable_announcements,
    /// Times everything was distrusted: a listener was cut off, or the clock went back.
    flushes,
    /// Tenants that gave way to others. A steady rise asks for more capacity.
    evictions,
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
