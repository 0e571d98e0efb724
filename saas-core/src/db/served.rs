//! How many schemas a session of the server has looked into.
//!
//! PostgreSQL remembers the catalogue of every table that a session has touched, about 30 KB of memory for each table with
//! two indexes, until the session ends. Nothing else ends it: a connection that serves one schema after another grows by
//! all of them. So each session counts the schemas that it has served, in a setting of its own, and the connection is
//! closed when they are enough.

use std::{fmt::Write as _, num::NonZeroU32};

use sha2::{Digest, Sha256};

use super::SchemaName;

/// What a session has to remember when a transaction in a schema is over.
#[derive(Debug)]
pub(super) struct Served {
    /// Of the schema's name, in hexadecimal digits. Two schemas of the same mark count as one.
    mark: String,
    at_most: NonZeroU32,
}

/// Hexadecimal digits of a mark.
const DIGITS: usize = 8;

impl Served {
    pub(super) fn new(schema: &SchemaName, at_most: NonZeroU32) -> Self {
        let mut mark = String::with_capacity(DIGITS);
        for byte in Sha256::digest(schema.as_str()).iter().take(DIGITS / 2) {
            let _ = write!(mark, "{byte:02x}");
        }
        Self { mark, at_most }
    }

    /// An expression that adds the schema to what its session has served, and says how many those are.
    pub(super) fn count(&self) -> String {
        let Self { mark, .. } = self;
        format!(
            "(select length(case when strpos(served, '{mark}') > 0 then served
                                 else set_config('saas.schemas_served', served || '{mark} ', false) end) / {}
              from (select coalesce(current_setting('saas.schemas_served', true), '')) s (served))",
            DIGITS + 1
        )
    }

    /// Whether a session that has served so many may serve another one.
    pub(super) fn allows(&self, count: i32) -> bool {
        u32::try_from(count).is_ok_and(|count| count < self.at_most.get())
    }
}
