//! Translates database errors: by SQLSTATE and constraint name, never by message.

use sqlx::Error;

use crate::CoreError;

impl CoreError {
    /// Sorts an error of the driver. For use with `map_err` wherever a statement is run.
    #[must_use]
    pub fn from_database(error: Error) -> Self {
        let Some(database) = error.as_database_error() else {
            return match error {
                Error::Io(_)
                | Error::Tls(_)
                | Error::Protocol(_)
                | Error::PoolTimedOut
                | Error::PoolClosed
                | Error::WorkerCrashed
                | Error::BeginFailed => Self::Unavailable { cause: Box::new(error) },
                Error::RowNotFound => Self::NotFound { what: "row" },
                other => Self::Statement { cause: Box::new(other) },
            };
        };
        let code = database.code().unwrap_or_default().into_owned();
        let constraint = database.constraint().unwrap_or("").to_owned();
        let cause = Box::new(error);
        match code.as_str() {
            // 40: serialization and deadlock; 08, 57, 53: gone, shutting down, out of resources; 55P03: lock timeout.
            "55P03" => Self::Unavailable { cause },
            "25P02" => Self::Aborted { cause },
            "42501" => Self::Forbidden { cause },
            // Raised by saas.enter.
            "SA001" => Self::Moved { cause },
            _ => match code.get(..2) {
                Some("40" | "08" | "57" | "53") => Self::Unavailable { cause },
                Some("23") => Self::Conflict { constraint, cause },
                _ => Self::Statement { cause },
            },
        }
    }

    /// The constraint that a conflict broke, so that a crate can give it a meaning.
    #[must_use]
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Conflict { constraint, .. } => Some(constraint),
            _ => None,
        }
    }

    /// An error in the place of COMMIT's answer. Only a refusal says that nothing was stored; a server or a pooler that
    /// goes away may do so after the commit.
    pub(super) fn from_commit(error: Error) -> Self {
        let code = error.as_database_error().and_then(|e| e.code()).unwrap_or_default().into_owned();
        match code.get(..2) {
            Some("23" | "40") => Self::from_database(error),
            _ if code == "25P02" => Self::from_database(error),
            _ => Self::OutcomeUnknown { cause: Box::new(error) },
        }
    }

    /// An error in answer to a message that holds both a statement and its COMMIT. A refusal of either says that nothing was
    /// stored; what ends a connection may do so after the commit.
    pub(super) fn from_written_once(error: Error) -> Self {
        let code = error.as_database_error().and_then(|e| e.code()).unwrap_or_default().into_owned();
        let never_sent = matches!(error, Error::PoolTimedOut | Error::PoolClosed);
        match code.get(..2) {
            // Connection, operator's intervention, system and internal errors.
            None | Some("08" | "57" | "58" | "XX") if !never_sent => Self::OutcomeUnknown { cause: Box::new(error) },
            _ => Self::from_database(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, error::Error as StdError, fmt};

    use sqlx::error::{DatabaseError, ErrorKind};

    use super::*;

    #[derive(Debug)]
    struct Answer(&'static str);

    impl fmt::Display for Answer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl StdError for Answer {}

    impl DatabaseError for Answer {
        fn message(&self) -> &str {
            self.0
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.0.into())
        }

        fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    #[test]
    fn only_a_refusal_in_commits_place_says_that_nothing_was_stored() {
        let code = |sqlstate| CoreError::from_commit(Error::Database(Box::new(Answer(sqlstate)))).code();
        for (sqlstate, expected) in [("23503", "conflict"), ("40001", "unavailable"), ("25P02", "transaction_aborted")]
        {
            assert_eq!(code(sqlstate), expected, "{sqlstate}");
        }
        // A server or a pooler that goes away may do so after the commit.
        for sqlstate in ["08P01", "08007", "57P01", "58030", "XX000"] {
            assert_eq!(code(sqlstate), "outcome_unknown", "{sqlstate}");
        }
    }
}
