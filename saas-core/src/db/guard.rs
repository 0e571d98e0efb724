//! A pooled connection that goes back to its pool only when it has proven to be clean.
//!
//! `sqlx` 0.9 cannot always tell which answer belongs to which question: a `BEGIN` whose future was dropped half-way is
//! forgotten and the next user's statements join it; a dropped `COPY` shifts every later answer by one. So nothing here
//! believes an answer that does not carry the nonce of its question, and the connection is *suspect* from the first byte
//! of a question until that answer is complete. A suspect connection is closed, not returned.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures_util::TryStreamExt;
use sqlx::{
    Either, PgConnection, Row,
    postgres::{PgRow, PgTransactionManager},
};
use sqlx_core::{sql_str::SqlSafeStr, transaction::TransactionManager};

use super::{
    Place,
    binding::Sessions,
    once::Part,
    place::{Access, BINDS},
    served::Served,
    warm::{Taken, Warm},
};
use crate::CoreError;

/// One open transaction on one pooled connection.
pub(crate) struct Guard {
    /// `None` only while the guard is being taken apart.
    taken: Option<Taken>,
    home: Warm,
    /// An answer is outstanding: what state the connection is in is not known.
    suspect: bool,
    /// It has proven to be clean already, in the last message.
    proven: bool,
    sessions: Sessions,
    served: Option<Served>,
}

impl Guard {
    /// Takes a connection and opens a transaction with `begin`, which may hold several statements, in one round trip.
    pub(crate) async fn begin(home: &Warm, sessions: Sessions, begin: impl SqlSafeStr) -> Result<Self, CoreError> {
        let taken = Some(home.take().await.map_err(CoreError::from_database)?);
        let mut guard = Self { taken, home: home.clone(), suspect: true, proven: false, sessions, served: None };
        PgTransactionManager::begin(guard.connection_mut(), Some(begin.into_sql_str()))
            .await
            .map_err(CoreError::from_database)?;
        guard.suspect = false;
        Ok(guard)
    }

    /// As [`begin`](Self::begin), at a place. A session that has served enough schemas is closed when it is released.
    pub(super) async fn begin_at(place: &Place, begin: impl SqlSafeStr) -> Result<Self, CoreError> {
        let mut guard = Self::begin(&place.pool, place.sessions, begin).await?;
        guard.served = place.served();
        Ok(guard)
    }

    /// Commits, or says why nothing was stored, or that nobody knows.
    ///
    /// PostgreSQL answers a `COMMIT` of a failed transaction with success and the tag `ROLLBACK`, which the driver does
    /// not show: a caller that swallowed an error would believe that its writes are stored. The `select` in front fails
    /// in that state, and the `COMMIT` is then not run; its nonce shows that the answer is this question's. `and chain`
    /// leaves an empty transaction for the driver to end, which knows of none that was ended otherwise. The check that the
    /// release would make rides along, in that empty transaction: all of it costs one round trip.
    pub(super) async fn commit(mut self) -> Result<(), CoreError> {
        self.suspect = true;
        self.expect_open()?;
        let nonce = next_nonce();
        let mut message = with_nonce(nonce, "; commit and chain");
        if matches!((self.sessions, &self.served), (Sessions::Own, None)) {
            message = format!("{message}; {}", check(0));
        }
        let answered = self.ask_once(message, nonce, 0).await.map_err(CoreError::from_commit)?;
        if answered.is_none() {
            return Err(CoreError::OutcomeUnknown { cause: "the connection answered another question".into() });
        }
        self.suspect = false;
        Ok(())
    }

    /// Runs statements between `begin` and a commit, all in one message, and returns the rows of each. Where the session has not
    /// prepared them yet, that takes a message more; where sessions forget, they are prepared in the same one. `failed` says
    /// what an error means: it may stand in the place of the commit's answer.
    pub(super) async fn once(
        place: &Place,
        begin: &str,
        access: Access,
        parts: &[Part<'_>],
        failed: fn(sqlx::Error) -> CoreError,
    ) -> Result<Vec<Vec<PgRow>>, CoreError> {
        let Some(last) = parts.last() else { return Ok(Vec::new()) };
        let taken = place.pool.take().await.map_err(CoreError::from_database)?;
        let served = place.served();
        let nonce = next_nonce();
        let prepare = preparing(parts);
        let mut execute = String::new();
        for Part { bind, once } in parts {
            if !bind.is_empty() {
                execute.push_str(bind);
                execute.push_str("; ");
            }
            execute.push_str(&once.execute());
            execute.push_str("; ");
        }
        execute.push_str(&last.once.echo(nonce));
        let (first, end) = match (place.sessions, &served, access) {
            (Sessions::Shared, _, _) => (format!("{begin}; {}", prepare.join("; ")), "commit".to_owned()),
            // The check that the release would make rides along: it saves a round trip. Beside a flush to disk it is little;
            // whoever reads would wait for it. The nonce is the echo's alone.
            (Sessions::Own, None, Access::Write) => (begin.to_owned(), format!("commit; {}", check(0))),
            (Sessions::Own, Some(_), Access::Write) | (Sessions::Own, _, Access::Read | Access::Snapshot) => {
                (begin.to_owned(), "commit".to_owned())
            }
        };
        let (taken, home, sessions) = (Some(taken), place.pool.clone(), place.sessions);
        let mut guard = Self { taken, home, suspect: true, proven: false, sessions, served };
        let answered = guard.ask_once(format!("{first}; {execute}; {end}"), nonce, parts.len()).await;
        let rows = match (answered, prepare.as_slice()) {
            (Err(error), [prepare]) if is_not_prepared(&error) => {
                let again = format!("rollback; {begin}; {prepare}; {execute}; {end}");
                guard.ask_once(again, nonce, parts.len()).await
            }
            (Err(error), _) if is_not_prepared(&error) => {
                // It may know some of them.
                for prepare in &prepare {
                    let prepared = ask_for_nothing(guard.connection_mut(), format!("rollback; {prepare}")).await;
                    prepared.or_else(|error| if is_prepared(&error) { Ok(()) } else { Err(failed(error)) })?;
                }
                guard.ask_once(format!("{begin}; {execute}; {end}"), nonce, parts.len()).await
            }
            (answered, _) => answered,
        };
        let rows = rows.map_err(failed)?;
        let rows =
            rows.ok_or_else(|| failed(sqlx::Error::Protocol("the connection answered another question".into())))?;
        guard.suspect = false;
        Ok(rows)
    }

    /// The rows of the statements before the echo, when that answers the nonce. A check after the commit may prove the
    /// connection clean; what goes wrong with it, such as a session that has not prepared it, changes nothing that is stored.
    async fn ask_once(
        &mut self,
        message: String,
        nonce: u64,
        parts: usize,
    ) -> Result<Option<Vec<Vec<PgRow>>>, sqlx::Error> {
        let mut done: Vec<Vec<PgRow>> = Vec::new();
        let mut rows = Vec::new();
        let mut stream = sqlx::raw_sql(sqlx::AssertSqlSafe(message)).fetch_many(self.connection_mut());
        let ended = loop {
            match stream.try_next().await {
                Ok(Some(Either::Left(_))) => done.push(std::mem::take(&mut rows)),
                Ok(Some(Either::Right(row))) => rows.push(row),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        drop(stream);
        let Some(echo) = done.iter().rposition(|rows| answers(rows.first(), nonce)) else {
            return ended.map(|()| None);
        };
        // The commit follows the echo, and the check the commit.
        if done.len() < echo + 2 {
            return ended.map(|()| None);
        }
        self.proven = done.get(echo + 2).is_some_and(|rows| is_proven(rows.first())) && ended.is_ok();
        // The answer of the last part is right before the echo, and between two parts there is what binds the second.
        let answer = |part: usize| echo.checked_sub(1 + (parts - 1 - part) * (BINDS + 1));
        Ok((0..parts).map(|part| answer(part).and_then(|at| done.get_mut(at)).map(std::mem::take)).collect())
    }

    /// Rolls back and waits for the answer.
    pub(crate) async fn rollback(mut self) -> Result<(), CoreError> {
        self.suspect = true;
        self.expect_open()?;
        PgTransactionManager::rollback(self.connection_mut()).await.map_err(CoreError::from_database)?;
        self.suspect = false;
        Ok(())
    }

    /// A savepoint whose opening failed or was dropped makes the driver end the whole transaction, silently.
    fn expect_open(&self) -> Result<(), CoreError> {
        if PgTransactionManager::get_transaction_depth(self.connection()) == 0 {
            return Err(CoreError::Aborted {
                cause: "a savepoint inside it was dropped half-way, which ended it".into(),
            });
        }
        Ok(())
    }

    #[expect(clippy::expect_used, reason = "the connection is only taken in `drop`")]
    pub(super) fn connection(&self) -> &PgConnection {
        &self.taken.as_ref().expect("a guard has its connection until it is dropped").connection
    }

    #[expect(clippy::expect_used, reason = "the connection is only taken in `drop`")]
    pub(crate) fn connection_mut(&mut self) -> &mut PgConnection {
        &mut self.taken.as_mut().expect("a guard has its connection until it is dropped").connection
    }
}

/// Sends the connection home by way of a check, in the background, unless it was made already; or closes a suspect one.
impl Drop for Guard {
    fn drop(&mut self) {
        let Some(mut taken) = self.taken.take() else { return };
        let runtime = tokio::runtime::Handle::try_current();
        match (self.suspect, runtime) {
            (false, Ok(_)) if self.proven => {
                end(&mut taken.connection);
                self.home.give(taken);
            }
            (false, Ok(runtime)) => {
                let (home, sessions, served) = (self.home.clone(), self.sessions, self.served.take());
                runtime.spawn(Release { taken: Some(taken), home, clean: false, sessions, served }.go());
            }
            (true, _) | (_, Err(_)) => taken.connection.close_on_drop(),
        }
    }
}

/// Ends the driver's transaction, if it knows of one. Queued: sent with the next question, which is the pool's own when it
/// takes the connection back.
fn end(connection: &mut PgConnection) {
    PgTransactionManager::start_rollback(connection);
}

/// A connection on its way home: closed unless it proves clean, also when the runtime drops the task.
struct Release {
    /// `None` only once it is on its way.
    taken: Option<Taken>,
    home: Warm,
    clean: bool,
    sessions: Sessions,
    served: Option<Served>,
}

/// How long a connection may take to prove clean, a statement included that was still running when it was dropped.
const PATIENCE: Duration = Duration::from_secs(5);

impl Release {
    async fn go(mut self) {
        let Some(taken) = &mut self.taken else { return };
        let checked = is_clean(&mut taken.connection, self.sessions, self.served.as_ref());
        self.clean = tokio::time::timeout(PATIENCE, checked).await.unwrap_or(false);
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        let Some(mut taken) = self.taken.take() else { return };
        match self.sessions {
            _ if !self.clean => taken.connection.close_on_drop(),
            Sessions::Own => self.home.give(taken),
            // A pooler keeps its own sessions warm.
            Sessions::Shared => {}
        }
    }
}

/// Whether a connection is where it was when it was handed out: outside a transaction, bound to no tenant, as the same
/// role, without cursors, answering this question, and with room for another schema. Locks of the session are given up.
///
/// Over the simple protocol: only there do `transaction_timestamp()` and `statement_timestamp()` agree exactly when no
/// transaction is open, or one that the same message began. Settings that a statement without `local` made stay; those are the
/// application's own affair.
async fn is_clean(connection: &mut PgConnection, sessions: Sessions, served: Option<&Served>) -> bool {
    let nonce = next_nonce();
    // A rollback would take back what the session remembers of the schemas that it has served.
    if served.is_some() {
        end(connection);
    }
    // What is open ends in the same message, and leaves an empty transaction for the driver to end.
    let ended = if PgTransactionManager::get_transaction_depth(connection) == 0 { "" } else { "rollback and chain; " };
    let row = match (sessions, served) {
        (Sessions::Own, None) => {
            let checked = ask(connection, format!("{ended}{}", check(nonce))).await;
            match checked {
                Err(error) if is_not_prepared(&error) => {
                    let prepare = format!("prepare {CHECK} (bigint) as select $1{IS_CLEAN}");
                    ask(connection, format!("{ended}{prepare}; {}", check(nonce))).await
                }
                checked => checked,
            }
        }
        (Sessions::Own | Sessions::Shared, Some(served)) => {
            ask(connection, format!("{}, {}", with_nonce(nonce, IS_CLEAN), served.count())).await
        }
        (Sessions::Shared, None) => ask(connection, format!("{ended}{}", with_nonce(nonce, IS_CLEAN))).await,
    };
    end(connection);
    row.is_ok_and(|row| {
        answers(Some(&row), nonce)
            && is_proven(Some(&row))
            && served.is_none_or(|served| row.try_get(3).is_ok_and(|count| served.allows(count)))
    })
}

async fn ask(connection: &mut PgConnection, question: String) -> Result<PgRow, sqlx::Error> {
    sqlx::raw_sql(sqlx::AssertSqlSafe(question)).fetch_one(connection).await
}

/// The check, as a session of our own has it prepared: to plan it each time took longer than to make it.
const CHECK: &str = "saas_is_clean";

fn check(nonce: u64) -> String {
    format!("execute {CHECK} ({nonce})")
}

async fn ask_for_nothing(connection: &mut PgConnection, statements: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(connection).await.map(drop)
}

/// What prepares the statements of some parts, each once.
fn preparing(parts: &[Part<'_>]) -> Vec<String> {
    let mut names: Vec<&str> = Vec::new();
    let mut prepare = Vec::new();
    for Part { once, .. } in parts {
        if !names.contains(&once.name()) {
            names.push(once.name());
            prepare.push(once.prepare());
        }
    }
    prepare
}

fn is_prepared(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().is_some_and(|code| code == "42P05"))
}

fn is_not_prepared(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().is_some_and(|code| code == "26000"))
}

/// What follows a number in the select list of the check.
const IS_CLEAN: &str = ", transaction_timestamp() = statement_timestamp()
    and coalesce(current_setting('saas.tenant_id', true), '') = ''
    and coalesce(current_setting('saas.system', true), '') = ''
    and coalesce(current_setting('saas.member', true), '') = ''
    and current_user = session_user
    and not exists (select from pg_cursors where is_holdable), pg_advisory_unlock_all()::text";

fn is_proven(row: Option<&PgRow>) -> bool {
    row.is_some_and(|row| row.try_get(1).unwrap_or(false))
}

/// Distinguishes each question of this process from the ones before it.
fn next_nonce() -> u64 {
    static NONCE: AtomicU64 = AtomicU64::new(1 << 40);
    NONCE.fetch_add(1, Ordering::Relaxed)
}

/// Asks for the number, and for what follows.
fn with_nonce(nonce: u64, rest: &str) -> String {
    ["select ", &nonce.to_string(), "::bigint", rest].concat()
}

fn answers(row: Option<&PgRow>, nonce: u64) -> bool {
    row.is_some_and(|row| row.try_get::<i64, _>(0).is_ok_and(|answer| u64::try_from(answer) == Ok(nonce)))
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("suspect", &self.suspect).finish_non_exhaustive()
    }
}
