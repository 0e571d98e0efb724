//! What a process remembers about where tenants live: bounded, for a while, and never older than what it has heard.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use saas_core::TenantId;
use tokio::time::Instant;

use super::Placement;

/// Two generations of entries: what is asked for moves to the young one, and when that is full, the old one is forgotten.
#[derive(Debug)]
pub(super) struct Cache {
    half: usize,
    ttl: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    young: HashMap<TenantId, Entry>,
    old: HashMap<TenantId, Entry>,
    /// Reads under way; `true` when something was heard meanwhile and the answer must not be kept.
    reading: HashMap<TenantId, (usize, bool)>,
}

#[derive(Debug, Clone)]
struct Entry {
    placement: Arc<Placement>,
    read_at: Instant,
}

/// A read under way.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    cache: &'a Cache,
    tenant: TenantId,
    began: Instant,
}

impl Cache {
    /// Room for about `capacity` tenants, each believed for `ttl`.
    pub(super) fn new(capacity: usize, ttl: Duration) -> Self {
        Self { half: (capacity / 2).max(1), ttl, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, tenant: TenantId) -> Option<Arc<Placement>> {
        let mut state = self.state();
        if let Some(entry) = state.old.remove(&tenant) {
            self.insert(&mut state, tenant, entry);
        }
        let entry = state.young.get(&tenant)?;
        if entry.read_at.elapsed() >= self.ttl {
            state.young.remove(&tenant);
            return None;
        }
        Some(Arc::clone(&entry.placement))
    }

    fn insert(&self, state: &mut State, tenant: TenantId, entry: Entry) {
        if state.young.len() >= self.half && !state.young.contains_key(&tenant) {
            state.old = std::mem::take(&mut state.young);
        }
        state.old.remove(&tenant);
        state.young.insert(tenant, entry);
    }

    /// Announces a read. What is heard from now on makes its answer too old to keep.
    pub(super) fn begin(&self, tenant: TenantId) -> Reading<'_> {
        self.state().reading.entry(tenant).or_insert((0, false)).0 += 1;
        Reading { cache: self, tenant, began: Instant::now() }
    }

    /// Forgets a tenant.
    pub(super) fn forget(&self, tenant: TenantId) {
        let mut state = self.state();
        state.young.remove(&tenant);
        state.old.remove(&tenant);
        if let Some((_, heard)) = state.reading.get_mut(&tenant) {
            *heard = true;
        }
    }

    /// Forgets everything.
    pub(super) fn forget_all(&self) {
        let mut state = self.state();
        state.young.clear();
        state.old.clear();
        for (_, heard) in state.reading.values_mut() {
            *heard = true;
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        let state = self.state();
        state.young.len() + state.old.len()
    }
}

impl Reading<'_> {
    /// Keeps the answer, unless something was heard since the read began.
    pub(super) fn keep(self, placement: Arc<Placement>) {
        let mut state = self.cache.state();
        if state.reading.get(&self.tenant).is_some_and(|(_, heard)| !heard) {
            self.cache.insert(&mut state, self.tenant, Entry { placement, read_at: self.began });
        }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut state = self.cache.state();
        if let Some((readers, _)) = state.reading.get_mut(&self.tenant) {
            *readers -= 1;
            if *readers == 0 {
                state.reading.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use saas_core::SystemClock;

    use super::*;

    fn tenants<const N: usize>() -> [TenantId; N] {
        std::array::from_fn(|_| TenantId::mint(&SystemClock))
    }

    fn keep(cache: &Cache, tenant: TenantId) {
        cache.begin(tenant).keep(Arc::new(Placement::implicit(tenant, None)));
    }

    #[test]
    fn what_is_heard_during_a_read_makes_its_answer_too_old() {
        let cache = Cache::new(10, Duration::from_secs(60));
        let [a, b] = tenants();
        let (stale, other) = (cache.begin(a), cache.begin(b));
        cache.forget(a);
        stale.keep(Arc::new(Placement::implicit(a, None)));
        other.keep(Arc::new(Placement::implicit(b, None)));
        assert!(cache.find(a).is_none() && cache.find(b).is_some());
        // A read that begins afterwards is believed.
        keep(&cache, a);
        assert!(cache.find(a).is_some());
        cache.forget_all();
        assert_eq!(cache.len(), 0);
        assert!(cache.state().reading.is_empty());
    }

    #[test]
    fn it_never_grows_beyond_its_capacity_and_keeps_what_is_asked_for() {
        let cache = Cache::new(10, Duration::from_secs(60));
        let all: [TenantId; 50] = tenants();
        for tenant in all {
            keep(&cache, tenant);
            cache.find(all[0]);
            assert!(cache.len() <= 10);
        }
        assert!(cache.find(all[0]).is_some() && cache.find(all[1]).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn it_believes_nothing_longer_than_its_ttl() {
        let cache = Cache::new(10, Duration::from_secs(60));
        let [a] = tenants();
        keep(&cache, a);
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(cache.find(a).is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(cache.find(a).is_none());
    }
}
