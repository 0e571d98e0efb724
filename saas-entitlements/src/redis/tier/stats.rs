//! What the tier counted, for metrics and alarms.

use super::super::totals::totals;

totals! { TierStats;
    /// Uses that were admitted from Redis.
    admitted,
    /// Uses that PostgreSQL decided by itself.
    direct,
    /// Slices that were lent to Redis.
    slices,
    /// Admitted uses that were written to PostgreSQL.
    settled,
    /// Admitted uses whose key had counted before, and which took nothing.
    repeats,
    /// Admitted uses whose key had counted before with another amount: a defect of the caller. They were counted as uses of
    /// their own. Alarm on a rise.
    reused_keys,
    /// Units that were admitted beyond what was lent, and counted. Never, unless somebody writes to Redis by hand. Alarm.
    beyond,
    /// Values in Redis that are damaged, or not the tier's. They were not believed. Alarm on a rise.
    unreadable,
    /// Slices that were not used any more since Redis had been restarted, or a replica promoted.
    rewound,
    /// Questions that Redis did not answer, or not in time.
    unanswered,
    /// Questions that were not asked, since Redis had not answered several before.
    unasked,
    /// Times admitted uses could not be written; they are kept and tried again. Alarm on a rise.
    settle_failures,
}
