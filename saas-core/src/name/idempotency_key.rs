//! Idempotency keys.

use serde::{Deserialize, Serialize};

use super::{plain_text, shorten};
use crate::InvalidInput;

/// Names one attempt to change something, so that a repeat is recognised. 1 to 255 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdempotencyKey(String);

impl TryFrom<String> for IdempotencyKey {
    type Error = InvalidInput;

    fn try_from(text: String) -> Result<Self, InvalidInput> {
        if (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
            return Ok(Self(text));
        }
        Err(InvalidInput::new(
            "idempotency key",
            format!("{:?} is empty, longer than 255 or holds a character that is not visible ASCII", shorten(&text)),
            "pass a key that names this one attempt, such as a UUID",
        ))
    }
}

plain_text!(IdempotencyKey);
