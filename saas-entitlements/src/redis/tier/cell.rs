//! What one process knows of one window of one tenant.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use chrono::{DateTime, Utc};
use saas_core::{Actor, LeaseToken, MeterKey, RequestContext, TenantId, plan::Window};
use tokio::sync::RwLock;

use super::{scripts::Names, uses::Use};

/// A window of a counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) tenant: TenantId,
    pub(super) counter: MeterKey,
    pub(super) window: Window,
    pub(super) start: DateTime<Utc>,
}

#[derive(Debug)]
pub(super) struct Cell {
    pub(super) place: Place,
    pub(super) names: Names,
    /// The tier's own: what it writes for uses of many requests.
    pub(super) ctx: RequestContext,
    /// Uses that were admitted here and are not settled: what Redis may forget.
    admitted: Mutex<VecDeque<(LeaseToken, Use)>>,
    /// Held to read while PostgreSQL decides uses by itself, to write while slices come and go.
    pub(super) turn: RwLock<Turn>,
}

/// What is known of slices.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// The slice that was last seen here, and when it was lent or settled.
    pub(super) slice: Option<(LeaseToken, Instant)>,
    /// What is to be given back.
    pub(super) owed: Vec<(LeaseToken, u64)>,
    /// Until when nothing is lent.
    pub(super) near_until: Option<Instant>,
    /// Ticks without anything to do.
    pub(super) idle: u32,
}

impl Cell {
    pub(super) fn new(place: Place, names: Names, now: DateTime<Utc>) -> Self {
        let ctx = RequestContext::new_at(place.tenant, Actor::system("saas.redis-tier"), now);
        Self { place, names, ctx, admitted: Mutex::default(), turn: RwLock::default() }
    }

    pub(super) fn admitted(&self) -> MutexGuard<'_, VecDeque<(LeaseToken, Use)>> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has had nothing to do for so many ticks.
    pub(super) fn is_forgettable(&self, ticks: u32) -> bool {
        let rests = self.turn.try_read().is_ok_and(|turn| turn.is_empty() && turn.idle >= ticks);
        rests && self.admitted().is_empty()
    }
}

impl Turn {
    pub(super) fn is_near(&self) -> bool {
        self.near_until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether nothing is to be done for it.
    pub(super) fn is_empty(&self) -> bool {
        self.slice.is_none() && self.owed.is_empty()
    }
}
