//! The superuser's side of a development server: templates, databases, logins. Nothing a test queries with.

use std::{fmt::Write as _, time::Duration};

use sha2::{Digest, Sha256};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, PgPool, postgres::PgConnectOptions};

use crate::{
    Clock as _, CoreError, RequestId, Schema, SystemClock, SystemPool, TenantPool,
    db::{migrate, pool_options},
};

/// The roles that tests and examples log in as.
pub(super) const LOGINS: [&str; 2] = ["saas_app", "saas_system"];
/// Where the server asks for a password, the roles of this development server get this one.
pub(super) const PASSWORD: &str = "saas-development";
/// Building a template and preparing logins happen one at a time on a server, whichever process asks.
const LOCK: &str = "select pg_advisory_lock(hashtextextended('saas.testing', 0))";
/// Databases of runs that were killed are removed once they are this old and nobody is connected.
const STALE: Duration = Duration::from_secs(3600);
/// Asks every connection to a database to end; answers how many there were.
const TERMINATE: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = $1";
const FORCE_LOOKS: usize = 50;
const TEST_PREFIX: &str = "saas_test_";
/// A full pool answers late only when a test holds its connections: soon enough to see which.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(20);

/// How many connections each pool may open.
#[derive(Debug, Clone, Copy)]
pub(super) struct PoolSizes {
    pub(super) tenants: u32,
    pub(super) system: u32,
}

impl Default for PoolSizes {
    fn default() -> Self {
        Self { tenants: 5, system: 3 }
    }
}

/// Superuser access to one server.
#[derive(Debug, Clone)]
pub(super) struct Admin {
    options: PgConnectOptions,
}

impl Admin {
    /// # Errors
    /// [`CoreError::Misconfigured`] when the URL cannot be read. It is never shown: it may hold a password.
    pub(super) fn new(url: &str) -> Result<Self, CoreError> {
        let options = url.parse::<PgConnectOptions>().map_err(|_| CoreError::Misconfigured {
            what: "the development server's URL is not understood".to_owned(),
            remedy: "use postgres://user:password@host:port/database".to_owned(),
        })?;
        Ok(Self { options })
    }

    /// How to reach `database` as the superuser.
    pub(super) fn options(&self, database: &str) -> PgConnectOptions {
        self.options.clone().database(database)
    }

    /// How to reach `database` as one of the foundation's roles.
    pub(super) fn login(&self, role: &str, database: &str) -> PgConnectOptions {
        self.options(database).username(role).password(PASSWORD)
    }

    async fn connect(&self) -> Result<PgConnection, CoreError> {
        PgConnection::connect_with(&self.options).await.map_err(CoreError::from_database)
    }

    /// Makes the template called `name`, unless the server has it.
    pub(super) async fn build_template(&self, name: &str, schemas: &[&Schema]) -> Result<(), CoreError> {
        let mut connection = self.connect().await?;
        // Held until the connection closes, whatever happens in between.
        sqlx::query(LOCK).execute(&mut connection).await.map_err(CoreError::from_database)?;
        let built = self.build_template_locked(&mut connection, name, schemas).await;
        close(connection).await;
        built
    }

    async fn build_template_locked(
        &self,
        connection: &mut PgConnection,
        name: &str,
        schemas: &[&Schema],
    ) -> Result<(), CoreError> {
        let exists = "select exists (select from pg_database where datname = $1)";
        if sqlx::query_scalar(exists).bind(name).fetch_one(&mut *connection).await.map_err(CoreError::from_database)? {
            return Ok(());
        }
        require_superuser(connection).await?;
        // Built under another name: a build that was killed half-way is never taken for a template.
        let building = format!("{name}_building");
        run(connection, &format!("drop database if exists {building} with (force)")).await?;
        run(connection, &format!("create database {building}")).await?;
        migrate(&self.options(&building), schemas).await?;
        self.prepare_logins(connection, &building).await?;
        run(connection, &format!("alter database {building} rename to {name}")).await
    }

    /// Makes sure that the foundation's roles can log in; sets a password only where the server asks for one and none is
    /// set.
    async fn prepare_logins(&self, connection: &mut PgConnection, database: &str) -> Result<(), CoreError> {
        for role in LOGINS {
            match self.login(role, database).connect().await {
                Ok(login) => close(login).await,
                Err(error) if is_refused_login(&error) => set_password(connection, role).await?,
                Err(error) => return Err(CoreError::from_database(error)),
            }
        }
        Ok(())
    }

    /// A fresh database with the schema of `template`.
    pub(super) async fn clone_template(&self, template: &str, database: &str) -> Result<(), CoreError> {
        let mut connection = self.connect().await?;
        // Copying files beats the default, which logs every page, for a database this small: 17 ms instead of 40.
        let create = format!("create database {database} template {template} strategy file_copy");
        let created = run(&mut connection, &create).await;
        close(connection).await;
        created?;
        // Privileges on the database itself are not cloned: an empty list of schemas sets just those again.
        migrate(&self.options(database), &[]).await
    }

    /// An empty database called `database` with `schemas` in it; one that exists is dropped first.
    pub(super) async fn recreate(&self, database: &str, schemas: &[&Schema]) -> Result<(), CoreError> {
        let mut connection = self.connect().await?;
        let created = async {
            require_superuser(&mut connection).await?;
            sqlx::query(LOCK).execute(&mut connection).await.map_err(CoreError::from_database)?;
            run(&mut connection, &format!("drop database if exists {database} with (force)")).await?;
            run(&mut connection, &format!("create database {database}")).await?;
            migrate(&self.options(database), schemas).await?;
            self.prepare_logins(&mut connection, database).await
        }
        .await;
        close(connection).await;
        created
    }

    /// Removes a database, and whoever is connected to it.
    pub(super) async fn drop_database(&self, database: &str) -> Result<(), CoreError> {
        let mut connection = self.connect().await?;
        // `with (force)` alone looks again after 100 ms; backends that were asked before are gone in one or two.
        let mut asked = Ok(1);
        for _ in 0..FORCE_LOOKS {
            asked = sqlx::query_scalar::<_, i64>(TERMINATE).bind(database).fetch_one(&mut connection).await;
            if !matches!(asked, Ok(1..)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let dropped = match asked {
            Ok(_) => run(&mut connection, &format!("drop database if exists {database} with (force)")).await,
            Err(error) => Err(CoreError::from_database(error)),
        };
        close(connection).await;
        dropped
    }

    /// Removes test databases of runs that were killed.
    pub(super) async fn sweep(&self) -> Result<(), CoreError> {
        let mut connection = self.connect().await?;
        let unused = "select datname::text from pg_database d
            where datname like 'saas\\_test\\_%'
              and not exists (select from pg_stat_activity a where a.datid = d.oid)";
        let names: Vec<String> =
            sqlx::query_scalar(unused).fetch_all(&mut connection).await.map_err(CoreError::from_database)?;
        for name in names.iter().filter(|name| is_stale(name)) {
            // Another process may sweep at the same time: `if exists`, and no force for one that came to life.
            run(&mut connection, &format!("drop database if exists {name}")).await?;
        }
        close(connection).await;
        Ok(())
    }

    /// Pools of the application role and of the system role, verified as in production.
    pub(super) async fn open(
        &self,
        database: &str,
        schemas: &[&Schema],
        sizes: PoolSizes,
    ) -> Result<(TenantPool, SystemPool), CoreError> {
        let pool = |role: &str, size: u32| -> PgPool {
            let options = pool_options().max_connections(size).acquire_timeout(ACQUIRE_TIMEOUT);
            options.connect_lazy_with(self.login(role, database))
        };
        let tenants = TenantPool::open(pool("saas_app", sizes.tenants), schemas).await?;
        let system = SystemPool::open(pool("saas_system", sizes.system), schemas).await?;
        Ok((tenants, system))
    }
}

/// A name for a test's database, which tells its age.
pub(super) fn test_database_name() -> String {
    format!("{TEST_PREFIX}{}", RequestId::mint(&SystemClock).as_uuid().simple())
}

/// Whether the id in the name was minted more than [`STALE`] ago.
fn is_stale(name: &str) -> bool {
    let minted = name.strip_prefix(TEST_PREFIX).and_then(|id| id.parse::<RequestId>().ok());
    let seconds = minted.and_then(|id| id.as_uuid().get_timestamp()).map(|at| at.to_unix().0);
    let now = u64::try_from(SystemClock.now().timestamp()).unwrap_or(0);
    seconds.is_some_and(|minted| now.saturating_sub(minted) > STALE.as_secs())
}

/// The same name for the same files, in whichever process.
pub(super) fn template_name(schemas: &[&Schema]) -> String {
    let mut hash = Sha256::new_with_prefix(concat!(env!("CARGO_PKG_VERSION"), include_str!("../db/roles.sql")));
    for schema in schemas {
        hash.update(schema.module);
        for migration in schema.migrations {
            hash.update(migration.version.to_be_bytes());
            hash.update(migration.name);
            hash.update(migration.sql);
        }
    }
    let digest = hash.finalize();
    digest.iter().take(8).fold("saas_template_".to_owned(), |mut name, byte| {
        // Writing into a string cannot fail.
        let _ = write!(name, "{byte:02x}");
        name
    })
}

/// Says it at once and plainly, before some later statement fails for want of a privilege.
async fn require_superuser(connection: &mut PgConnection) -> Result<(), CoreError> {
    let about = "select rolname::text, rolsuper from pg_roles where rolname = current_user";
    let (login, superuser): (String, bool) =
        sqlx::query_as(about).fetch_one(connection).await.map_err(CoreError::from_database)?;
    if superuser {
        return Ok(());
    }
    Err(CoreError::Misconfigured {
        what: format!(
            "the development server's login `{login}` is no superuser, and cannot create roles and databases"
        ),
        remedy: "name a superuser in the URL, or unset the variable to have a server started".to_owned(),
    })
}

fn is_refused_login(error: &sqlx::Error) -> bool {
    const REFUSED: [&str; 2] = ["28000", "28P01"];
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| REFUSED.contains(&code.as_ref()))
}

async fn set_password(connection: &mut PgConnection, role: &'static str) -> Result<(), CoreError> {
    let has_one = "select rolpassword is not null from pg_authid where rolname = $1";
    if sqlx::query_scalar(has_one).bind(role).fetch_one(&mut *connection).await.map_err(CoreError::from_database)? {
        return Err(CoreError::Misconfigured {
            what: format!("the server refuses `{role}` with the development password, and another one is set"),
            remedy: format!("use a server of its own for development, or: alter role {role} password '{PASSWORD}'"),
        });
    }
    run(connection, &format!("alter role {role} password '{PASSWORD}'")).await
}

/// Runs a statement that PostgreSQL takes no parameters for.
async fn run(connection: &mut PgConnection, statement: &str) -> Result<(), CoreError> {
    sqlx::raw_sql(vouched(statement)).execute(connection).await.map(drop).map_err(CoreError::from_database)
}

#[expect(clippy::disallowed_types, reason = "names minted or checked in this folder: lower-case letters, digits, `_`")]
fn vouched(statement: &str) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(statement.to_owned())
}

/// Says goodbye; a server that is gone already is as good.
async fn close(connection: PgConnection) {
    drop(connection.close().await);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SCHEMA;

    #[test]
    fn a_template_is_named_after_everything_that_shapes_it() {
        let name = template_name(&[&SCHEMA]);
        assert_eq!(name, template_name(&[&SCHEMA]));
        assert_eq!(name.len(), "saas_template_".len() + 16);
        assert_ne!(name, template_name(&[]));
        assert_ne!(name, template_name(&[&SCHEMA, &SCHEMA]));
    }

    #[test]
    fn only_names_that_prove_their_age_are_stale() {
        let old = RequestId::mint_at(SystemClock.now() - STALE - Duration::from_secs(60)).as_uuid().simple();
        assert!(is_stale(&format!("{TEST_PREFIX}{old}")));
        assert!(!is_stale(&test_database_name()));
        assert!(!is_stale("saas_test_of_someone"));
        assert!(!is_stale(&old.to_string()));
    }
}
