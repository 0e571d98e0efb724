//! The signature on a webhook delivery: our own check over the raw bytes, before anything is parsed.
//!
//! Owns the endpoint's signing secrets and the rule of <https://docs.stripe.com/webhooks#verify-manually>. Promises that
//! every `v1` part is tried against every secret that is still valid, in constant time; that an empty secret never signs
//! anything; that no secret is printed. Leaves replays inside the tolerance to the inbox.

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use saas_core::InvalidInput;
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

/// The header that carries the signature.
pub const SIGNATURE_HEADER: &str = "stripe-signature";

/// How far a delivery's timestamp may be from our clock, unless configured otherwise.
pub const DEFAULT_TOLERANCE: TimeDelta = TimeDelta::seconds(300);

/// A tolerance above this would switch replay protection off in all but name.
const MAX_TOLERANCE: TimeDelta = TimeDelta::hours(1);
/// Bytes of a header worth reading: a timestamp and a handful of signatures.
const MAX_HEADER: usize = 4096;
/// Signatures of one header that are tried.
const MAX_PARTS: usize = 16;

/// One signing secret of the endpoint, as Stripe shows it (`whsec_…`).
#[derive(Clone)]
pub struct StripeSecret {
    /// The key schedule, computed once.
    mac: Hmac<Sha256>,
    not_after: Option<DateTime<Utc>>,
}

impl StripeSecret {
    /// Takes a secret. The whole text is the key, prefix included.
    ///
    /// # Errors
    /// When the text is empty or blank (an unset environment variable would let anyone sign), or shorter than 16 bytes.
    pub fn new(secret: SecretString) -> Result<Self, InvalidInput> {
        let text = secret.expose_secret();
        let refuse = |why: &'static str| {
            Err(InvalidInput::new(
                "the webhook signing secret",
                why,
                "pass the endpoint's `whsec_…` from the Stripe dashboard",
            ))
        };
        if text.trim().is_empty() {
            return refuse("is empty");
        }
        if text.trim() != text {
            return refuse("starts or ends with white space");
        }
        if text.len() < 16 {
            return refuse("is shorter than 16 bytes");
        }
        let mac = Hmac::new_from_slice(text.as_bytes()).map_err(|_| {
            InvalidInput::new("the webhook signing secret", "is no usable key", "pass the endpoint's `whsec_…`")
        })?;
        Ok(Self { mac, not_after: None })
    }

    /// Accepts this secret up to and including `instant`: for the old one while a roll is under way.
    #[must_use]
    pub fn until(mut self, instant: DateTime<Utc>) -> Self {
        self.not_after = Some(instant);
        self
    }

    /// The header that Stripe would send with `body` at `at`.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn sign(&self, body: &[u8], at: DateTime<Utc>) -> String {
        let timestamp = at.timestamp().to_string();
        format!("t={timestamp},v1={}", hex::encode(self.tag(timestamp.as_bytes(), body)))
    }

    /// Whether both sign alike, told without their text, which is not kept.
    #[cfg(any(feature = "postgres", test))]
    fn is_same(&self, other: &Self) -> bool {
        self.tag(b"0", b"").ct_eq(&other.tag(b"0", b"")).into()
    }

    fn tag(&self, timestamp: &[u8], body: &[u8]) -> [u8; 32] {
        let mut mac = self.mac.clone();
        mac.update(timestamp);
        mac.update(b".");
        mac.update(body);
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for StripeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StripeSecret").field("secret", &"[redacted]").field("not_after", &self.not_after).finish()
    }
}

/// The secrets of one endpoint (several while one is being rolled) and the tolerance.
#[derive(Debug, Clone)]
pub struct SigningSecrets {
    secrets: Vec<StripeSecret>,
    tolerance: TimeDelta,
}

impl SigningSecrets {
    /// Secrets with the default tolerance of 300 seconds in both directions.
    ///
    /// # Errors
    /// When there is none, or more than eight.
    pub fn new(secrets: Vec<StripeSecret>) -> Result<Self, InvalidInput> {
        if (1..=8).contains(&secrets.len()) {
            return Ok(Self { secrets, tolerance: DEFAULT_TOLERANCE });
        }
        Err(InvalidInput::new(
            "the list of signing secrets",
            "must hold 1 to 8",
            "pass the endpoint's secret, and the old one while it is rolled",
        ))
    }

    /// Changes how old or how far ahead a delivery may be.
    ///
    /// # Errors
    /// When `tolerance` is not positive, or above one hour.
    pub fn with_tolerance(mut self, tolerance: TimeDelta) -> Result<Self, InvalidInput> {
        if tolerance <= TimeDelta::zero() || tolerance > MAX_TOLERANCE {
            return Err(InvalidInput::new(
                "the signature tolerance",
                "is out of range",
                "use 1 second to 1 hour; Stripe signs each attempt anew",
            ));
        }
        self.tolerance = tolerance;
        Ok(self)
    }

    /// These and a new one, and of these until `until` those that still count at `now`.
    #[cfg(any(feature = "postgres", test))]
    pub(crate) fn rolled(
        &self,
        new: StripeSecret,
        until: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<Self, InvalidInput> {
        let counts = |old: &&StripeSecret| old.not_after.is_none_or(|end| now <= end) && !old.is_same(&new);
        let ends = |old: StripeSecret| {
            let end = old.not_after.map_or(until, |end| end.min(until));
            old.until(end)
        };
        let mut secrets: Vec<StripeSecret> = self.secrets.iter().filter(counts).cloned().map(ends).collect();
        secrets.push(new);
        Ok(Self { tolerance: self.tolerance, ..Self::new(secrets)? })
    }

    /// Checks that `header` signs exactly these bytes, within the tolerance around `now` (whole seconds).
    ///
    /// The age is looked at only once the signature is right, so [`SignatureError::Stale`] is a statement about a genuine
    /// delivery: a replay, or a clock that is wrong.
    ///
    /// # Errors
    /// [`SignatureError`], each of which means: answer 400 and do nothing.
    pub fn verify(&self, body: &[u8], header: &str, now: DateTime<Utc>) -> Result<(), SignatureError> {
        self.age(body, header, now).map(drop)
    }

    /// As [`verify`](Self::verify); how many seconds before `now` it was signed. Stripe signs each attempt anew, so this is the
    /// time on the way, and what our clock is off.
    pub(crate) fn age(&self, body: &[u8], header: &str, now: DateTime<Utc>) -> Result<i64, SignatureError> {
        let header = Header::parse(header)?;
        let mut right = Choice::from(0);
        for secret in self.secrets.iter().filter(|secret| secret.not_after.is_none_or(|end| now <= end)) {
            let expected = secret.tag(header.timestamp.as_bytes(), body);
            for part in &header.v1 {
                right |= expected.ct_eq(part);
            }
        }
        if !bool::from(right) {
            return Err(SignatureError::Mismatch);
        }
        let age_seconds = now.timestamp().saturating_sub(header.seconds);
        if age_seconds.unsigned_abs() > self.tolerance.num_seconds().unsigned_abs() {
            return Err(SignatureError::Stale { age_seconds });
        }
        Ok(age_seconds)
    }
}

/// Why a delivery was refused. Nothing of it was parsed or stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// The header is missing, too long, or has no timestamp and no `v1` part.
    #[error("the Stripe-Signature header is missing or malformed; pass the header as it was received")]
    Malformed,
    /// No part matches any secret.
    #[error("no signature matches; pass the raw body bytes, and check that the secret is this endpoint's")]
    Mismatch,
    /// Rightly signed, but too long ago (positive) or too far ahead (negative).
    #[error("the delivery was signed {age_seconds} s before now, outside the tolerance; check this machine's clock")]
    Stale {
        /// Our clock minus the delivery's, in seconds.
        age_seconds: i64,
    },
}

impl SignatureError {
    /// A stable name for logs and metrics.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed => "signature_malformed",
            Self::Mismatch => "signature_mismatch",
            Self::Stale { .. } => "signature_stale",
        }
    }
}

/// The parts of `t=1700000000,v1=…,v1=…,v0=…`.
struct Header<'a> {
    /// As it was sent: these bytes are what was signed.
    timestamp: &'a str,
    seconds: i64,
    v1: Vec<[u8; 32]>,
}

impl<'a> Header<'a> {
    fn parse(header: &'a str) -> Result<Self, SignatureError> {
        if header.len() > MAX_HEADER {
            return Err(SignatureError::Malformed);
        }
        let mut timestamp = None;
        let mut v1 = Vec::with_capacity(2);
        for part in header.split(',') {
            match part.trim().split_once('=') {
                Some(("t", text)) if timestamp.replace(text).is_some() => return Err(SignatureError::Malformed),
                Some(("v1", text)) if v1.len() < MAX_PARTS => {
                    let mut tag = [0; 32];
                    if hex::decode_to_slice(text, &mut tag).is_ok() {
                        v1.push(tag);
                    }
                }
                _ => {}
            }
        }
        let timestamp: &str = timestamp.ok_or(SignatureError::Malformed)?;
        let is_number = (1..=12).contains(&timestamp.len()) && timestamp.bytes().all(|byte| byte.is_ascii_digit());
        match timestamp.parse() {
            Ok(seconds) if is_number && !v1.is_empty() => Ok(Self { timestamp, seconds, v1 }),
            _ => Err(SignatureError::Malformed),
        }
    }
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests {
    use super::*;

    const BODY: &[u8] = b"{\n  \"id\": \"evt_1\",\n  \"object\": \"event\"\n}";

    fn secret(text: &str) -> StripeSecret {
        StripeSecret::new(SecretString::from(text)).unwrap()
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    fn endpoint(secrets: Vec<StripeSecret>) -> SigningSecrets {
        SigningSecrets::new(secrets).unwrap()
    }

    #[test]
    fn the_scheme_is_the_one_that_stripe_documents() {
        // printf '1700000000.{}' | openssl dgst -sha256 -hmac whsec_0123456789abcdef
        let expected = "t=1700000000,v1=d0c329a0542d1a8e66b0b5503cf2d2f8f8e174c98224b843c11f74ea14c341e9";
        assert_eq!(secret("whsec_0123456789abcdef").sign(b"{}", at(1_700_000_000)), expected);
    }

    // W10
    #[test]
    fn a_delivery_counts_for_exactly_300_seconds_in_both_directions() {
        let now = 1_700_000_000;
        let endpoint = endpoint(vec![secret("whsec_the_only_one_there_is")]);
        for (signed, expected) in [
            (now, Ok(())),
            (now - 300, Ok(())),
            (now - 301, Err(SignatureError::Stale { age_seconds: 301 })),
            (now + 300, Ok(())),
            (now + 301, Err(SignatureError::Stale { age_seconds: -301 })),
        ] {
            let header = secret("whsec_the_only_one_there_is").sign(BODY, at(signed));
            assert_eq!(endpoint.verify(BODY, &header, at(now)), expected, "signed {} s from now", signed - now);
        }
    }

    // W11
    #[test]
    fn a_roll_of_the_secret_loses_nothing() {
        let (old, new, stranger) =
            (secret("whsec_old_old_old_old"), secret("whsec_new_new_new_new"), secret("whsec_strange_stranger"));
        let now = at(1_700_000_000);
        let part = |secret: &StripeSecret| secret.sign(BODY, now).split_once(",").unwrap().1.to_owned();
        let both = |first: &StripeSecret, second: &StripeSecret| {
            format!("t={},{},{}", now.timestamp(), part(first), part(second))
        };
        // Stripe signs with both; we hold one of them, and either part may come first.
        for held in [&old, &new] {
            assert_eq!(endpoint(vec![held.clone()]).verify(BODY, &both(&old, &new), now), Ok(()));
            assert_eq!(endpoint(vec![held.clone()]).verify(BODY, &both(&new, &old), now), Ok(()));
        }
        // Stripe signs with one; we hold both.
        for signed in [&old, &new] {
            let endpoint = endpoint(vec![old.clone(), new.clone()]);
            assert_eq!(endpoint.verify(BODY, &signed.sign(BODY, now), now), Ok(()));
        }
        assert_eq!(
            endpoint(vec![old.clone(), new.clone()]).verify(BODY, &stranger.sign(BODY, now), now),
            Err(SignatureError::Mismatch)
        );
        // A retired secret counts up to its last second, and not one longer.
        let rolled = endpoint(vec![old.clone().until(now), new]);
        assert_eq!(rolled.verify(BODY, &old.sign(BODY, now), now), Ok(()));
        let later = now + TimeDelta::seconds(1);
        assert_eq!(rolled.verify(BODY, &old.sign(BODY, later), later), Err(SignatureError::Mismatch));
    }

    // W11
    #[test]
    fn a_rolled_secret_ends_and_is_held_once() {
        let (old, new) = (secret("whsec_old_old_old_old"), secret("whsec_new_new_new_new"));
        let now = at(1_700_000_000);
        let (soon, later) = (now + TimeDelta::hours(1), now + TimeDelta::hours(2));
        let first = endpoint(vec![old.clone()]).rolled(new.clone(), soon, now).unwrap();
        // Rolled once more with a later end, the old one does not come back to life, and the new one is there once.
        let again = first.rolled(new.clone(), later, now).unwrap();
        assert_eq!((first.secrets.len(), again.secrets.len()), (2, 2));
        let after = soon + TimeDelta::seconds(1);
        for rolled in [&first, &again] {
            assert_eq!(rolled.verify(BODY, &old.sign(BODY, soon), soon), Ok(()));
            assert_eq!(rolled.verify(BODY, &old.sign(BODY, after), after), Err(SignatureError::Mismatch));
            assert_eq!(rolled.verify(BODY, &new.sign(BODY, after), after), Ok(()));
        }
        // What has ended makes room.
        let mut many = first.with_tolerance(TimeDelta::seconds(60)).unwrap();
        for n in 0..20 {
            let now = after + TimeDelta::hours(n);
            many = many.rolled(secret(&format!("whsec_number_{n:020}")), now, now).unwrap();
        }
        assert_eq!((many.secrets.len(), many.tolerance), (2, TimeDelta::seconds(60)));
        for n in 0..6 {
            many = many.rolled(secret(&format!("whsec_letter_{n:020}")), now + TimeDelta::days(9), after).unwrap();
        }
        assert!(many.rolled(new, now + TimeDelta::days(9), after).is_err(), "nine at once are a mistake");
    }

    // W12
    #[test]
    fn only_the_very_bytes_that_were_signed_pass() {
        let key = secret("whsec_the_only_one_there_is");
        let (endpoint, now) = (endpoint(vec![key.clone()]), at(1_700_000_000));
        let header = key.sign(BODY, now);
        assert_eq!(endpoint.verify(BODY, &header, now), Ok(()));
        let text = std::str::from_utf8(BODY).unwrap();
        for changed in [
            "{\"id\":\"evt_1\",\"object\":\"event\"}".to_owned(),
            "{\n  \"object\": \"event\",\n  \"id\": \"evt_1\"\n}".to_owned(),
            text.replace('\n', "\r\n"),
            format!("\u{feff}{text}"),
            text.replace("evt_1", "\\u0065vt_1"),
            format!("{text}\n"),
            String::new(),
        ] {
            assert_eq!(endpoint.verify(changed.as_bytes(), &header, now), Err(SignatureError::Mismatch), "{changed:?}");
        }
    }

    #[test]
    fn a_malformed_header_is_refused_before_any_hashing() {
        let endpoint = endpoint(vec![secret("whsec_the_only_one_there_is")]);
        let tag = "0".repeat(64);
        for header in [
            "",
            "t=1700000000",
            &format!("v1={tag}"),
            &format!("t=,v1={tag}"),
            &format!("t=-5,v1={tag}"),
            &format!("t=1e9,v1={tag}"),
            &format!("t=1,t=2,v1={tag}"),
            &format!("t=99999999999999999999,v1={tag}"),
            "t=1700000000,v1=xyz",
            &format!("t=1700000000,v0={tag}"),
            &format!("t=1700000000,{}", format!("v1={tag},").repeat(200)),
        ] {
            assert_eq!(endpoint.verify(BODY, header, at(1_700_000_000)), Err(SignatureError::Malformed), "{header:?}");
        }
    }

    // W40
    #[test]
    fn an_empty_secret_is_refused_and_none_is_printed() {
        for empty in ["", " ", "\n", "whsec_short", " whsec_0123456789abcdef"] {
            assert!(StripeSecret::new(SecretString::from(empty)).is_err(), "{empty:?}");
        }
        assert!(SigningSecrets::new(vec![]).is_err());
        let printed = format!("{:?}", endpoint(vec![secret("whsec_0123456789abcdef")]));
        assert!(printed.contains("[redacted]") && !printed.contains("whsec_"), "{printed}");
    }

    #[test]
    fn a_tolerance_above_an_hour_is_an_error() {
        let endpoint = || endpoint(vec![secret("whsec_0123456789abcdef")]);
        assert!(endpoint().with_tolerance(TimeDelta::hours(1)).is_ok());
        for bad in [TimeDelta::seconds(3601), TimeDelta::zero(), TimeDelta::seconds(-1)] {
            assert!(endpoint().with_tolerance(bad).is_err());
        }
    }
}
