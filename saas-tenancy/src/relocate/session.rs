//! A connection of a mover's own to one end: it sees every row, fires nobody's triggers, and shows values the same way on
//! both sides.

use std::time::Duration;

use saas_core::{CoreError, TenantId, db};
use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};

use super::{Endpoint, MoveError, error::Side};

/// What a database needs in which rows are copied from or to. A mover applies it where it is missing.
pub static CAPTURE: saas_core::Schema = saas_core::schema!("capture":
    1 "capture/0001_change",
    2 "capture/0002_complete",
);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How values are shown, for checksums and for the text format of `COPY`; no limits that are meant for requests; an error
/// instead of fewer rows where row-level security would bind the login after all.
const SETTINGS: [(&str, &str); 12] = [
    ("application_name", "saas mover"),
    ("row_security", "off"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("lock_timeout", "10s"),
    ("timezone", "UTC"),
    ("datestyle", "ISO, YMD"),
    ("intervalstyle", "postgres"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
    ("xmloption", "content"),
    ("lc_monetary", "C"),
];

#[derive(Debug)]
pub(super) struct Session {
    pub(super) connection: PgConnection,
    pub(super) side: Side,
}

impl Session {
    /// Connects, and makes sure of the login's rights.
    pub(super) async fn open(endpoint: &Endpoint, side: Side) -> Result<Self, MoveError> {
        let gone = |what: String, cause: Option<CoreError>, is_certain: bool| MoveError::PlaceGone {
            side,
            what,
            cause,
            is_certain,
        };
        let options = endpoint.login.clone().options(SETTINGS);
        let connection = tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await;
        let connection = connection.map_err(|_| gone("no answer in 30 s".into(), None, false))?;
        let connection = connection.map_err(|error| {
            // 3D000: there is no such database.
            let is_certain = error.as_database_error().and_then(|e| e.code()).is_some_and(|code| code == "3D000");
            let what = format!("no connection to database `{}`", endpoint.login.get_database().unwrap_or_default());
            gone(what, Some(CoreError::from_database(error)), is_certain)
        })?;
        let mut session = Self { connection, side };
        session.examine(endpoint).await?;
        Ok(session)
    }

    async fn examine(&mut self, endpoint: &Endpoint) -> Result<(), MoveError> {
        let side = self.side;
        let (login, sees_all): (String, bool) =
            sqlx::query_as("select rolname::text, rolsuper or rolbypassrls from pg_roles where rolname = current_user")
                .fetch_one(&mut self.connection)
                .await
                .map_err(CoreError::from_database)?;
        if !sees_all {
            let reason = "is bound by row-level security, so it would copy nothing";
            return Err(MoveError::NotPrivileged { side, reason, remedy: format!("alter role {login} bypassrls") });
        }
        let (has_schema, is_migrated): (bool, bool) = sqlx::query_as(
            "select to_regnamespace(quote_ident($1)) is not null, to_regclass('saas.resident') is not null",
        )
        .bind(&endpoint.schema)
        .fetch_one(&mut self.connection)
        .await
        .map_err(CoreError::from_database)?;
        if !has_schema {
            let what = format!("there is no schema `{}`", endpoint.schema);
            return Err(MoveError::PlaceGone { side, what, cause: None, is_certain: true });
        }
        if !is_migrated {
            let what = "the foundation's tables are missing: migrate saas_core there first".to_owned();
            return Err(MoveError::PlaceGone { side, what, cause: None, is_certain: true });
        }
        // Moving a row is not inserting it: triggers that send, count or stamp must not run a second time, and rows may
        // come in any order. What foreign keys and deferred constraints would have checked is compared or asked instead.
        sqlx::query("set session_replication_role = replica").execute(&mut self.connection).await.map_err(|error| {
            match CoreError::from_database(error) {
                CoreError::Forbidden { .. } => MoveError::NotPrivileged {
                    side,
                    reason: "may not switch triggers off for itself",
                    remedy: format!("grant set on parameter session_replication_role to {login}"),
                },
                other => other.into(),
            }
        })?;
        // Names of the place's own schema read the same on both sides; `public` is where extensions are.
        sqlx::query("select set_config('search_path', quote_ident($1) || ', public', false)")
            .bind(&endpoint.schema)
            .execute(&mut self.connection)
            .await
            .map_err(CoreError::from_database)?;
        Ok(())
    }

    /// Which database of which server this is, whatever name or proxy led to it.
    pub(super) async fn identity(&mut self) -> Result<(i64, i64), CoreError> {
        sqlx::query_as(
            "select system_identifier, (select oid::bigint from pg_database where datname = current_database())
             from pg_control_system()",
        )
        .fetch_one(&mut self.connection)
        .await
        .map_err(CoreError::from_database)
    }

    /// Takes a lock of this session, which ends with it. `None` when it was not to be had in time.
    pub(super) async fn lock(
        &mut self,
        tenant: TenantId,
        lock: Lock,
        patience: Duration,
    ) -> Result<Option<()>, CoreError> {
        self.set_patience(patience).await?;
        let taken = sqlx::query(lock.take()).bind(tenant.as_uuid()).execute(&mut self.connection).await;
        self.set_patience(Duration::from_secs(10)).await?;
        match taken {
            Ok(_) => Ok(Some(())),
            Err(error) if is_lock_timeout(&error) => Ok(None),
            Err(error) => Err(CoreError::from_database(error)),
        }
    }

    /// Keeps the application's migrations away from a schema for as long as this session lives.
    pub(super) async fn keep_tables(&mut self, schema: &str) -> Result<(), MoveError> {
        const SHARE: &str = "select pg_advisory_lock_shared(hashtextextended('saas.site:' || $1, 0))";
        match sqlx::query(SHARE).bind(schema).execute(&mut self.connection).await {
            Ok(_) => Ok(()),
            Err(error) if is_lock_timeout(&error) => {
                Err(MoveError::Busy { what: format!("the schema `{schema}`, which is being migrated,") })
            }
            Err(error) => Err(CoreError::from_database(error).into()),
        }
    }

    /// Gives up every lock of this session.
    pub(super) async fn unlock(&mut self) -> Result<(), CoreError> {
        self.run("select pg_advisory_unlock_all()").await
    }

    /// How long a statement waits for a lock.
    pub(super) async fn set_patience(&mut self, patience: Duration) -> Result<(), CoreError> {
        sqlx::query("select set_config('lock_timeout', $1, false)")
            .bind(patience.as_millis().to_string())
            .execute(&mut self.connection)
            .await
            .map(drop)
            .map_err(CoreError::from_database)
    }

    pub(super) async fn run(&mut self, statement: &'static str) -> Result<(), CoreError> {
        sqlx::raw_sql(statement).execute(&mut self.connection).await.map(drop).map_err(CoreError::from_database)
    }

    pub(super) async fn begin(&mut self) -> Result<(), CoreError> {
        self.run("begin").await
    }

    /// One view of the data for everything that follows.
    pub(super) async fn begin_snapshot(&mut self) -> Result<(), CoreError> {
        self.run("begin isolation level repeatable read").await
    }

    pub(super) async fn commit(&mut self) -> Result<(), CoreError> {
        // A COMMIT of a failed transaction answers with success; the statement in front fails then.
        self.run("select 1; commit").await
    }

    pub(super) async fn rollback(&mut self) -> Result<(), CoreError> {
        self.run("rollback").await
    }
}

/// Which lock of a tenant.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lock {
    /// Of the door: whoever has it knows that no transaction of the tenant is under way in this database.
    Door,
    /// Of the right to change what the target holds.
    Target,
    /// Of the right to have the source log its changes, or to stop it.
    Source,
}

impl Lock {
    const fn take(self) -> &'static str {
        match self {
            Self::Door => "select pg_advisory_lock(saas.door($1))",
            Self::Target => "select pg_advisory_lock(hashtextextended('saas.move:' || $1::uuid::text, 0))",
            Self::Source => "select pg_advisory_lock(hashtextextended('saas.move.source:' || $1::uuid::text, 0))",
        }
    }
}

pub(super) fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "55P03")
}

/// Creates what [`CAPTURE`] holds, if it is missing.
pub(super) async fn prepare(session: &mut Session, login: &PgConnectOptions) -> Result<(), MoveError> {
    let found: bool = sqlx::query_scalar("select to_regclass('saas._migrations_capture') is not null")
        .fetch_one(&mut session.connection)
        .await
        .map_err(CoreError::from_database)?;
    let applied: i64 = if found {
        sqlx::query_scalar(CAPTURE.version_query)
            .fetch_one(&mut session.connection)
            .await
            .map_err(CoreError::from_database)?
    } else {
        0
    };
    if applied < CAPTURE.version() {
        db::migrate(login, &[&CAPTURE]).await?;
    }
    Ok(())
}
