//! What the leases from Redis counted, for metrics and alarms.

use super::super::totals::totals;

totals! { RedisLeaseStats;
    /// Borrows that Redis answered from a pool.
    from_redis,
    /// Pools that PostgreSQL made or filled.
    filled,
    /// Borrows that PostgreSQL answered alone.
    direct,
    /// Borrows without an answer that were undone later, or are past their life.
    undone,
    /// Pools that PostgreSQL had ended before they were given back: what was not reported of them counts as used.
    lost,
    /// Values in Redis that are damaged, or not ours. They were not believed. Alarm on a rise.
    unreadable,
    /// Values of a history of Redis that is over: it was restarted, or a replica was promoted.
    rewound,
    /// Questions that Redis did not answer, or not in time.
    unanswered,
    /// Questions that were not asked, since Redis had not answered several before.
    unasked,
}
