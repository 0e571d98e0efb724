//! What this process has seen at its door.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use serde::Serialize;

use crate::signature::SignatureError;

/// What this process has seen at its door since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DoorHealth {
    /// Deliveries that were rightly signed.
    pub signed: u64,
    /// Refused: no secret of ours has signed it. A few are noise from the internet; many are a wrong secret.
    pub unsigned: u64,
    /// Refused: rightly signed, and more than 300 seconds ago or ahead.
    pub stale: u64,
    /// How many seconds before its arrival the last rightly signed delivery was signed, by this machine's clock. Beyond 30
    /// either way the clock is off.
    pub age_seconds: i64,
}

/// The same, counting.
#[derive(Debug, Default)]
pub(crate) struct Door {
    signed: AtomicU64,
    unsigned: AtomicU64,
    stale: AtomicU64,
    age_seconds: AtomicI64,
}

impl Door {
    /// Counts what a check has come to, and passes it on.
    pub(crate) fn saw(&self, checked: Result<i64, SignatureError>) -> Result<(), SignatureError> {
        let (count, age) = match checked {
            Ok(age_seconds) => (&self.signed, Some(age_seconds)),
            Err(SignatureError::Stale { age_seconds }) => (&self.stale, Some(age_seconds)),
            Err(SignatureError::Malformed | SignatureError::Mismatch) => (&self.unsigned, None),
        };
        count.fetch_add(1, Ordering::Relaxed);
        if let Some(age_seconds) = age {
            self.age_seconds.store(age_seconds, Ordering::Relaxed);
        }
        checked.map(drop)
    }

    pub(crate) fn health(&self) -> DoorHealth {
        DoorHealth {
            signed: self.signed.load(Ordering::Relaxed),
            unsigned: self.unsigned.load(Ordering::Relaxed),
            stale: self.stale.load(Ordering::Relaxed),
            age_seconds: self.age_seconds.load(Ordering::Relaxed),
        }
    }
}
