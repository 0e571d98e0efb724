//! From a rightly signed body to what it says about one object.
//!
//! Owns the envelope of an event, snapshot (v1) and thin (v2), what is to be done about each type ([`TABLE`]), and the step from
//! there to a [`Snapshot`](crate::merge::Snapshot).
//! Promises to read no more than it needs, and never to quote the payload in an error.

#[cfg(feature = "postgres")]
mod absent;
mod envelope;
mod reading;
mod table;
#[cfg(feature = "postgres")]
mod told;

#[cfg(feature = "postgres")]
pub(crate) use absent::{absent, may_be_gone};
pub use envelope::{Content, Envelope, RelatedObject};
pub use reading::{AnySnapshot, read_fetched, read_snapshot};
pub use table::{Decision, NoticeKind, NoticeRule, Place, Row, TABLE, Tier, decision, needed};
#[cfg(feature = "postgres")]
pub(crate) use told::{Notice, Told, nothing, read_told};
