//! The writer's side of the gate: what was heard, what is being loaded, and when published answers end.
//!
//! Everything here is behind one lock that is held for a few map operations and never across an await.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{Revision, TenantId};

use super::{
    sync::{Ordering, watch},
    table::{NO_TIME, Pen, Table},
};
use crate::snapshot::{Origin, Snapshot};

/// Reads that show less than was announced before the source is believed instead: with the pauses between them, 63
/// milliseconds for a change to become visible.
const PATIENCE: u32 = 6;

/// How a load ended, for everyone who waits for it: a snapshot, or nothing.
pub(super) type Landed = Option<Result<Arc<Snapshot>, LoadFailed>>;

/// The source could not be read. It was logged where it happened.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoadFailed;

/// A load under way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) id: u64,
    /// What had been heard as its last read began, or as it was announced: see [`Shelf::mark`].
    pub(super) began: (u64, u64),
    pub(super) landed: watch::Receiver<Landed>,
}

/// What was heard about a tenant.
#[derive(Debug, Clone, Copy)]
struct Floor {
    /// The highest revision that was announced and has not been found not to exist.
    revision: Revision,
    heard_at: DateTime<Utc>,
    /// The last announcement that could be of a state that is not held. Repeats are none, so that nobody can keep reads
    /// from being accepted by repeating one number.
    news: u64,
}

/// What came of a load that was accepted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Published {
    /// A revision was announced that the source does not have.
    pub(super) unfounded: bool,
    /// Another tenant had to give way.
    pub(super) evicts: bool,
}

#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) pen: Pen,
    pub(super) time: Coarse,
    /// Counts flushes. A load that began in another epoch is not accepted.
    pub(super) epoch: u64,
    /// Counts announcements, so that a load knows which of them it began after.
    pub(super) news: u64,
    pub(super) flights: HashMap<TenantId, Flight>,
    pub(super) next_flight: u64,
    floors: HashMap<TenantId, Floor>,
    max_floors: usize,
    floor_life: TimeDelta,
}

impl Shelf {
    /// `floor_life` must be longer than any load and than the staleness bound: a load that began before an announcement
    /// has ended by then.
    pub(super) fn new(pen: Pen, time: Coarse, max_floors: usize, floor_life: TimeDelta) -> Self {
        Self {
            pen,
            time,
            epoch: 0,
            news: 0,
            flights: HashMap::new(),
            next_flight: 0,
            floors: HashMap::new(),
            max_floors,
            floor_life,
        }
    }

    /// Takes note that `revision` is committed: nothing older is accepted any more, whether or not the tenant is held,
    /// unless the source has no such revision.
    pub(super) fn hear(&mut self, table: &Table, tenant: TenantId, revision: Revision, now: DateTime<Utc>) {
        if self.floors.len() >= self.max_floors && !self.floors.contains_key(&tenant) {
            self.forget_floors(now);
            if self.floors.len() >= self.max_floors {
                // Too much news to remember: distrust everything instead, which needs no memory.
                self.floors.clear();
                self.distrust_all(table);
            }
        }
        self.news += 1;
        let slot = table.find(tenant);
        let held = slot.and_then(|slot| table.held(slot)).map(|held| held.facts.revision);
        let floor = self.floors.entry(tenant).or_insert(Floor { revision, heard_at: now, news: self.news });
        if revision > floor.revision {
            *floor = Floor { revision, heard_at: now, news: self.news };
        } else if revision < floor.revision && held.is_none_or(|held| held < revision) {
            // Below a number that may turn out not to exist, this one can be the truth.
            *floor = Floor { heard_at: now, news: self.news, ..*floor };
        }
        if let Some(slot) = slot.filter(|_| held.is_some_and(|held| held < revision)) {
            table.expire(&mut self.pen, slot);
        }
    }

    /// What was heard until now, for a load that begins and one that failed: the flush count and the count of
    /// announcements.
    pub(super) const fn mark(&self) -> (u64, u64) {
        (self.epoch, self.news)
    }

    /// Publishes what was loaded, unless something newer was heard; then `None`, and it has to be read again.
    /// `overtaken`: how many reads of this load were thrown away before.
    pub(super) fn land(&mut self, table: &Table, loaded: &Arc<Snapshot>, overtaken: u32) -> Option<Published> {
        let held = table.find(loaded.tenant).and_then(|slot| table.held(slot));
        if !self.accepts(loaded, held.as_deref(), overtaken) {
            return None;
        }
        let unfounded = self.correct_floor(loaded);
        let evicts = self.publish(table, Arc::clone(loaded));
        Some(Published { unfounded, evicts })
    }

    /// Whether a snapshot that was just loaded, after `overtaken` reads that were not accepted, may be shown in the place
    /// of the one that is held.
    ///
    /// Anybody with a session can announce any number, and a transaction that announced one may roll back. So a number
    /// delays an answer and never denies it: a read that began after the last announcement has the last word.
    fn accepts(&self, loaded: &Snapshot, held: Option<&Snapshot>, overtaken: u32) -> bool {
        let regresses = |held: &Snapshot| {
            let soon = loaded.life.read_at - held.life.read_at < self.floor_life;
            loaded.facts.revision < held.facts.revision && soon && loaded.origin == Origin::Loaded
        };
        let reaches = self.reaches_floor(loaded) || overtaken >= PATIENCE && self.began_after_news(loaded);
        loaded.life.epoch == self.epoch && reaches && !held.is_some_and(regresses)
    }

    /// Lowers the floor to an accepted snapshot below it: what was announced does not exist. Returns whether it was so.
    fn correct_floor(&mut self, accepted: &Snapshot) -> bool {
        if self.reaches_floor(accepted) {
            return false;
        }
        // Else the next true revision, being lower, would not be heard.
        let floor = self.floors.get_mut(&accepted.tenant);
        floor.map(|floor| floor.revision = accepted.facts.revision).is_some()
    }

    /// Whether a held snapshot may still be shown.
    pub(super) fn is_current(&self, held: &Snapshot, now: DateTime<Utc>) -> bool {
        let life = held.life;
        life.epoch == self.epoch && life.read_at <= now && now < life.fresh_until && self.reaches_floor(held)
    }

    /// Whether a snapshot is as new as what was heard about its tenant.
    fn reaches_floor(&self, snapshot: &Snapshot) -> bool {
        let Some(floor) = self.floors.get(&snapshot.tenant) else { return true };
        match snapshot.origin {
            // No row, read after the announcement: the tenant was erased.
            Origin::UnknownTenant => self.began_after_news(snapshot),
            Origin::Loaded | Origin::LastKnown { .. } | Origin::FailPolicy => snapshot.facts.revision >= floor.revision,
        }
    }

    /// Whether the read began after the last announcement about its tenant. A notification arrives once its commit is
    /// visible, so such a read has seen whatever was announced.
    fn began_after_news(&self, snapshot: &Snapshot) -> bool {
        self.floors.get(&snapshot.tenant).is_none_or(|floor| snapshot.life.news >= floor.news)
    }

    /// Whether anything was heard about the tenant after a flush count and a count of announcements.
    pub(super) fn has_news_since(&self, tenant: TenantId, (epoch, news): (u64, u64)) -> bool {
        epoch != self.epoch || self.floors.get(&tenant).is_some_and(|floor| floor.news > news)
    }

    /// Makes every published answer end and every load under way start again. What is held stays as last known state.
    pub(super) fn distrust_all(&mut self, table: &Table) {
        self.epoch += 1;
        self.time.leap(table);
    }

    /// Only when there is no more room: an old floor costs memory and is otherwise harmless, since what is stored has passed
    /// it long ago.
    fn forget_floors(&mut self, now: DateTime<Utc>) {
        let life = self.floor_life;
        self.floors.retain(|_, floor| now - floor.heard_at < life);
    }

    /// Publishes a snapshot until its refresh, or for as long as it holds as it is, whichever is first.
    pub(super) fn publish(&mut self, table: &Table, snapshot: Arc<Snapshot>) -> bool {
        let life = snapshot.life.refresh_from;
        let end = snapshot.holds_until().map_or(life, |end| end.min(life));
        table.publish(&mut self.pen, snapshot, self.time.ticks(end))
    }
}

/// The gate's own time: milliseconds since the gate was made, which [`leap`](Self::leap) past every deadline to flush.
#[derive(Debug)]
pub(super) struct Coarse {
    base: DateTime<Utc>,
    leaps: u64,
    /// Longer than any published answer lives, in milliseconds.
    longest: u64,
    /// The latest time that was shown, also while the clock is stopped.
    last: u64,
    running: bool,
}

impl Coarse {
    pub(super) fn new(base: DateTime<Utc>, longest: TimeDelta) -> Self {
        let longest = u64::try_from(longest.num_milliseconds()).unwrap_or(0).saturating_add(2);
        Self { base: before(base), leaps: 1, longest, last: 0, running: false }
    }

    /// An instant in ticks, rounded down.
    pub(super) fn ticks(&self, at: DateTime<Utc>) -> u64 {
        u64::try_from((at - self.base).num_milliseconds()).unwrap_or(0).saturating_add(self.leaps)
    }

    /// Moves the shown time to `now`. `false` when the clock went back.
    #[must_use]
    pub(super) fn show(&mut self, table: &Table, now: DateTime<Utc>) -> bool {
        let ticks = self.ticks(now);
        if ticks < self.last {
            return false;
        }
        self.running = true;
        self.last = ticks;
        table.now.store(ticks, Ordering::Relaxed);
        true
    }

    /// Starts again from a clock that went back, with every deadline passed.
    pub(super) fn restart(&mut self, table: &Table, now: DateTime<Utc>) {
        self.base = before(now);
        self.leaps = self.last.saturating_add(self.longest);
        self.running = true;
        self.last = self.ticks(now);
        table.now.store(self.last, Ordering::Relaxed);
    }

    /// How long ago the clock was moved, in whole milliseconds; `None` while it is stopped.
    pub(super) fn behind(&self, now: DateTime<Utc>) -> Option<Duration> {
        self.running.then(|| Duration::from_millis(self.ticks(now).saturating_sub(self.last)))
    }

    pub(super) fn stop(&mut self, table: &Table) {
        self.running = false;
        table.now.store(NO_TIME, Ordering::Relaxed);
    }

    fn leap(&mut self, table: &Table) {
        self.leaps = self.leaps.saturating_add(self.longest);
        self.last = self.last.saturating_add(self.longest);
        if self.running {
            table.now.store(self.last, Ordering::Relaxed);
        }
    }
}

/// Where ticks begin: some time before the present, so that a clock that goes back a little still has ticks to show.
fn before(now: DateTime<Utc>) -> DateTime<Utc> {
    now - TimeDelta::days(1)
}
