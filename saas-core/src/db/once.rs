//! One statement of a tenant in one round trip: begin, bind, execute and commit as a single message.
//!
//! PostgreSQL takes several statements in one message only as text, so the statement is prepared by name and executed with
//! literals. Promises that no value can end its literal, under any setting of the server: what holds anything but letters,
//! digits and signs without a meaning of their own is sent as hexadecimal digits.

use std::{fmt::Write as _, time::Duration};

use chrono::{DateTime, Datelike as _, SecondsFormat, Utc};
use sha2::{Digest, Sha256};
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{Place, guard::Guard, place::Access};
use crate::{CoreError, InvalidInput, RequestContext, TenantContext};

/// A value in a statement of [`read_once`](super::TenantWork::read_once) or
/// [`write_once`](super::TenantWork::write_once).
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Literal<'a> {
    /// A `uuid`.
    Uuid(Uuid),
    /// A `bigint`.
    Integer(i64),
    /// A `boolean`.
    Boolean(bool),
    /// A `timestamptz`, to the microsecond.
    Timestamp(DateTime<Utc>),
    /// A `text`, without NUL.
    Text(&'a str),
}

impl<'a> Literal<'a> {
    /// Binds it to the next parameter of a statement that runs in a transaction of several.
    pub fn bind_to<'q>(
        self,
        query: sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>,
    ) -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>
    where
        'a: 'q,
    {
        match self {
            Self::Uuid(id) => query.bind(id),
            Self::Integer(number) => query.bind(number),
            Self::Boolean(truth) => query.bind(truth),
            Self::Timestamp(at) => query.bind(at),
            Self::Text(text) => query.bind(text),
        }
    }
}

impl Literal<'_> {
    /// Values as the text of one array, for a parameter that the statement casts: `$1::text::bigint[]`.
    #[must_use]
    pub fn array<'v>(values: impl IntoIterator<Item = Literal<'v>>) -> String {
        let elements: Vec<String> = values.into_iter().map(Literal::element).collect();
        format!("{{{}}}", elements.join(","))
    }

    fn element(self) -> String {
        match self {
            Self::Uuid(id) => id.to_string(),
            Self::Integer(number) => number.to_string(),
            Self::Boolean(truth) => truth.to_string(),
            Self::Timestamp(at) => micros(at),
            Self::Text(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        }
    }

    const fn sql_type(self) -> &'static str {
        match self {
            Self::Uuid(_) => "uuid",
            Self::Integer(_) => "bigint",
            Self::Boolean(_) => "boolean",
            Self::Timestamp(_) => "timestamptz",
            Self::Text(_) => "text",
        }
    }

    fn sql(self) -> Result<String, InvalidInput> {
        Ok(match self {
            Self::Uuid(id) => format!("'{id}'"),
            Self::Integer(number) => format!("({number})"),
            Self::Boolean(truth) => truth.to_string(),
            Self::Timestamp(at) if (1..=9999).contains(&at.year()) => format!("'{}'", micros(at)),
            Self::Timestamp(at) => {
                format!("timestamptz 'epoch' + ({})::bigint * interval '1 microsecond'", at.timestamp_micros())
            }
            Self::Text(text) if text.contains('\0') => {
                return Err(InvalidInput::new("text value", "holds a NUL character", "remove it"));
            }
            Self::Text(text) if text.bytes().all(is_harmless) => format!("'{text}'"),
            Self::Text(text) => format!("convert_from(decode('{}', 'hex'), 'UTF8')", hex::encode(text)),
        })
    }
}

fn micros(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Letters, digits and signs that mean themselves within quotes, under every setting and encoding.
const fn is_harmless(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b' ' | b'-' | b'_' | b'.' | b':' | b'/' | b',' | b'{' | b'}' | b'@' | b'+')
}

/// A statement and its values, ready to be sent.
#[derive(Debug, Clone)]
pub(super) struct Once {
    statement: &'static str,
    /// Of the prepared statement: the same text with the same types has the same name in every session.
    name: String,
    types: String,
    values: String,
}

impl Once {
    pub(super) fn new(statement: &'static str, values: &[Literal<'_>]) -> Result<Self, InvalidInput> {
        if statement.contains(';') {
            return Err(InvalidInput::new("statement", "holds a semicolon", "pass a single statement without one"));
        }
        let types: Vec<&str> = values.iter().map(|value| value.sql_type()).collect();
        let types = types.join(", ");
        let values = values.iter().map(|value| value.sql()).collect::<Result<Vec<_>, _>>()?.join(", ");
        let digest = Sha256::new().chain_update(&types).chain_update([0]).chain_update(statement).finalize();
        let mut name = String::from("saas_once_");
        for byte in digest.iter().take(16) {
            let _ = write!(name, "{byte:02x}");
        }
        Ok(Self { statement, name, types, values })
    }

    /// Its name among those that a session has prepared.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Prepares the statement, and the echo that shows whose answer it is.
    pub(super) fn prepare(&self) -> String {
        let Self { statement, name, types, .. } = self;
        let types = if types.is_empty() { String::new() } else { format!(" ({types})") };
        // The line break ends a comment that the statement may end with.
        format!("prepare {name}{types} as {statement}\n; prepare {name}_echo (bigint) as select $1")
    }

    /// Executes what is prepared.
    pub(super) fn execute(&self) -> String {
        let Self { name, values, .. } = self;
        let values = if values.is_empty() { String::new() } else { format!(" ({values})") };
        format!("execute {name}{values}")
    }

    /// Answers `nonce`.
    pub(super) fn echo(&self, nonce: u64) -> String {
        format!("execute {}_echo ({nonce})", self.name)
    }
}

/// Runs a statement at a place.
pub(super) async fn run(
    place: &Place,
    ctx: &dyn TenantContext,
    access: Access,
    once: &Once,
) -> Result<Vec<PgRow>, CoreError> {
    let failed = match access {
        Access::Write => CoreError::from_written_once,
        Access::Read | Access::Snapshot => CoreError::from_database,
    };
    let begin = place.begin(ctx, access);
    let mut rows = Guard::once(place, &begin, access, &[Part { bind: String::new(), once }], failed).await?;
    Ok(rows.pop().unwrap_or_default())
}

/// A statement of one message, and what binds the session to its tenant: as many statements for each part, and none for the
/// first.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub(super) bind: String,
    pub(super) once: &'a Once,
}

/// One writing statement of a tenant with its values, ready to be sent, alone or with those of other tenants.
///
/// See [`write_errands`](super::TenantWork::write_errands).
#[derive(Debug, Clone)]
pub struct Errand {
    ctx: RequestContext,
    once: Once,
}

impl Errand {
    /// Statement and values are those of [`write_once`](super::TenantWork::write_once).
    ///
    /// # Errors
    /// A statement with a semicolon, or a text with NUL.
    pub fn new(ctx: RequestContext, statement: &'static str, values: &[Literal<'_>]) -> Result<Self, InvalidInput> {
        Ok(Self { ctx, once: Once::new(statement, values)? })
    }

    /// Whose it is.
    #[must_use]
    pub const fn ctx(&self) -> &RequestContext {
        &self.ctx
    }

    /// Roughly how many bytes of a message it takes.
    #[must_use]
    pub fn size(&self) -> usize {
        const REST: usize = 256;
        self.once.values.len() + REST
    }

    pub(super) const fn once(&self) -> &Once {
        &self.once
    }
}

/// Runs errands in their order, in one transaction, at a place that all their tenants share. Each waits for a lock no longer
/// than `patience`.
pub(super) async fn run_errands(
    place: &Place,
    errands: &[&Errand],
    patience: Duration,
) -> Result<Vec<Vec<PgRow>>, CoreError> {
    let Some(first) = errands.first() else { return Ok(Vec::new()) };
    let patience = patience.as_millis().clamp(1, 2_147_483_647);
    let begin = format!("{}; set local lock_timeout = {patience}", place.begin(&first.ctx, Access::Write));
    let bind = |(n, errand): (usize, &&Errand)| if n == 0 { String::new() } else { place.bind(&errand.ctx) };
    let parts: Vec<Part<'_>> =
        errands.iter().enumerate().map(|(n, errand)| Part { bind: bind((n, errand)), once: &errand.once }).collect();
    Guard::once(place, &begin, Access::Write, &parts, CoreError::from_written_once).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_end_their_literal() {
        let hostile = "'; drop table project; --\\' $2 $$";
        let encoded = format!("convert_from(decode('{}', 'hex'), 'UTF8')", hex::encode(hostile));
        assert_eq!(Literal::Text(hostile).sql().unwrap(), encoded);
        for byte in 0..=127_u8 {
            let text = char::from(byte).to_string();
            let sql = Literal::Text(&text).sql().unwrap_or_default();
            let inner = sql.trim_start_matches("convert_from(decode(").trim_end_matches(", 'hex'), 'UTF8')");
            let inner = inner.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).unwrap_or_default();
            assert!(!inner.contains(['\'', '\\', '"', ';', '$', '\n']) && (byte == 0 || !inner.is_empty()), "{sql}");
        }
        assert_eq!(Literal::Text("k:1 {80,100}").sql().unwrap(), "'k:1 {80,100}'");
        assert_eq!(Literal::Integer(i64::MIN).sql().unwrap(), "(-9223372036854775808)");
        assert_eq!(Literal::Boolean(true).sql().unwrap(), "true");
    }

    #[test]
    fn no_text_ends_its_element_of_an_array() {
        let texts = [r#"a","b"#, r"\", "null", "", "}"].map(Literal::Text);
        assert_eq!(Literal::array(texts), r#"{"a\",\"b","\\","null","","}"}"#);
        assert_eq!(Literal::array([1, -2].map(Literal::Integer)), "{1,-2}");
        assert_eq!(Literal::array([Literal::Timestamp(DateTime::UNIX_EPOCH)]), "{1970-01-01T00:00:00.000000Z}");
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        Once::new("a; b", &[]).unwrap_err();
        Once::new("$1", &[Literal::Text("a\0b")]).unwrap_err();
    }

    #[test]
    fn a_name_stands_for_one_statement_with_one_set_of_types() {
        let name = |statement, values: &[Literal<'_>]| Once::new(statement, values).unwrap().name;
        let one = name("$1", &[Literal::Integer(1)]);
        assert_eq!(one, name("$1", &[Literal::Integer(2)]));
        assert_ne!(one, name("$1", &[Literal::Text("1")]));
        assert_ne!(one, name("$1 ", &[Literal::Integer(1)]));
        assert!(one.len() < 58, "room for the echo below PostgreSQL's 63");
    }
}
