//! Limits: how much of a meter a plan includes, over which window, and what happens at the end of it.

use std::fmt;

use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

/// The most that may be used in a window. "Unlimited" is its own case: neither 0, nor absent, nor a huge number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// No limit.
    Unlimited,
    /// This many units, 0 included.
    Max(u64),
}

impl Limit {
    /// Whether `used + more` stays within the limit, without overflow.
    #[must_use]
    pub const fn admits(self, used: u64, more: u64) -> bool {
        match self {
            Self::Unlimited => true,
            Self::Max(max) => match used.checked_add(more) {
                Some(total) => total <= max,
                None => false,
            },
        }
    }

    /// What is left after `used`: never less than 0.
    #[must_use]
    pub const fn left(self, used: u64) -> Self {
        match self {
            Self::Unlimited => Self::Unlimited,
            Self::Max(max) => Self::Max(max.saturating_sub(used)),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str("unlimited"),
            Self::Max(max) => max.fmt(f),
        }
    }
}

/// How long usage adds up before it starts again from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Window {
    /// 60 minutes.
    Hour,
    /// 24 hours.
    Day,
    /// 7 days; by the calendar, from Monday (ISO 8601).
    Week,
    /// A month.
    Month,
    /// 12 months.
    Year,
    /// Never starts again.
    Lifetime,
}

impl Window {
    /// The name in the file and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
            Self::Lifetime => "lifetime",
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where windows start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WindowAnchor {
    /// At the hour, midnight, Monday, the 1st, 1 January, by the clocks of the limit's time zone.
    Calendar,
    /// At the tenant's billing anchor; by the calendar while there is none.
    Billing,
}

/// What happens to a use that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overage {
    /// It is refused, whole.
    Block,
    /// It is counted and goes through.
    Allow,
    /// It is counted, goes through and is billed.
    Bill,
}

impl Overage {
    /// The name in the file and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Allow => "allow",
            Self::Bill => "bill",
        }
    }
}

/// What a change of plan in the middle of a window does to what was used in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlanChange {
    /// It counts against the new limit.
    Keep,
    /// The limits of both plans count by the share of the window in which each was in force.
    Prorate,
    /// Counting starts again from 0.
    Reset,
}

impl PlanChange {
    /// The name in the file and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Prorate => "prorate",
            Self::Reset => "reset",
        }
    }
}

/// What a tenant may do that had used more than its new plan allows when it came to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverLimit {
    /// No further use; all else stays as it is.
    Block,
    /// No further use, and the tenant reads and takes away, and changes nothing: features that need full access are off.
    ReadOnly,
    /// Further use up to the limit of the plan before, for so many days after the change; then read-only.
    Grace {
        /// From 1.
        days: u16,
    },
}

/// Such as `read-only` or `grace for 14 days`.
impl fmt::Display for OverLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block => f.write_str("blocked"),
            Self::ReadOnly => f.write_str("read-only"),
            Self::Grace { days } => write!(f, "grace for {days} days"),
        }
    }
}

/// What is left at the end of a window and may still be used afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollover {
    /// The most units that are carried over, in all.
    pub max: u64,
    /// For how many windows; what was not used by then is gone.
    pub windows: u16,
}

/// A plan's limit for one meter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterLimit {
    /// How much.
    pub limit: Limit,
    /// Per which time.
    pub window: Window,
    /// From when.
    pub anchor: WindowAnchor,
    /// By which clocks a calendar window starts.
    pub time_zone: Tz,
    /// What happens beyond it.
    pub overage: Overage,
    /// The most units beyond it that go through: the cap on what overage may cost. `None` for no cap.
    pub overage_max: Option<u64>,
    /// What happens to what is left at the end of a window; `None`: it is gone.
    pub rollover: Option<Rollover>,
    /// What a change of plan does to what was used.
    pub on_plan_change: PlanChange,
    /// What holds for a tenant that is beyond it when it comes to the plan.
    pub over_limit: OverLimit,
    /// The most units that one member may use of it in a window, whatever the overage; only where uses add up.
    pub per_member: Option<u64>,
    /// Percentages of the limit whose crossing is announced, ascending, each 1 to 1000 (above 100 only where overage
    /// is let through).
    pub warn: Box<[u16]>,
}
