//! Names outside the database: keys of a cache, paths of an object store.
//!
//! Row-level security does not reach there; the name itself must keep tenants apart. So it is a type that only a
//! [`TenantId`] can begin.

use std::fmt;

use crate::{InvalidInput, TenantContext, TenantId};

/// The longest key, in bytes: what S3 accepts.
pub const MAX_TENANT_KEY: usize = 1024;

/// A name that belongs to one tenant, such as `t/018f…/exports/2026.csv`.
///
/// Two keys are equal only when tenant and every part are: a separator, a dot or an escape inside a part is written as
/// `=2F`, `=2E`, `=3D`. All keys of a tenant, and no other's, begin with [`prefix`](Self::prefix). Only `a-z A-Z 0-9 . _ -
/// = /` occur, so the text serves Redis, S3 and a folder alike. A folder that ignores case mixes up parts that differ in
/// nothing else, but never two tenants.
///
/// ```
/// use saas_core::{TenantId, TenantKey};
///
/// let acme: TenantId = "018f2d5e-0000-7000-8000-000000000001".parse()?;
/// let key = TenantKey::new(acme).join("exports")?.join("2026/05 final.csv")?;
/// assert_eq!(key.as_str(), "t/018f2d5e000070008000000000000001/exports/2026=2F05=20final.csv");
/// # Ok::<(), saas_core::InvalidInput>(())
/// ```
///
/// A key without a tenant does not compile:
/// ```compile_fail
/// let key: saas_core::TenantKey = "exports/2026.csv".into();
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantKey {
    tenant: TenantId,
    text: String,
}

impl TenantKey {
    /// The tenant's root, to which parts are joined.
    #[must_use]
    pub fn new(tenant: TenantId) -> Self {
        Self { tenant, text: format!("t/{}", tenant.as_uuid().simple()) }
    }

    /// The root of the tenant that a request is for.
    #[must_use]
    pub fn of(ctx: &dyn TenantContext) -> Self {
        Self::new(ctx.tenant())
    }

    /// Adds one part, which may be any text.
    ///
    /// # Errors
    /// When the key would be longer than [`MAX_TENANT_KEY`]: shorten the part, or put a hash in its place.
    pub fn join(&self, part: &str) -> Result<Self, InvalidInput> {
        let mut text = self.text.clone();
        text.push('/');
        escape(part, &mut text);
        if text.len() > MAX_TENANT_KEY {
            return Err(InvalidInput::new("key", "is longer than 1024 bytes", "shorten the part or pass its hash"));
        }
        Ok(Self { tenant: self.tenant, text })
    }

    /// What all keys of the tenant begin with, and no other's: for listing or erasing them.
    #[must_use]
    pub fn prefix(tenant: TenantId) -> String {
        format!("t/{}/", tenant.as_uuid().simple())
    }

    /// Whose it is.
    #[must_use]
    pub const fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Writes a part so that it can be read back: an empty one as `=`, which no byte is written as.
fn escape(part: &str, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    if part.is_empty() {
        out.push('=');
    }
    // `.` and `..` are steps to a file system.
    let only_dots = part.bytes().all(|b| b == b'.');
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"_-".contains(&byte) || (byte == b'.' && !only_dots) {
            out.push(char::from(byte));
        } else {
            out.extend(['=', char::from(HEX[usize::from(byte >> 4)]), char::from(HEX[usize::from(byte & 15)])]);
        }
    }
}

impl AsRef<str> for TenantKey {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for TenantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for TenantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantKey({})", self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use uuid::Uuid;

    use super::*;

    fn key(tenant: TenantId, parts: &[String]) -> TenantKey {
        parts.iter().try_fold(TenantKey::new(tenant), |key, part| key.join(part)).unwrap()
    }

    /// Few bits, so that equal tenants and near misses occur.
    fn tenant() -> impl Strategy<Value = TenantId> {
        prop_oneof![0..4_u128, any::<u128>()].prop_map(|bits| TenantId::from_uuid(Uuid::from_u128(bits)))
    }

    /// Any text, and much of what separates or escapes.
    fn parts() -> impl Strategy<Value = Vec<String>> {
        vec(prop_oneof!["[/:.=a2F]{0,6}", ".{0,12}", "t/0{31}[0-3](/[ab])?"], 0..4)
    }

    // T44
    proptest! {
        #[test]
        fn keys_are_equal_only_when_tenant_and_parts_are(
            (a, b) in (tenant(), tenant()), (x, y) in (parts(), parts()),
        ) {
            let (first, second) = (key(a, &x), key(b, &y));
            prop_assert_eq!(first.as_str() == second.as_str(), a == b && x == y, "{} {}", first, second);
            prop_assert_eq!(first == second, a == b && x == y);
            let own = |key: &TenantKey, of| key.as_str().starts_with(&TenantKey::prefix(of));
            prop_assert_eq!(own(&first, b), a == b && !x.is_empty());
            let same_parts = (key(a, &x), key(b, &x));
            prop_assert_eq!(same_parts.0 == same_parts.1, a == b);
        }

        #[test]
        fn a_key_holds_nothing_that_a_store_reads_as_a_step_or_refuses(a in tenant(), x in parts()) {
            let key = key(a, &x);
            prop_assert_eq!(key.as_str().split('/').count(), 2 + x.len());
            for part in key.as_str().split('/') {
                prop_assert!(!["", ".", ".."].contains(&part), "{}", key);
                prop_assert!(part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-=".contains(&b)), "{}", key);
            }
        }
    }

    #[test]
    fn a_key_that_no_store_would_take_is_refused() {
        let root = TenantKey::new(TenantId::from_uuid(Uuid::nil()));
        let room = MAX_TENANT_KEY - root.as_str().len() - 1;
        assert_eq!(root.join(&"x".repeat(room)).unwrap().as_str().len(), MAX_TENANT_KEY);
        assert!(root.join(&"x".repeat(room + 1)).is_err());
        assert!(root.join(&"/".repeat(room / 3 + 1)).is_err(), "what counts is the length as written");
    }
}
