//! What is said to Redis, by whoever counts there.

use std::time::Duration;

use saas_core::{InvalidInput, Limit};

use crate::Draw;

/// The largest number that Redis' scripts count exactly.
pub(super) const MOST: u64 = (1 << 53) - 1;

/// What has to be the same for units to be used that were lent under it.
pub(super) fn rule(draw: &Draw) -> String {
    let mut rule = format!("{}:{}", draw.revision, draw.cap);
    if let Limit::Max(max) = draw.limit {
        rule.push_str(&format!(":{max}"));
    }
    for mark in &draw.thresholds {
        rule.push_str(&format!(":{}@{}", mark.percent, mark.units));
    }
    rule
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Whether keys can begin with it.
pub(super) fn check_prefix(prefix: &str) -> Result<(), InvalidInput> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if (1..=64).contains(&prefix.len()) && prefix.chars().all(fits) {
        return Ok(());
    }
    let why = "is empty, longer than 64 characters or holds other characters than letters, digits, -, _, . and :";
    Err(InvalidInput::new("key prefix", why, "pass the name of the application"))
}
