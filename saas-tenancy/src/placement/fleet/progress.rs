//! Showing how a run is getting on.

use std::{
    fmt,
    io::Write,
    sync::{Arc, Mutex, PoisonError},
};

use saas_core::TenantId;

use super::{Outcome, Report, SiteReport};
use crate::placement::Site;

/// Something that happened during a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The places were counted.
    Began {
        /// How many are to be migrated.
        waiting: usize,
        /// How many need nothing, or are in other hands.
        current: usize,
    },
    /// A place is being migrated.
    Started {
        /// Which.
        site: &'a Site,
        /// Whose; `None` for shared tables.
        tenant: Option<TenantId>,
    },
    /// A place was migrated, or failed, and the ledger says so.
    Finished(&'a SiteReport),
    /// It is over.
    Ended(&'a Report),
}

/// Hears of what happens during a run.
pub type Observer = Arc<dyn Fn(&Event<'_>) + Send + Sync>;

/// One line of a terminal that is drawn again with each place.
///
/// ```
/// # use saas_tenancy::placement::{Fleet, ProgressBar};
/// # fn example(fleet: Fleet) -> Fleet {
/// fleet.with_observer(ProgressBar::new(std::io::stderr()).observer())
/// # }
/// ```
pub struct ProgressBar {
    state: Mutex<State>,
}

struct State {
    out: Box<dyn Write + Send>,
    waiting: usize,
    done: usize,
    failed: usize,
}

impl ProgressBar {
    /// A bar that is drawn on `out`.
    #[must_use]
    pub fn new(out: impl Write + Send + 'static) -> Self {
        Self { state: Mutex::new(State { out: Box::new(out), waiting: 0, done: 0, failed: 0 }) }
    }

    /// What draws it, for [`Fleet::with_observer`](super::Fleet::with_observer).
    #[must_use]
    pub fn observer(self) -> Observer {
        Arc::new(move |event| self.draw(event))
    }

    /// A terminal that is gone does not stop a migration: what it does not take is lost.
    fn draw(&self, event: &Event<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let last = match event {
            Event::Began { waiting, .. } => {
                state.waiting = *waiting;
                ""
            }
            Event::Started { .. } => return,
            Event::Finished(report) => {
                state.done += 1;
                state.failed += usize::from(matches!(report.outcome, Outcome::Failed { .. }));
                ""
            }
            Event::Ended(_) => "\n",
        };
        let line = line(state.done, state.waiting, state.failed);
        let _ = write!(state.out, "\r{line}{last}");
        let _ = state.out.flush();
    }
}

const WIDTH: usize = 30;

/// Always at least as long as the one before, so that nothing of that is left.
fn line(done: usize, of: usize, failed: usize) -> String {
    let full = (WIDTH * done.min(of)).checked_div(of).unwrap_or(WIDTH);
    let bar: String = (0..WIDTH).map(|at| if at < full { '#' } else { '.' }).collect();
    let failures = match failed {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    };
    format!("[{bar}] {done}/{of}{failures}")
}

impl fmt::Debug for ProgressBar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgressBar").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_fills_as_places_are_done_and_counts_failures() {
        assert_eq!(line(0, 4, 0), "[..............................] 0/4");
        assert_eq!(line(2, 4, 1), "[###############...............] 2/4, 1 failed");
        assert_eq!(line(4, 4, 1), "[##############################] 4/4, 1 failed");
        assert_eq!(line(0, 0, 0), "[##############################] 0/0");
    }
}
