//! A connection that tries statements: each in a transaction of its own that is rolled back.
//!
//! The one place of the attack that sends formatted SQL: identifiers come quoted from the catalogue, values are quoted
//! here.

use saas_core::{CoreError, TenantId};
use sqlx::{Connection as _, PgConnection, Row as _, postgres::PgConnectOptions};

/// As whom a statement is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Tenant(TenantId),
    Nobody,
}

impl Who {
    /// What precedes the statement. Deferred constraints answer at once, since nothing is ever committed.
    pub(super) fn binding(self) -> String {
        match self {
            Self::Tenant(tenant) => {
                // As a job, which sees all rows of its tenant: what closes rows between members must not hide an open tenant.
                format!(
                    "begin; set local saas.tenant_id = '{tenant}'; set local saas.member = '*'; \
                     set constraints all immediate"
                )
            }
            Self::Nobody => "begin; set constraints all immediate".to_owned(),
        }
    }
}

/// How the database refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: String,
    pub(super) constraint: Option<String>,
    pub(super) message: String,
}

impl Refusal {
    /// The role or the row is not allowed.
    pub(super) fn is_denied(&self) -> bool {
        self.code == "42501"
    }

    /// A constraint stood in the way, which is asked after every policy.
    pub(super) fn is_constraint(&self) -> bool {
        matches!(self.code.as_str(), "23502" | "23503" | "23505" | "23514" | "23P01") && self.constraint.is_some()
    }

    /// A unique key or an exclusion constraint knew the value.
    pub(super) fn is_duplicate(&self) -> bool {
        matches!(self.code.as_str(), "23505" | "23P01")
    }

    pub(super) fn brief(&self) -> String {
        format!("{} {}", self.code, self.message)
    }
}

pub(super) type Answer<T> = Result<T, Refusal>;

#[derive(Debug)]
pub(super) struct Session {
    connection: PgConnection,
    /// A transaction that failed is still to be ended: with the next message, so that a refusal costs one round trip.
    failed: bool,
}

impl Session {
    pub(super) async fn open(options: &PgConnectOptions) -> Result<Self, CoreError> {
        let options = options.clone().options([("standard_conforming_strings", "on"), ("statement_timeout", "60s")]);
        let connection = PgConnection::connect_with(&options).await.map_err(CoreError::from_database)?;
        Ok(Self { connection, failed: false })
    }

    /// For the catalogue's questions, which take parameters.
    pub(super) const fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Tries a change; answers how many rows it touched. Nothing of it stays.
    pub(super) async fn change(&mut self, who: Who, statement: &str) -> Result<Answer<u64>, CoreError> {
        let answer = self.step(&format!("{}; {statement}; rollback", who.binding())).await?;
        self.failed = answer.is_err();
        Ok(answer)
    }

    /// Tries a question whose answer is one column of text. Nothing of it stays.
    pub(super) async fn ask(&mut self, who: Who, question: &str) -> Result<Answer<Vec<String>>, CoreError> {
        let answer = self.read(&format!("{}; {question}; rollback", who.binding())).await?;
        self.failed = answer.is_err();
        Ok(answer)
    }

    /// Runs statements as they are; answers how many rows they touched.
    pub(super) async fn step(&mut self, script: &str) -> Result<Answer<u64>, CoreError> {
        let script = self.begun(script);
        let result = sqlx::raw_sql(formatted(script)).execute(&mut self.connection).await;
        answer(result.map(|done| done.rows_affected()))
    }

    /// Runs statements as they are; answers the first column, text, of every row. A null reads as an empty text.
    pub(super) async fn read(&mut self, script: &str) -> Result<Answer<Vec<String>>, CoreError> {
        let script = self.begun(script);
        let result = sqlx::raw_sql(formatted(script)).fetch_all(&mut self.connection).await;
        let rows = answer(result)?;
        Ok(rows.map(|rows| {
            rows.iter()
                .map(|row| row.try_get_unchecked::<Option<String>, _>(0).ok().flatten().unwrap_or_default())
                .collect()
        }))
    }

    /// The script, after the end of a transaction that failed before it.
    fn begun(&mut self, script: &str) -> String {
        if std::mem::take(&mut self.failed) { format!("rollback; {script}") } else { script.to_owned() }
    }

    pub(super) async fn rollback(&mut self) -> Result<(), CoreError> {
        self.failed = false;
        sqlx::raw_sql("rollback").execute(&mut self.connection).await.map(drop).map_err(CoreError::from_database)
    }

    /// Runs what must succeed, such as a question of our own.
    pub(super) async fn must_read(&mut self, script: &str) -> Result<Vec<String>, CoreError> {
        self.read(script).await?.map_err(|refusal| unexpected(&refusal, script))
    }

    /// Runs what must succeed.
    pub(super) async fn must(&mut self, script: &str) -> Result<(), CoreError> {
        self.step(script).await?.map(drop).map_err(|refusal| unexpected(&refusal, script))
    }

    pub(super) async fn close(self) {
        drop(self.connection.close().await);
    }
}

fn unexpected(refusal: &Refusal, script: &str) -> CoreError {
    CoreError::Misconfigured {
        what: format!("the attack could not run `{script}`: {}", refusal.brief()),
        remedy: "give it a superuser of a test database for setting up".to_owned(),
    }
}

/// What the database refused is an answer; that it did not answer is an error.
fn answer<T>(result: Result<T, sqlx::Error>) -> Result<Answer<T>, CoreError> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) => match error.as_database_error() {
            // The server ended the connection.
            Some(database) if database.code().is_some_and(|code| code.starts_with("57P")) => {
                Err(CoreError::from_database(error))
            }
            Some(database) => Ok(Err(Refusal {
                code: database.code().unwrap_or_default().into_owned(),
                constraint: database.constraint().map(str::to_owned),
                message: database.message().to_owned(),
            })),
            None => Err(CoreError::from_database(error)),
        },
    }
}

/// A value as SQL.
pub(super) fn literal(value: Option<&str>) -> String {
    value.map_or_else(|| "null".to_owned(), |text| format!("'{}'", text.replace('\'', "''")))
}

#[expect(
    clippy::disallowed_types,
    reason = "a test's own statements on a test database: quoted by the catalogue (%I) or by `literal`"
)]
fn formatted(script: String) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(script)
}
