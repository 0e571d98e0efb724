//! The isolation audit: looks through the database's catalogue for every known way around the fence.
//!
//! Each [`Finding`] names the object, says why it leaks, and carries the SQL that mends it. Usable at start-up, in an
//! adopter's CI and from an operator's terminal: it only reads the catalogue, which every role may.

use std::fmt;

use serde::Serialize;
use sqlx::PgPool;

use crate::{
    CoreError,
    db::{Guard, SchemaName, Sessions, Warm},
};

/// One way around the fence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A stable name, such as `view-as-owner`.
    pub code: String,
    /// What is wrong: a table, view, function, role, …
    pub object: String,
    /// Why that is a leak.
    pub reason: String,
    /// The SQL that mends it. Read it before you run it.
    pub mend: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}\n  mend: {}", self.code, self.object, self.reason, self.mend)
    }
}

/// The questions, by subject. Each returns code, object, reason, mend.
const QUESTIONS: &[&str] = &[
    include_str!("tables.sql"),
    include_str!("keys.sql"),
    include_str!("routes.sql"),
    include_str!("grants.sql"),
    include_str!("roles.sql"),
];

/// All questions see the database at one instant, name every object with its schema, and read `\` as it stands.
const SNAPSHOT: &str = "begin isolation level repeatable read read only;
    set local search_path = pg_catalog, pg_temp;
    set local standard_conforming_strings = on";

/// Looks for every known leak of the database that `pool` is connected to.
///
/// An empty answer means that none of the known ways is open, or that someone accepted what is, with a reason, by
/// `saas.accept_finding(code, object, reason)`. It looks at the catalogue, not at the adopter's code: a
/// statement that runs as another role, or SQL injection, is outside its sight.
///
/// # Errors
/// [`Misconfigured`](CoreError::Misconfigured) when the schema `saas` is missing or older than this binary;
/// [`Unavailable`](CoreError::Unavailable) when the database does not answer.
pub async fn examine(pool: &PgPool) -> Result<Vec<Finding>, CoreError> {
    look_through(pool, None).await
}

/// As [`examine`], but of tables, views, indexes, sequences and policies only those of one schema: among thousands of
/// schemas, one takes little longer for the others. Roles, functions and what else concerns the whole database are
/// examined either way.
///
/// # Errors
/// As [`examine`].
pub async fn examine_schema(pool: &PgPool, schema: &SchemaName) -> Result<Vec<Finding>, CoreError> {
    look_through(pool, Some(schema)).await
}

/// The questions read which schema is meant from a setting of their transaction.
const ONE_SCHEMA: &str = "select set_config('saas.examined_schema', $1, true)";

async fn look_through(pool: &PgPool, schema: Option<&SchemaName>) -> Result<Vec<Finding>, CoreError> {
    // Whose the sessions of this pool are is not known.
    let mut snapshot = Guard::begin(&Warm::new(pool.clone()), Sessions::Shared, SNAPSHOT).await?;
    let one = schema.map_or("", SchemaName::as_str);
    sqlx::query(ONE_SCHEMA).bind(one).execute(snapshot.connection_mut()).await.map_err(refused)?;
    let accepted: Vec<(String, String)> = sqlx::query_as("select code, object from saas.accepted_finding")
        .fetch_all(snapshot.connection_mut())
        .await
        .map_err(refused)?;
    let mut findings = Vec::new();
    for question in QUESTIONS {
        let rows: Vec<(String, String, String, String)> =
            sqlx::query_as(*question).fetch_all(snapshot.connection_mut()).await.map_err(refused)?;
        let open =
            rows.into_iter().filter(|(code, object, ..)| !accepted.iter().any(|a| a.0 == *code && a.1 == *object));
        findings.extend(open.map(|(code, object, reason, mend)| Finding { code, object, reason, mend }));
    }
    snapshot.rollback().await?;
    Ok(findings)
}

/// What the questions look into is made by migrations.
fn refused(error: sqlx::Error) -> CoreError {
    const NO_SUCH_TABLE: &str = "42P01";
    if error.as_database_error().and_then(|e| e.code()).as_deref() == Some(NO_SUCH_TABLE) {
        return CoreError::Misconfigured {
            what: "the schema `saas` of this database is missing, or older than this binary".into(),
            remedy: "run `saas_core::migrate` first".into(),
        };
    }
    CoreError::from_database(error)
}
