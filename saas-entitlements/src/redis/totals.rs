//! Running totals, and what is told of them.

macro_rules! totals {
    ($stats:ident; $($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Totals since the start.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
        #[non_exhaustive]
        pub struct $stats {
            $($(#[$doc])* pub $name: u64,)+
        }

        /// The running totals.
        #[derive(Debug, Default)]
        pub(super) struct Totals {
            $(pub(super) $name: std::sync::atomic::AtomicU64,)+
        }

        impl Totals {
            pub(super) fn read(&self) -> $stats {
                $stats { $($name: self.$name.load(std::sync::atomic::Ordering::Relaxed),)+ }
            }
        }
    };
}

pub(super) use totals;

use std::sync::atomic::{AtomicU64, Ordering};

/// Adds to a total.
pub(super) fn add(total: &AtomicU64, number: u64) {
    if number > 0 {
        total.fetch_add(number, Ordering::Relaxed);
    }
}
