//! A map that holds a bounded number of entries for a bounded time.

use std::{borrow::Borrow, collections::HashMap, hash::Hash};

use chrono::{DateTime, TimeDelta, Utc};

/// Two generations: when the young one is full it becomes the old one, and what was old is forgotten. An entry that is
/// read moves to the young one, so what is in use stays, at the cost of one look-up and without a list to keep.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    young: HashMap<K, Entry<V>>,
    old: HashMap<K, Entry<V>>,
    /// The most entries of one generation.
    half: usize,
    ttl: TimeDelta,
}

#[derive(Debug, Clone, Copy)]
struct Entry<V> {
    value: V,
    since: DateTime<Utc>,
}

impl<K: Hash + Eq, V: Copy> Cache<K, V> {
    /// A cache for at most `capacity` entries (two at least), each for less than `ttl`.
    pub(super) fn new(capacity: usize, ttl: TimeDelta) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: (capacity / 2).max(1), ttl }
    }

    /// The value, unless it is too old, or younger than now because the clock went back.
    pub(super) fn get<Q>(&mut self, key: &Q, now: DateTime<Utc>) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let ttl = self.ttl;
        let is_fresh = |entry: &Entry<V>| entry.since <= now && now - entry.since < ttl;
        if let Some(entry) = self.young.get(key) {
            return is_fresh(entry).then_some(entry.value);
        }
        let (key, entry) = self.old.remove_entry(key)?;
        is_fresh(&entry).then(|| {
            self.insert(key, entry);
            entry.value
        })
    }

    pub(super) fn put(&mut self, key: K, value: V, now: DateTime<Utc>) {
        self.old.remove(&key);
        self.insert(key, Entry { value, since: now });
    }

    fn insert(&mut self, key: K, entry: Entry<V>) {
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, entry);
    }

    /// Forgets the entries with values that do not pass.
    pub(super) fn retain(&mut self, keep: impl Fn(&V) -> bool) {
        self.young.retain(|_, entry| keep(&entry.value));
        self.old.retain(|_, entry| keep(&entry.value));
    }

    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
    }

    fn cache(capacity: usize) -> Cache<u32, u32> {
        Cache::new(capacity, TimeDelta::seconds(10))
    }

    #[test]
    fn an_entry_ends_with_its_time_and_reading_does_not_lengthen_it() {
        let mut cache = cache(4);
        cache.put(1, 10, at(0));
        assert_eq!(cache.get(&1, at(9)), Some(10));
        assert_eq!(cache.get(&1, at(10)), None);
        cache.put(2, 20, at(20));
        assert_eq!(cache.get(&2, at(19)), None, "the clock went back");
    }

    #[test]
    fn what_is_in_use_survives_a_flood_of_what_is_not() {
        let mut cache = cache(8);
        cache.put(0, 7, at(0));
        for key in 1..1_000 {
            cache.put(key, key, at(1));
            assert_eq!(cache.get(&0, at(2)), Some(7), "after {key}");
        }
        assert!(cache.len() <= 8);
        assert_eq!(cache.get(&1, at(2)), None);
    }

    #[test]
    fn entries_can_be_forgotten_by_value() {
        let mut cache = cache(4);
        for key in 0..4 {
            cache.put(key, key % 2, at(0));
        }
        cache.retain(|value| *value == 0);
        assert_eq!([0, 1, 2, 3].map(|key| cache.get(&key, at(0))), [Some(0), None, Some(0), None]);
        cache.clear();
        assert_eq!(cache.len(), 0);
    }

    proptest! {
        #[test]
        fn it_never_holds_more_than_its_bound_nor_anything_but_the_last_value(
            capacity in 2..9_usize, steps in vec((0..12_u32, 0..2_u32, any::<bool>()), 0..200),
        ) {
            let mut cache = cache(capacity);
            let mut model = HashMap::new();
            for (key, value, put) in steps {
                if put {
                    cache.put(key, value, at(0));
                    model.insert(key, value);
                    prop_assert_eq!(cache.get(&key, at(0)), Some(value));
                } else if let Some(found) = cache.get(&key, at(0)) {
                    prop_assert_eq!(Some(&found), model.get(&key));
                }
                prop_assert!(cache.len() <= capacity);
            }
        }
    }
}
