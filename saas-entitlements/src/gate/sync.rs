//! What the gate is made of. The model check puts instrumented parts in the place of these.

pub(super) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering, fence},
};

pub(super) use arc_swap::ArcSwapOption;
pub(super) use tokio::{
    runtime::Handle,
    sync::watch,
    time::{sleep, timeout},
};

/// How many buckets from its hash a tenant may lie.
pub(super) const WINDOW: usize = 16;
