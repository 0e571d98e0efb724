//! The cells of all tenants, and how a thread finds one without a word to other threads.
//!
//! A map that anybody has may not change: a new tenant copies one of [`SHARDS`] maps. Each thread keeps the maps that it saw
//! last, so that it looks whether they are still the present ones and writes nothing that is shared. Each that it keeps lives until
//! it looks there again, uses nothing but other leases, or ends.

use std::{cell::RefCell, ops::Deref, sync::Arc};

use arc_swap::{ArcSwap, cache::Cache};
use hashbrown::HashMap;
use saas_core::TenantId;

use super::cell::Cells;

/// Each new tenant copies one of so many maps.
pub(super) const SHARDS: usize = 64;

/// A thread that uses several leases by turns keeps the maps of one. After so many uses of others alone it turns to those.
const TURN_AFTER: u8 = 32;

/// By [`number`].
pub(super) type Map = HashMap<u128, Cells, foldhash::fast::RandomState>;

/// A clone is another handle.
#[derive(Debug, Clone)]
pub(super) struct Shards(Arc<[ArcSwap<Map>; SHARDS]>);

/// One of them.
struct Shard {
    shards: Shards,
    at: usize,
}

impl Deref for Shard {
    type Target = ArcSwap<Map>;

    fn deref(&self) -> &ArcSwap<Map> {
        &self.shards.0[self.at]
    }
}

/// What a thread saw last, of the leases that it uses.
struct Seen {
    shards: Option<Shards>,
    /// Uses of others since the last use of these.
    others: u8,
    maps: [Option<Cache<Shard, Arc<Map>>>; SHARDS],
}

thread_local! {
    static SEEN: RefCell<Seen> = const { RefCell::new(Seen { shards: None, others: 0, maps: [const { None }; SHARDS] }) };
}

impl Seen {
    #[inline]
    fn map(&mut self, shards: &Shards, at: usize) -> Option<&Map> {
        if self.shards.as_ref().is_some_and(|seen| Arc::ptr_eq(&seen.0, &shards.0)) {
            self.others = 0;
        } else if !self.turns_to(shards) {
            return None;
        }
        Some(self.maps[at].get_or_insert_with(|| Cache::new(Shard { shards: shards.clone(), at })).load())
    }

    #[cold]
    #[inline(never)]
    fn turns_to(&mut self, shards: &Shards) -> bool {
        self.others += 1;
        if self.shards.is_some() && self.others < TURN_AFTER {
            return false;
        }
        self.maps.fill_with(|| None);
        (self.shards, self.others) = (Some(shards.clone()), 0);
        true
    }
}

/// A tenant's id as a number, hashed in one step; in whatever order this machine has bytes, since it stays here.
pub(super) fn number(tenant: TenantId) -> u128 {
    u128::from_ne_bytes(tenant.as_uuid().into_bytes())
}

fn place(tenant: TenantId) -> usize {
    // The last byte of an id is random.
    let [.., last] = *tenant.as_uuid().as_bytes();
    usize::from(last) % SHARDS
}

impl Shards {
    pub(super) fn new() -> Self {
        Self(Arc::new(std::array::from_fn(|_| ArcSwap::from_pointee(Map::default()))))
    }

    /// Where a tenant is.
    pub(super) fn of(&self, tenant: TenantId) -> &ArcSwap<Map> {
        &self.0[place(tenant)]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &ArcSwap<Map>> {
        self.0.iter()
    }

    /// Looks up a tenant.
    #[inline]
    pub(super) fn look<T>(&self, tenant: TenantId, look: impl Fn(&Cells) -> T) -> Option<T> {
        let (at, number) = (place(tenant), number(tenant));
        let seen = SEEN.try_with(|seen| {
            let mut seen = seen.try_borrow_mut().ok()?;
            Some(seen.map(self, at)?.get(&number).map(&look))
        });
        match seen {
            Ok(Some(found)) => found,
            // The thread keeps the maps of others, `look` has come back here, or the thread ends.
            Ok(None) | Err(_) => self.0[at].load().get(&number).map(look),
        }
    }
}

#[cfg(test)]
mod tests {
    use saas_core::{Actor, MeterKey, RequestContext, SystemClock};

    use super::*;
    use crate::lease::cell::Cell;

    /// Adds a tenant as a use of another thread does.
    fn add(shards: &Shards, tenant: TenantId) {
        let ctx = RequestContext::new(tenant, Actor::system("test"), &SystemClock);
        let cell = Cell::new(ctx, MeterKey::from_static("calls"), 1, u64::MAX, 1);
        let shards = shards.clone();
        let adding = std::thread::spawn(move || {
            let mut map = Map::clone(&shards.of(tenant).load());
            map.insert(number(tenant), Cells::new(Arc::new(cell)));
            shards.of(tenant).store(Arc::new(map));
        });
        adding.join().unwrap();
    }

    fn knows(shards: &Shards, tenant: TenantId) -> bool {
        shards.look(tenant, |_| ()).is_some()
    }

    #[test]
    fn a_thread_sees_what_another_has_added_and_removed() {
        let (shards, tenant) = (Shards::new(), TenantId::mint(&SystemClock));
        assert!(!knows(&shards, tenant));
        add(&shards, tenant);
        assert!(knows(&shards, tenant));
        shards.of(tenant).store(Arc::default());
        assert!(!knows(&shards, tenant));
    }

    #[test]
    fn leases_that_a_thread_uses_by_turns_are_not_confused() {
        let [one, other] = [(); 2].map(|()| Shards::new());
        let tenant = TenantId::mint(&SystemClock);
        add(&one, tenant);
        for _ in 0..3 {
            assert!(knows(&one, tenant) && !knows(&other, tenant));
        }
        for _ in 0..=TURN_AFTER {
            assert!(!knows(&other, tenant));
        }
        assert!(knows(&one, tenant));
        assert_eq!(one.look(tenant, |_| knows(&other, tenant) || knows(&one, tenant)), Some(true), "while it looks");
    }

    #[test]
    fn what_a_thread_has_kept_ends_with_its_turn_to_others() {
        let (shards, tenant) = (Shards::new(), TenantId::mint(&SystemClock));
        add(&shards, tenant);
        assert!(knows(&shards, tenant));
        let kept = Arc::downgrade(&shards.0);
        drop(shards);
        let next = Shards::new();
        for _ in 1..TURN_AFTER {
            assert!(kept.upgrade().is_some());
            assert!(!knows(&next, tenant));
        }
        assert!(!knows(&next, tenant));
        assert!(kept.upgrade().is_none());
    }
}
