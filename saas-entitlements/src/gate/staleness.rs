//! How old answers are and how well the gate hears of changes, as plain data for metrics and alarms.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};

/// Degraded answers are warned of this often at most.
const WARN_EVERY: TimeDelta = TimeDelta::minutes(1);

/// How stale the gate is now, and was within the last one to two minutes.
///
/// Plain numbers, to be read as often as metrics are collected; any number of readers see the same.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Staleness {
    /// How old the oldest state was that an answer rested on, of the last one to two minutes. More than the gate's
    /// [`ttl`](crate::GateOptions::with_ttl) is an outage.
    ///
    /// Questions that the published table answers by itself are not looked at: it shows nothing older than four fifths of
    /// the `ttl`.
    pub oldest_answer: Duration,
    /// How far the clock that the table is judged by is behind; `None` while it does not run, and every question takes the
    /// slow path. Time boundaries are met this late.
    pub clock_behind: Option<Duration>,
    /// How far the source's clock was ahead of the process' when it was last read, in milliseconds, as far as is certain:
    /// negative where the process' is ahead; `None` where they cannot be compared. Beyond
    /// [`max_skew`](crate::GateOptions::with_max_skew), the gate and the meters go by the source's.
    pub clock_skew_ms: Option<i64>,
    /// The ways by which changes are heard of. Without any, the `ttl` is the bound.
    pub channels: Vec<ChannelHealth>,
}

/// How well one channel of changes works.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct ChannelHealth {
    /// `notify` of a [`RevisionListener`](crate::RevisionListener), `poll` of a [`RevisionPoller`](crate::RevisionPoller),
    /// or the name given to [`Entitlements::watch_channel`](crate::Entitlements::watch_channel).
    pub channel: &'static str,
    /// For how long nothing was heard: no announcement, no sign of life, no answered poll.
    pub silent_for: Duration,
    /// The longest that a change took from its commit to here, at most for a poller, of what was measured in the last one
    /// to two minutes.
    pub worst_lag: Option<Duration>,
}

/// The largest of what was seen in the present minute and the one before it: unlike a maximum for all time it comes down
/// again, and unlike one that is reset by reading it can have several readers.
#[derive(Debug, Default)]
struct Peak {
    minute: i64,
    present: Option<Duration>,
    before: Option<Duration>,
}

impl Peak {
    fn note(&mut self, value: Duration, now: DateTime<Utc>) {
        self.turn(now);
        self.present = self.present.max(Some(value));
    }

    fn read(&mut self, now: DateTime<Utc>) -> Option<Duration> {
        self.turn(now);
        self.present.max(self.before)
    }

    fn turn(&mut self, now: DateTime<Utc>) {
        let minute = now.timestamp().div_euclid(60);
        if minute != self.minute {
            let present = self.present.take();
            self.before = present.filter(|_| minute == self.minute.saturating_add(1));
            self.minute = minute;
        }
    }
}

#[derive(Debug)]
struct Channel {
    id: u64,
    name: &'static str,
    heard_at: DateTime<Utc>,
    lag: Peak,
}

/// What has been noted.
#[derive(Debug, Default)]
struct Notes {
    ages: Peak,
    channels: Vec<Channel>,
    next_channel: u64,
    /// When degraded answers were last warned of, and how many there were since.
    warned: Option<(DateTime<Utc>, u64)>,
}

/// Keeps what [`Staleness`] says. Never touched by a hit.
#[derive(Debug, Default)]
pub(crate) struct Watch(Mutex<Notes>);

impl Watch {
    /// An answer rested on a state of this age.
    pub(super) fn answered(&self, read_at: DateTime<Utc>, now: DateTime<Utc>) {
        self.notes().ages.note(since(read_at, now), now);
    }

    /// An answer was degraded. Returns how many were since the last warning, when it is time for another.
    pub(super) fn degraded(&self, now: DateTime<Utc>) -> Option<u64> {
        let mut notes = self.notes();
        match &mut notes.warned {
            Some((at, more)) if (TimeDelta::zero()..WARN_EVERY).contains(&(now - *at)) => {
                *more += 1;
                None
            }
            warned => {
                let more = warned.map_or(0, |(_, more)| more);
                *warned = Some((now, 0));
                Some(more + 1)
            }
        }
    }

    pub(crate) fn open(&self, name: &'static str, now: DateTime<Utc>) -> u64 {
        let mut notes = self.notes();
        let id = notes.next_channel;
        notes.next_channel += 1;
        notes.channels.push(Channel { id, name, heard_at: now, lag: Peak::default() });
        id
    }

    pub(crate) fn heard(&self, id: u64, lag: Option<Duration>, now: DateTime<Utc>) {
        let mut notes = self.notes();
        let Some(channel) = notes.channels.iter_mut().find(|channel| channel.id == id) else { return };
        channel.heard_at = now;
        if let Some(lag) = lag {
            channel.lag.note(lag, now);
        }
    }

    pub(crate) fn close(&self, id: u64) {
        self.notes().channels.retain(|channel| channel.id != id);
    }

    /// `clock_behind` and the skew are the caller's to know.
    pub(crate) fn read(&self, clock_behind: Option<Duration>, now: DateTime<Utc>) -> Staleness {
        let mut notes = self.notes();
        let health = |channel: &mut Channel| ChannelHealth {
            channel: channel.name,
            silent_for: since(channel.heard_at, now),
            worst_lag: channel.lag.read(now),
        };
        let channels = notes.channels.iter_mut().map(health).collect();
        Staleness {
            oldest_answer: notes.ages.read(now).unwrap_or_default(),
            clock_behind,
            clock_skew_ms: None,
            channels,
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        // Figures only.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing for a clock that went back.
fn since(from: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (now - from).to_std().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_shown_for_a_minute_at_least_and_two_at_most() {
        let at = |second: i64| DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap();
        let mut peak = Peak::default();
        assert_eq!(peak.read(at(0)), None);
        peak.note(Duration::from_secs(7), at(59));
        peak.note(Duration::from_secs(3), at(61));
        assert_eq!(peak.read(at(119)), Some(Duration::from_secs(7)));
        assert_eq!(peak.read(at(120)), Some(Duration::from_secs(3)));
        assert_eq!(peak.read(at(180)), None);
        peak.note(Duration::from_secs(1), at(180));
        assert_eq!(peak.read(at(-600)), None, "a clock that goes back begins again");
    }
}
