//! How a delivery's body lies in its column: compressed where that saves, so that a receipt is a short row and a short write.

use std::fmt;

/// The first byte of what is stored says how to read the rest. Stored for the retention: a value is never reused.
const PLAIN: u8 = 0;
/// An LZ4 block after its length, which refers to the first dictionary.
const LZ4_1: u8 = 1;
/// What a delivery's JSON mostly consists of: the names of fields, as Stripe prints them. Receipts refer to its bytes, so it
/// never changes; another one gets a number of its own.
const DICTIONARY_1: &[u8] = include_bytes!("body.1.dictionary");

/// More is stored as it is: a length that is damaged must not take the memory of the process.
const MAX_UNPACKED: usize = 16 * 1024 * 1024;

/// A body as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Packed(Vec<u8>);

/// What is stored is no body that this version of the crate has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stored body is damaged, or was written by a newer version")]
pub(crate) struct Damaged;

impl Packed {
    pub(crate) fn of(body: &[u8]) -> Self {
        let block = lz4_flex::block::compress_prepend_size_with_dict(body, DICTIONARY_1);
        let (form, rest) = if block.len() < body.len() && body.len() <= MAX_UNPACKED {
            (LZ4_1, block.as_slice())
        } else {
            (PLAIN, body)
        };
        let mut packed = Vec::with_capacity(rest.len() + 1);
        packed.push(form);
        packed.extend_from_slice(rest);
        Self(packed)
    }

    pub(crate) const fn from_column(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(crate) fn as_column(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn unpack(&self) -> Result<Vec<u8>, Damaged> {
        match self.0.split_first() {
            Some((&PLAIN, body)) => Ok(body.to_vec()),
            Some((&LZ4_1, block)) => {
                let (length, _) = lz4_flex::block::uncompressed_size(block).map_err(|_| Damaged)?;
                if length > MAX_UNPACKED {
                    return Err(Damaged);
                }
                lz4_flex::block::decompress_size_prepended_with_dict(block, DICTIONARY_1).map_err(|_| Damaged)
            }
            Some(_) | None => Err(Damaged),
        }
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    use super::*;

    proptest! {
        #[test]
        fn every_body_comes_back(body in proptest::collection::vec(any::<u8>(), 0..3000), copies in 1_usize..4) {
            let body = body.repeat(copies);
            let packed = Packed::of(&body);
            prop_assert!(packed.as_column().len() <= body.len() + 1);
            prop_assert_eq!(Packed::from_column(packed.as_column().to_vec()).unpack(), Ok(body));
        }

        #[test]
        fn what_is_damaged_is_an_error_and_no_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 5..200),
            length in any::<u32>(),
        ) {
            bytes[0] = LZ4_1;
            bytes[1..5].copy_from_slice(&length.to_le_bytes());
            drop(Packed::from_column(bytes).unpack());
        }
    }

    #[test]
    fn what_this_version_does_not_know_is_damaged() {
        assert_eq!(Packed::from_column(vec![2, b'{', b'}']).unpack(), Err(Damaged));
        assert_eq!(Packed::from_column(Vec::new()).unpack(), Err(Damaged));
        assert_eq!(Packed::from_column(vec![LZ4_1, 1]).unpack(), Err(Damaged));
    }

    #[test]
    fn what_is_stored_today_can_be_read_by_every_later_version() {
        let body =
            r#"{"id": "evt_1", "object": "event", "data": {"object": {"id": "sub_1", "object": "subscription"}}}"#;
        let stored = hex::decode(STORED_BY_0_1).unwrap();
        assert_eq!(Packed::from_column(stored).unpack().as_deref(), Ok(body.as_bytes()));
        let digest = hex::encode(Sha256::digest(DICTIONARY_1));
        assert_eq!(
            digest, "48aee129b3b101c90b8174ab436cb2a100da8d0af2973c8a1741cbe3886a5883",
            "the dictionary has changed: receipts that refer to it are lost"
        );
    }

    const STORED_BY_0_1: &str =
        "0161000000137b9c01786576745f31222c46292065765405152c3112167bb5100436003c7375623600066900606f6e227d7d7d";
}
