//! How far a move is, and what comes next: a pure function of what was recorded and what is found.

use std::{fmt, str::FromStr};

use saas_core::CoreError;
use serde::Serialize;

use super::MoveError;

/// How far a move is. Recorded before the work of a state begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// Agreed; the source does not yet log its changes.
    Planned,
    /// Changes are logged; tables are being copied.
    Copying,
    /// All tables have arrived; what changed meanwhile is carried over.
    CatchingUp,
    /// The source is being closed.
    Switching,
    /// The tenant is at home in the target. The source is kept as it was.
    Switched,
    /// The source is being cleared.
    Confirming,
    /// Over: the tenant moved.
    Confirmed,
    /// The target is being cleared.
    RollingBack,
    /// Over: the tenant stayed.
    RolledBack,
}

impl State {
    const ALL: [Self; 9] = [
        Self::Planned,
        Self::Copying,
        Self::CatchingUp,
        Self::Switching,
        Self::Switched,
        Self::Confirming,
        Self::Confirmed,
        Self::RollingBack,
        Self::RolledBack,
    ];

    /// The stored name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Copying => "copying",
            Self::CatchingUp => "catching_up",
            Self::Switching => "switching",
            Self::Switched => "switched",
            Self::Confirming => "confirming",
            Self::Confirmed => "confirmed",
            Self::RollingBack => "rolling_back",
            Self::RolledBack => "rolled_back",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for State {
    type Err = CoreError;

    fn from_str(text: &str) -> Result<Self, CoreError> {
        let found = Self::ALL.into_iter().find(|state| state.as_str() == text);
        found.ok_or(CoreError::Corrupt { table: "saas.move", column: "state" })
    }
}

/// Where the placement says that the tenant is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    Source,
    Target,
    Elsewhere,
}

/// What is found when a mover looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) home: Home,
    /// Every table of the source logs its changes for this move.
    pub(super) is_captured: bool,
    /// Every table has arrived.
    pub(super) is_loaded: bool,
}

/// What a mover does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Log the changes of the source.
    Capture,
    /// Clear the target, and capture anew: changes may have gone unlogged.
    StartOver,
    /// Copy the tables that have not arrived.
    Copy,
    /// Carry changes over until few are left, close the source, carry the rest over, switch.
    CatchUpAndSwitch,
    /// Open the source again: a switch was begun and did not happen.
    Reopen,
    /// Clear the source.
    ClearSource,
    /// Open the source if need be, stop logging, clear the target.
    ClearTarget,
    /// Nothing.
    Rest,
}

/// The next step.
///
/// The transaction in the control database that makes a move `Switched` also moves the placement, so that the two never
/// disagree; what disagrees was changed by someone else, and is left alone.
pub(super) fn decide(state: State, facts: Facts) -> Result<Step, MoveError> {
    Ok(match (state, facts.home) {
        (State::Planned, Home::Source) => Step::Capture,
        (State::Copying | State::CatchingUp, Home::Source) if !facts.is_captured => Step::StartOver,
        (State::Copying, Home::Source) if !facts.is_loaded => Step::Copy,
        (State::Copying | State::CatchingUp, Home::Source) => Step::CatchUpAndSwitch,
        (State::Switching, Home::Source) => Step::Reopen,
        (State::Switched, Home::Target) => Step::Rest,
        (State::Confirming, Home::Target) => Step::ClearSource,
        (State::RollingBack, Home::Source) => Step::ClearTarget,
        (State::Confirmed | State::RolledBack, Home::Source | Home::Target | Home::Elsewhere) => Step::Rest,
        (state, Home::Source | Home::Target | Home::Elsewhere) => return Err(MoveError::PlacementChanged { state }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(state: State, home: Home, is_captured: bool, is_loaded: bool) -> Result<Step, &'static str> {
        decide(state, Facts { home, is_captured, is_loaded }).map_err(|error| error.code())
    }

    #[test]
    fn nothing_is_copied_before_changes_are_logged_and_a_lost_log_starts_the_move_over() {
        assert_eq!(next(State::Planned, Home::Source, false, false), Ok(Step::Capture));
        assert_eq!(next(State::Copying, Home::Source, true, false), Ok(Step::Copy));
        assert_eq!(next(State::Copying, Home::Source, true, true), Ok(Step::CatchUpAndSwitch));
        for state in [State::Copying, State::CatchingUp] {
            assert_eq!(next(state, Home::Source, false, true), Ok(Step::StartOver));
        }
    }

    #[test]
    fn a_switch_that_did_not_happen_opens_the_source_again() {
        assert_eq!(next(State::Switching, Home::Source, true, true), Ok(Step::Reopen));
    }

    #[test]
    fn only_a_place_that_is_not_home_is_ever_cleared() {
        for state in State::ALL {
            for (captured, loaded) in [(false, false), (false, true), (true, false), (true, true)] {
                let at_target = next(state, Home::Target, captured, loaded);
                assert!(!matches!(at_target, Ok(Step::ClearTarget | Step::StartOver | Step::Copy)), "{state}");
                let at_source = next(state, Home::Source, captured, loaded);
                assert_ne!(at_source, Ok(Step::ClearSource), "{state}");
                let elsewhere = next(state, Home::Elsewhere, captured, loaded);
                assert!(matches!(elsewhere, Ok(Step::Rest) | Err("placement_changed")), "{state}");
            }
        }
    }

    #[test]
    fn every_state_is_read_back_by_its_name() {
        for state in State::ALL {
            assert_eq!(state.as_str().parse::<State>().unwrap(), state);
        }
        assert_eq!("moved".parse::<State>().unwrap_err().code(), "corrupt");
    }
}
