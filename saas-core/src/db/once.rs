//! One reading statement of a tenant in one round trip: begin, bind, read and commit as a single message.
//!
//! PostgreSQL takes several statements in one message only as text, so the values have to be written into it. Promises
//! that no value can end its literal, under any setting of the server: numbers are digits, everything else is
//! hexadecimal.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{Place, guard::Guard, place::Access};
use crate::{CoreError, InvalidInput, TenantContext};

/// A value in a statement of [`read_once`](super::TenantWork::read_once).
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

impl Literal<'_> {
    fn write(self, sql: &mut String) -> Result<(), InvalidInput> {
        use std::fmt::Write;
        let written = match self {
            Self::Uuid(id) => write!(sql, "'{id}'::uuid"),
            Self::Integer(number) => write!(sql, "({number})::bigint"),
            Self::Boolean(truth) => write!(sql, "{truth}"),
            Self::Timestamp(at) => {
                write!(sql, "(timestamptz 'epoch' + ({})::bigint * interval '1 microsecond')", at.timestamp_micros())
            }
            Self::Text(text) if text.contains('\0') => {
                return Err(InvalidInput::new("text value", "holds a NUL character", "remove it"));
            }
            Self::Text(text) => write!(sql, "convert_from(decode('{}', 'hex'), 'UTF8')", hex::encode(text)),
        };
        written.map_err(|_| InvalidInput::new("value", "cannot be written", "pass another one"))
    }
}

/// The statement with its values in place of `$1`, `$2`, ….
pub(super) fn compose(statement: &'static str, values: &[Literal<'_>]) -> Result<String, InvalidInput> {
    if statement.contains(';') {
        return Err(InvalidInput::new("statement", "holds a semicolon", "pass a single statement without one"));
    }
    let mut pieces = statement.split('$');
    let mut sql = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let digits = piece.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = piece.split_at(digits);
        let value =
            number.parse::<usize>().ok().and_then(|number| values.get(number.checked_sub(1)?)).ok_or_else(|| {
                InvalidInput::new(format!("placeholder `${number}`"), "has no value", "number placeholders from $1")
            })?;
        value.write(&mut sql)?;
        sql.push_str(rest);
    }
    Ok(sql)
}

/// Runs a composed statement.
pub(super) async fn run(place: &Place, ctx: &dyn TenantContext, statement: &str) -> Result<Vec<PgRow>, CoreError> {
    let begin = place.begin(ctx, Access::Read);
    Guard::read_once(&place.pool, &begin, statement).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_end_their_literal() {
        let hostile = "'; drop table project; --\\' $2 $$";
        let sql = compose("x $1, $2 where a = $10::text", &[Literal::Text(hostile); 10]).unwrap();
        let encoded = format!("convert_from(decode('{}', 'hex'), 'UTF8')", hex::encode(hostile));
        assert_eq!(sql, format!("x {encoded}, {encoded} where a = {encoded}::text"));
        assert_eq!(compose("$1", &[Literal::Integer(i64::MIN)]).unwrap(), "(-9223372036854775808)::bigint");
        assert_eq!(compose("$1", &[Literal::Boolean(true)]).unwrap(), "true");
    }

    #[test]
    fn what_cannot_be_composed_is_refused() {
        for statement in ["1; 2", "$1", "$0", "$", "$x"] {
            assert!(compose(statement, &[]).is_err(), "{statement}");
        }
        assert!(compose("$1", &[Literal::Text("a\0b")]).is_err());
    }
}
