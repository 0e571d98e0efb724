//! What the table and the shelf are made of. The model check puts instrumented parts in the place of these.

pub(super) use std::sync::atomic::{AtomicU64, Ordering, fence};

pub(super) use arc_swap::ArcSwapOption;

/// How many buckets from its hash a tenant may lie.
pub(super) const WINDOW: usize = 16;
