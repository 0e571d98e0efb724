//! The isolation proof: an attack on an adopter's own tables, in the adopter's own test. Feature `testing`.
//!
//! [`attack`] reads from the catalogue what there is, fills it with rows of two tenants A and B through the foreign
//! keys, and then, logged in as the application, bound to A and bound to nobody, really tries to reach what is B's:
//! rows, keys, references, partitions, views, functions, sequences, plans, roles, large objects, whole tables. What
//! succeeds is a [`Leak`] with the statement that did it; what could not be tried is [`Unproven`], never skipped.
//!
//! ```no_run
//! # async fn test() -> Result<(), Box<dyn std::error::Error>> {
//! use saas_core::testing::TestDatabase;
//! use sqlx::Executor as _;
//!
//! let database = TestDatabase::start(&[&saas_core::SCHEMA, &saas_tenancy::SCHEMA]).await;
//! # const MY_MIGRATION: &str = "";
//! database.owner().await.execute(MY_MIGRATION).await?; // creates your tables and fences them
//! saas_tenancy::assert_isolated!(&database);
//! # Ok(()) }
//! ```
//!
//! It proves behaviour, `saas_core::doctor` reads structure: run both. A grant that leaks only together with another one
//! is a finding of the doctor and no leak here. Outside its sight: the application's own statements, injected SQL (which
//! can bind any tenant), extensions, and functions that run with their caller's rights, which can do no more than the
//! caller.

mod catalogue;
mod effects;
mod graph;
mod infer;
mod keys;
mod members;
mod moves;
mod partition;
mod plans;
mod questions;
mod report;
mod rows;
mod seed;
mod server;
mod session;
mod stage;
mod statement;
mod value;
mod writes;

use saas_core::{CoreError, SystemClock, TenantId, testing::TestDatabase};
use sqlx::postgres::PgConnectOptions;

pub use report::{Attack, Leak, Report, Unproven};

use catalogue::Catalogue;
use seed::{Planter, Recipes, Seeds};
use session::Session;
use stage::Stage;
use value::Side;

/// What to attack: a database for tests, by its superuser and by the application's login.
///
/// Made from a [`TestDatabase`], or by [`new`](Self::new) from two logins of a database that may be written to.
#[derive(Debug, Clone)]
pub struct Target {
    superuser: PgConnectOptions,
    application: PgConnectOptions,
    recipes: Recipes,
}

impl Target {
    /// A test database of one's own. The superuser sets up and looks behind the policies; the application's login attacks.
    #[must_use]
    pub fn new(superuser: PgConnectOptions, application: PgConnectOptions) -> Self {
        Self { superuser, application, recipes: Recipes::new() }
    }

    /// How to store one row of a tenant in `table` (with its schema, such as `public.invoice`), where its rules are beyond
    /// guessing: a statement in which `$1` stands for the tenant's id. It is run once for A and once for B.
    #[must_use]
    pub fn with_seed(mut self, table: impl Into<String>, statement: impl Into<String>) -> Self {
        self.recipes.insert(table.into(), statement.into());
        self
    }

    /// Attacks as another login, such as one of the adopter's own that is a member of `saas_app`.
    #[must_use]
    pub fn with_application(mut self, application: PgConnectOptions) -> Self {
        self.application = application;
        self
    }
}

impl From<&TestDatabase> for Target {
    fn from(database: &TestDatabase) -> Self {
        Self::new(database.owner_options(), database.options("saas_app"))
    }
}

/// Attacks a test database and reports what gave way.
///
/// Every attempt is rolled back, and the rows of A and B are removed at the end. Rows that belong to no tenant and that
/// others had to point at stay; sequences advance. Nobody else should write meanwhile.
///
/// # Errors
/// - [`Misconfigured`](CoreError::Misconfigured): the first login is no superuser, or the schema `saas` is missing.
/// - [`PrivilegedRole`](CoreError::PrivilegedRole): the application's login is superuser or `BYPASSRLS`; there is nothing to
///   prove then.
/// - [`Unavailable`](CoreError::Unavailable): the server does not answer.
pub async fn attack(target: impl Into<Target>) -> Result<Report, CoreError> {
    let target = target.into();
    let mut owner = Session::open(&target.superuser).await?;
    require_superuser(&mut owner).await?;
    let app = Session::open(&target.application).await?;
    let (mut app, login) = identify(app).await?;
    let catalogue = Catalogue::read(owner.connection(), &login).await?;
    let mut report = Report::default();
    let tenants = (TenantId::mint(&SystemClock), TenantId::mint(&SystemClock));
    let mut planter = Planter { app: &mut app, owner: &mut owner };
    let seeds = Seeds::plant(&mut planter, &catalogue, &target.recipes, tenants, &mut report).await?;
    let mut stage = Stage { app, owner, catalogue, seeds, report };
    let attacked = run(&mut stage).await;
    for side in [Side::A, Side::B] {
        stage.remove(side).await?;
    }
    attacked?;
    let Stage { app, owner, report, .. } = stage;
    app.close().await;
    owner.close().await;
    Ok(report)
}

async fn run(stage: &mut Stage) -> Result<(), CoreError> {
    stage.attack_presets().await?;
    stage.refresh().await?;
    stage.attack_by_marks().await?;
    stage.attack_rows().await?;
    stage.attack_keys().await?;
    stage.attack_members().await?;
    stage.attack_privileges().await?;
    stage.attack_sequences().await?;
    stage.attack_roles().await?;
    stage.attack_large_objects().await?;
    stage.attack_prepared_statements().await?;
    let watch = stage.watch().await?;
    stage.attack_side_effects(&watch).await?;
    stage.attack_functions(&watch).await?;
    let questions = stage.questions().await;
    let first = stage.answers(&questions).await?;
    let again = stage.answers(&questions).await?;
    stage.remove(Side::B).await?;
    stage.refresh().await?;
    let without = stage.answers(&questions).await?;
    stage.infer(&questions, &first, &again, &without);
    Ok(())
}

async fn require_superuser(owner: &mut Session) -> Result<(), CoreError> {
    let facts = owner
        .must_read(
            "select (select rolsuper from pg_roles where rolname = current_user)::text
             union all
             select (to_regclass('saas.global_table') is not null)::text",
        )
        .await?;
    let wrong =
        |what: &str, remedy: &str| Err(CoreError::Misconfigured { what: what.to_owned(), remedy: remedy.to_owned() });
    match facts.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["true", "true"] => Ok(()),
        ["true", _] => wrong("the database has no schema `saas` to attack", "run `saas_core::migrate` on it first"),
        _ => wrong(
            "the login that sets the attack up is no superuser, so it could not store rows of two tenants",
            "pass a superuser of a test database, never of one in use",
        ),
    }
}

/// The name of the application's login, if it is one that can be held at all.
async fn identify(mut app: Session) -> Result<(Session, String), CoreError> {
    let facts = app
        .must_read(
            "select session_user::text
             union all
             select (rolsuper or rolbypassrls)::text from pg_roles where rolname = session_user",
        )
        .await?;
    let mut facts = facts.into_iter();
    let login = facts.next().unwrap_or_default();
    if facts.next().as_deref() == Some("true") {
        return Err(CoreError::PrivilegedRole {
            role: login,
            reason: "it is superuser or BYPASSRLS, so it sees every tenant".to_owned(),
            remedy: "attack as the login that serves the application, such as `saas_app`".to_owned(),
        });
    }
    Ok((app, login))
}

/// Attacks a database and panics, with the report, unless everything was tried and nothing gave way.
///
/// Takes what [`attack`] takes: a `&TestDatabase` or a [`Target`]. Used in an `async` test.
#[macro_export]
macro_rules! assert_isolated {
    ($target:expr) => {
        match $crate::testing::attack($target).await {
            Ok(report) if report.is_isolated() => report,
            Ok(report) => panic!("tenants are not isolated\n{report}"),
            Err(error) => panic!("the attack could not be made: {error}"),
        }
    };
}
