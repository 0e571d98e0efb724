//! One use, as a caller names it.

use chrono::{DateTime, Utc};
use saas_core::{IdempotencyKey, MeterKey};

/// One use of a meter: how much, of what, by whom and when. For [`Meter::consume_use`](crate::Meter::consume_use) and
/// [`Meter::record_use`](crate::Meter::record_use).
///
/// ```
/// use saas_core::{IdempotencyKey, MeterKey};
/// use saas_entitlements::Use;
///
/// const PAGES: MeterKey = MeterKey::from_static("pages");
/// const ACTIVE_USERS: MeterKey = MeterKey::from_static("active-users");
///
/// let key: IdempotencyKey = "scan-17".parse()?;
/// let scanned = Use::new(PAGES, 12, &key).with_member("ada").with_instant("2026-01-31T23:59:59.999Z".parse()?);
/// let seen = Use::new(ACTIVE_USERS, 1, &key).with_item("ada");
/// # let _ = (scanned, seen);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use<'a> {
    pub(crate) meter: MeterKey,
    pub(crate) amount: u64,
    pub(crate) key: &'a IdempotencyKey,
    pub(crate) item: Option<&'a str>,
    pub(crate) member: Option<&'a str>,
    pub(crate) at: Option<DateTime<Utc>>,
}

impl<'a> Use<'a> {
    /// A use of `amount` units, now, by the member who acts. Of a peak and of a meter that keeps the latest, `amount` is the
    /// level, and may be 0; of a count and of a meter that counts items it is 1.
    #[must_use]
    pub const fn new(meter: MeterKey, amount: u64, key: &'a IdempotencyKey) -> Self {
        Self { meter, amount, key, item: None, member: None, at: None }
    }

    /// Names the item that is used, 1 to 255 characters: what a meter that counts items counts once in a window.
    #[must_use]
    pub const fn with_item(mut self, item: &'a str) -> Self {
        self.item = Some(item);
        self
    }

    /// Names the member of the tenant that uses it, 1 to 255 characters. Unless it is named, it is who acts in the context,
    /// where that is a person of the tenant.
    #[must_use]
    pub const fn with_member(mut self, member: &'a str) -> Self {
        self.member = Some(member);
        self
    }

    /// Says when it happened: it counts in the window of that instant, by whatever clock the process runs. The window has to
    /// be open still, or over for less than the meter's `late_hours`.
    #[must_use]
    pub const fn with_instant(mut self, at: DateTime<Utc>) -> Self {
        self.at = Some(at);
        self
    }
}
