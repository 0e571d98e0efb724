//! What a change of a tenant's revenue in one currency is called.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A change of what a tenant pays per month in one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Movement {
    /// It pays for the first time.
    New,
    /// It pays more.
    Expansion,
    /// It pays less, and still something.
    Contraction,
    /// It pays nothing any more.
    Churn,
    /// It pays again.
    Reactivation,
}

impl Movement {
    /// From `before` to `after`; `ever` whether it paid at any time before. `None` when nothing changed.
    #[must_use]
    pub const fn between(before: i64, after: i64, ever: bool) -> Option<Self> {
        Some(match (before > 0, after > 0) {
            (false, false) => return None,
            (false, true) if ever => Self::Reactivation,
            (false, true) => Self::New,
            (true, false) => Self::Churn,
            (true, true) if after > before => Self::Expansion,
            (true, true) if after < before => Self::Contraction,
            (true, true) => return None,
        })
    }

    /// The name that is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Expansion => "expansion",
            Self::Contraction => "contraction",
            Self::Churn => "churn",
            Self::Reactivation => "reactivation",
        }
    }

    /// Reads the stored name.
    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        [Self::New, Self::Expansion, Self::Contraction, Self::Churn, Self::Reactivation]
            .into_iter()
            .find(|movement| movement.as_str() == text)
    }
}

impl fmt::Display for Movement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_has_one_name_and_no_change_has_none() {
        use Movement::{Churn, Contraction, Expansion, New, Reactivation};
        for (before, after, ever, expected) in [
            (0, 0, false, None),
            (0, 0, true, None),
            (5, 5, true, None),
            (0, 5, false, Some(New)),
            (0, 5, true, Some(Reactivation)),
            (5, 6, true, Some(Expansion)),
            (5, 4, true, Some(Contraction)),
            (5, 0, true, Some(Churn)),
        ] {
            assert_eq!(Movement::between(before, after, ever), expected, "{before} to {after}");
        }
    }
}
