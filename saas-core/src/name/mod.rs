//! Names that people choose or write in the catalogue: checked once, at the edge, and a type from then on.
//!
//! A bad literal fails to compile; bad input gives an [`InvalidInput`](crate::InvalidInput) that says what, why and what to
//! do.

mod email;
mod idempotency_key;
mod key;
mod slug;

pub use email::EmailAddress;
pub use idempotency_key::IdempotencyKey;
pub use key::{AddOnKey, FeatureKey, MessageKey, MeterKey, PlanKey, RoleName, Topic};
pub use slug::Slug;

/// What a checked `String` offers beside its `TryFrom<String>`.
macro_rules! plain_text {
    ($name:ident) => {
        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::InvalidInput;

            fn from_str(text: &str) -> Result<Self, crate::InvalidInput> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
use plain_text;

/// The first characters of untrusted text, so that an error message stays one line.
fn shorten(text: &str) -> String {
    const SHOWN: usize = 40;
    let mut short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parsing_any_text_never_panics_and_accepted_addresses_are_stable(text in ".{0,300}") {
            let _ = text.parse::<Slug>();
            let _ = text.parse::<FeatureKey>();
            let _ = text.parse::<IdempotencyKey>();
            if let Ok(address) = text.parse::<EmailAddress>() {
                prop_assert_eq!(address.as_str().parse::<EmailAddress>().unwrap(), address);
            }
        }
    }
}
