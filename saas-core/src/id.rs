//! Every id of the foundation: typed, and ordered by the [`Clock`] that minted it (UUID version 7) where its age is no
//! secret.
//!
//! Ids are minted here and nowhere else, so that a test clock orders them and no two kinds can be confused.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU16, Ordering},
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Clock, InvalidInput};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident by $mint:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Mints a new id.
            #[must_use]
            pub fn mint(clock: &dyn Clock) -> Self {
                Self::mint_at(clock.now())
            }

            /// Mints a new id for an instant that the caller already read.
            #[must_use]
            pub fn mint_at(now: DateTime<Utc>) -> Self {
                Self($mint(now))
            }

            /// Wraps a UUID that is already known to name one of these.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The bare UUID, for binding to a statement.
            #[must_use]
            pub const fn as_uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidInput;

            fn from_str(text: &str) -> Result<Self, InvalidInput> {
                Uuid::try_parse(text).map(Self).map_err(|_| {
                    InvalidInput::new(stringify!($name), "is not a UUID", "pass 32 hexadecimal digits, with or without hyphens")
                })
            }
        }
    )+};
}

ids! {
    /// A customer organisation: the unit of isolation.
    TenantId by uuid_v7,
    /// A person, across all tenants. Random: the age in an ordered id would tell a tenant that adds someone whether they
    /// had an account elsewhere.
    UserId by uuid_v4,
    /// A machine credential of one tenant.
    ApiKeyId by uuid_v7,
    /// What a tenant publishes to show that a domain is theirs. Random: nobody can publish it before they were told.
    DomainToken by uuid_v4,
    /// One request of the adopter's application.
    RequestId by uuid_v7,
    /// One row of the audit log.
    AuditId by uuid_v7,
    /// One job of the outbox; also the idempotency key towards whoever receives its effect.
    JobId by uuid_v7,
    /// One hold of a leased row: the fencing token that only the present holder knows.
    LeaseToken by uuid_v7,
    /// One recorded use of a meter.
    UsageEventId by uuid_v7,
    /// Units given to a tenant beside those of its plan; also what makes giving them twice give them once.
    UsageGrantId by uuid_v7,
    /// Units set aside for work whose cost is known only afterwards.
    UsageReservationId by uuid_v7,
    /// One manual exception to a plan.
    OverrideId by uuid_v7,
    /// One export of a tenant's data; also the name of its folder.
    ExportId by uuid_v7,
}

/// 122 random bits.
#[expect(clippy::disallowed_methods, reason = "ids are minted here")]
fn uuid_v4(_: DateTime<Utc>) -> Uuid {
    Uuid::new_v4()
}

/// 48 bits of milliseconds, 12 of their fraction, 14 of a counter, so that what one process mints in one microsecond stays
/// in order, and 48 random bits (RFC 9562, 6.2, methods 1 and 3).
fn uuid_v7(now: DateTime<Utc>) -> Uuid {
    static COUNTER: AtomicU16 = AtomicU16::new(0);
    let millis = u64::try_from(now.timestamp_millis()).unwrap_or(0);
    let [_, _, _, _, _, _, rest @ ..] = uuid_v4(now).into_bytes();
    let mut tail: [u8; 10] = rest;
    let fraction = now.timestamp_subsec_nanos() % 1_000_000 * 4_096 / 1_000_000;
    let counter = COUNTER.fetch_add(1, Ordering::Relaxed);
    let [.., high, low] = fraction.to_be_bytes();
    let [counter_high, counter_low] = (counter & 0x3fff).to_be_bytes();
    [tail[0], tail[1], tail[2], tail[3]] = [high, low, counter_high, counter_low];
    uuid::Builder::from_unix_timestamp_millis(millis, &tail).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_order_by_the_clock_that_minted_them() {
        let early = TenantId::mint_at(DateTime::from_timestamp(1_700_000_000, 0).unwrap());
        let late = TenantId::mint_at(DateTime::from_timestamp(1_700_000_001, 0).unwrap());
        assert!(early < late);
        assert_eq!(early.to_string().parse::<TenantId>().unwrap(), early);
    }

    #[test]
    fn ids_of_one_instant_keep_the_order_in_which_they_were_minted() {
        let now = DateTime::from_timestamp(1_700_000_000, 123_456_789).unwrap();
        let ids: Vec<JobId> = (0..1_000).map(|_| JobId::mint_at(now)).collect();
        // The counter may start over once in a thousand; nothing else breaks the order.
        assert!(ids.windows(2).filter(|pair| pair[0] >= pair[1]).count() <= 1);
        let uuid = ids[0].as_uuid();
        assert_eq!((uuid.get_version_num(), uuid.get_variant()), (7, uuid::Variant::RFC4122));
        assert_eq!(uuid.get_timestamp().unwrap().to_unix(), (1_700_000_000, 123_000_000));
    }

    // An ordered id would tell a tenant that adds someone how old that person's account is.
    #[test]
    fn the_id_of_a_person_says_nothing_about_when() {
        let user = UserId::mint_at(DateTime::from_timestamp(1_700_000_000, 0).unwrap()).as_uuid();
        assert_eq!((user.get_version_num(), user.get_timestamp()), (4, None));
    }

    #[test]
    fn text_that_is_no_uuid_is_refused_with_the_name_of_the_id() {
        let error = "not-a-uuid".parse::<TenantId>().unwrap_err();
        assert!(error.to_string().starts_with("TenantId is not a UUID"), "{error}");
    }
}
