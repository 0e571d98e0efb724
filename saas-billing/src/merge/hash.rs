//! The name of a snapshot's content, by which repeats are recognised.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The first 128 bits of the SHA-256 of a value's JSON, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContentHash(String);

impl ContentHash {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Hashes a value. Equal values have equal hashes.
    #[must_use]
    pub fn of<T: Serialize>(value: &T) -> Self {
        let mut hasher = Sha256::new();
        // Writing to a hasher cannot fail, and our own types have no key that JSON refuses.
        let written = serde_json::to_writer(Writer(&mut hasher), value);
        debug_assert!(written.is_ok(), "a value of ours always has a JSON form");
        Self(hex::encode(&hasher.finalize()[..16]))
    }
}

struct Writer<'a>(&'a mut Sha256);

impl std::io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
