//! What goes wrong with calls of the simulated API.

/// What happens to the next call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// 429 before anything is done, with a wish for this many seconds of rest.
    RateLimited(u32),
    /// 409 before anything is done: another call with the same key is under way.
    KeyInUse,
    /// 503 before anything is done; nothing is saved under the key.
    Unavailable,
    /// The API key is not accepted.
    Unauthorized,
    /// 500 instead of doing it, saved under the key.
    Broken,
    /// 500 after it was done, saved under the key.
    BrokenAfterwards,
    /// The connection is cut before anything is done.
    CutBefore,
    /// The connection is cut after it was done.
    CutAfter,
    /// It is done, and never answered.
    Silent,
    /// It is done, and the answer stops in the middle.
    Stuck,
    /// An answer that is not JSON, after it was done.
    Garbled,
}

impl Fault {
    /// Whether the call is carried out.
    pub(super) const fn executes(self) -> bool {
        match self {
            Self::RateLimited(_)
            | Self::KeyInUse
            | Self::Unavailable
            | Self::Unauthorized
            | Self::Broken
            | Self::CutBefore => false,
            Self::BrokenAfterwards | Self::CutAfter | Self::Silent | Self::Stuck | Self::Garbled => true,
        }
    }
}
