//! Databases for tests and examples: real ones, migrated, and only ever reached as the roles of production.

use std::sync::{Mutex, OnceLock, PoisonError};

use sqlx::{ConnectOptions as _, PgConnection, postgres::PgConnectOptions};

use super::{
    DevServer, Purpose,
    admin::{Admin, PoolSizes, template_name, test_database_name},
    leaks,
};
use crate::{
    Actor, CoreError, RequestContext, Schema, SystemPool, SystemTx, TenantPool, TestClock, UserId,
    tenant::{self, NewTenant},
};

/// The instant at which every test begins.
const EPOCH: &str = "2026-01-15T12:00:00Z";

/// A database of its own for one test, cloned from a template and dropped with this value.
///
/// One server serves the whole process (or the whole run, where `SAAS_TEST_DATABASE_URL` names it); the template is built
/// once per schema state. The pools log in as `saas_app` and `saas_system`, so that row-level security binds a test as it
/// binds production.
///
/// ```
/// use saas_core::{TenantTx, testing::TestDatabase};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let database = TestDatabase::start(&[&saas_core::SCHEMA]).await;
/// let acme = database.create_tenant("acme").await;
/// let mut tx = TenantTx::begin(database.tenants(), &acme).await?;
/// let visible: i64 = sqlx::query_scalar("select count(*) from saas.tenant").fetch_one(&mut *tx).await?;
/// assert_eq!(visible, 1);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct TestDatabase {
    name: String,
    admin: Admin,
    tenants: TenantPool,
    system: SystemPool,
    clock: TestClock,
}

/// Options for a [`TestDatabase`].
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct TestDatabaseBuilder {
    sizes: PoolSizes,
    /// The URL of a server of the test's own.
    server: Option<String>,
}

impl TestDatabaseBuilder {
    /// Lets the pool of the application role open at most this many connections; 5 unless set.
    pub fn max_connections(mut self, connections: u32) -> Self {
        self.sizes.tenants = connections;
        self
    }

    /// Lets the pool of the system role open at most this many connections; 3 unless set.
    pub fn max_system_connections(mut self, connections: u32) -> Self {
        self.sizes.system = connections;
        self
    }

    /// Starts on this server, for a test that ends it. The database must be dropped before it.
    pub fn on(mut self, server: &DevServer) -> Self {
        self.server = Some(server.admin_url().to_owned());
        self
    }

    /// Starts the database.
    ///
    /// # Panics
    /// When it cannot be had, with the reason and what to do.
    pub async fn start(self, schemas: &[&'static Schema]) -> TestDatabase {
        or_panic(self.try_start(schemas).await)
    }

    /// Starts the database.
    ///
    /// # Errors
    /// [`CoreError::Misconfigured`] when no server can be had, as [`DevServer::start`]; whatever a migration refuses.
    pub async fn try_start(self, schemas: &[&'static Schema]) -> Result<TestDatabase, CoreError> {
        leaks::listen_if_asked();
        let admin = match &self.server {
            Some(url) => Admin::new(url)?,
            None => Admin::new(server()?.admin_url())?,
        };
        let template = template(&admin, schemas).await?;
        let name = test_database_name();
        admin.clone_template(&template, &name).await?;
        let (tenants, system) = admin.open(&name, schemas, self.sizes).await?;
        Ok(TestDatabase { name, admin, tenants, system, clock: TestClock::starting(EPOCH) })
    }
}

impl TestDatabase {
    /// Starts a database with the tables of `schemas`, in that order.
    ///
    /// # Panics
    /// When it cannot be had, with the reason and what to do.
    pub async fn start(schemas: &[&'static Schema]) -> Self {
        Self::builder().start(schemas).await
    }

    /// Starts from options.
    pub fn builder() -> TestDatabaseBuilder {
        TestDatabaseBuilder::default()
    }

    /// The pool of the application role.
    #[must_use]
    pub const fn tenants(&self) -> &TenantPool {
        &self.tenants
    }

    /// The pool of the system role.
    #[must_use]
    pub const fn system(&self) -> &SystemPool {
        &self.system
    }

    /// The test's clock; begins at 2026-01-15T12:00:00Z.
    #[must_use]
    pub const fn clock(&self) -> &TestClock {
        &self.clock
    }

    /// The database's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Registers a tenant, and makes a user up who acts in it.
    ///
    /// # Panics
    /// When the slug is invalid or taken.
    pub async fn create_tenant(&self, slug: &str) -> RequestContext {
        or_panic(self.try_create_tenant(slug).await)
    }

    async fn try_create_tenant(&self, slug: &str) -> Result<RequestContext, CoreError> {
        let now = crate::Clock::now(&self.clock);
        let new = NewTenant::new(slug.parse()?, slug)?;
        let mut tx = SystemTx::begin(&self.system, Actor::system("test"), "set a test up").await?;
        let tenant = tenant::create_in(&mut tx, &new, now).await?;
        tx.commit().await?;
        Ok(RequestContext::new_at(tenant, Actor::user(UserId::mint_at(now)), now))
    }

    /// A superuser's connection, for setting a test up and for looking behind the policies; never for the code under test.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn owner(&self) -> PgConnection {
        or_panic(self.admin.options(&self.name).connect().await.map_err(CoreError::from_database))
    }

    /// How to connect as the superuser, for what an administrator does: migrating, creating databases.
    #[must_use]
    pub fn owner_options(&self) -> PgConnectOptions {
        self.admin.options(&self.name)
    }

    /// How to connect as `role`, for pools with settings of their own, or through a [`Proxy`](super::Proxy).
    #[must_use]
    pub fn options(&self, role: &str) -> PgConnectOptions {
        self.admin.login(role, &self.name)
    }

    /// The URL for `role`, such as `saas_app`.
    #[must_use]
    pub fn url(&self, role: &str) -> String {
        self.options(role).to_url_lossy().into()
    }

    /// Host and port of the server, for a [`Proxy`](super::Proxy) in front of it.
    #[must_use]
    pub fn address(&self) -> (String, u16) {
        let options = self.admin.options(&self.name);
        (options.get_host().to_owned(), options.get_port())
    }
}

impl Drop for TestDatabase {
    /// On a thread with a runtime of its own, because a destructor cannot wait inside the test's. A failure leaves the
    /// database to the sweep of a later run.
    fn drop(&mut self) {
        let (admin, name) = (self.admin.clone(), self.name.clone());
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.is_ok_and(|runtime| runtime.block_on(admin.drop_database(&name)).is_ok())
        });
        drop(dropping.join());
    }
}

/// The process's server; its watchdog ends it with the process.
fn server() -> Result<&'static DevServer, CoreError> {
    static SERVER: OnceLock<Result<DevServer, CoreError>> = OnceLock::new();
    SERVER
        .get_or_init(|| DevServer::start(Purpose::Tests))
        .as_ref()
        .map_err(|error| CoreError::Misconfigured { what: "no server for tests".to_owned(), remedy: error.to_string() })
}

/// The template for `schemas`, looked up on each server once per process.
async fn template(admin: &Admin, schemas: &[&Schema]) -> Result<String, CoreError> {
    static KNOWN: Mutex<Vec<(u16, String)>> = Mutex::new(Vec::new());
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let found = (admin.options("").get_port(), template_name(schemas));
    if !known().contains(&found) {
        admin.sweep().await?;
        admin.build_template(&found.1, schemas).await?;
        known().push(found.clone());
    }
    Ok(found.1)
}

/// A test has no better answer than to fail with the reason.
#[track_caller]
#[expect(clippy::panic, reason = "a failed set-up fails the test")]
pub(super) fn or_panic<T>(result: Result<T, CoreError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => match std::error::Error::source(&error) {
            Some(cause) => panic!("{error}: {cause}"),
            None => panic!("{error}"),
        },
    }
}
