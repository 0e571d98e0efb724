//! Real money or not.

/// Whether real money is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Stripe's test mode and sandboxes.
    Test,
    /// Real money.
    Live,
}
