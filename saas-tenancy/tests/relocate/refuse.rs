//! Places that do not fit, fail or vanish: an error that says so, and a source that serves on.

use saas_core::{TenantContext, TenantTx};
use saas_tenancy::relocate::{Address, MoveError, Phase, State};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::world::{Rows, World, operator};

impl World {
    async fn try_move(&self, to: &Address) -> MoveError {
        self.mover.move_tenant(self.acme.tenant(), to, &operator(), &|_| {}).await.unwrap_err()
    }

    async fn change(&self, at: &Address, script: &str) {
        self.ways.connect(at).await.execute(AssertSqlSafe(script.to_owned())).await.unwrap();
    }

    /// The tenant works at its old place, and nothing of a move is left anywhere.
    async fn require_untouched(&self, before: &Rows) {
        let pooled = Address::pooled("control");
        assert_eq!(self.rows_at(&pooled, &self.acme).await, *before);
        assert_eq!(self.home().await.3, 0);
        let mut tx = TenantTx::begin(&*self.binding, &self.acme).await.unwrap();
        sqlx::query("update project set name = name where tenant_id = $1")
            .bind(self.acme.tenant().as_uuid())
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }
}

#[tokio::test]
async fn a_target_that_differs_is_named_before_anything_is_copied() {
    let world = World::start().await;
    let pooled = Address::pooled("control");
    let before = world.rows_at(&pooled, &world.acme).await;
    let schema = world.make_schema().await;
    for (change, back, code, part) in [
        (
            "alter table task add extra text",
            "alter table task drop extra",
            "tables_differ",
            "task has a column extra only in the target",
        ),
        (
            "alter table project alter name type varchar(9)",
            "alter table project alter name type text",
            "tables_differ",
            "project has a column name of another type: text and character varying(9)",
        ),
        (
            "alter type mood rename to temper",
            "alter type temper rename to mood",
            "tables_differ",
            "task has a column moods of another type: mood[] and temper[]",
        ),
        (
            "alter table entry rename to line",
            "alter table line rename to entry",
            "tables_differ",
            "line exists only in the target",
        ),
        (
            "alter table project add check (name <> '')",
            "alter table project drop constraint project_name_check",
            "tables_differ",
            "has a constraint only in the target: CHECK",
        ),
        ("create table loose (tenant_id uuid not null)", "drop table loose", "table_unmovable", "select saas.fence("),
    ] {
        world.change(&schema, change).await;
        let error = world.try_move(&schema).await;
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(part), "{error}");
        world.mover.roll_back(world.acme.tenant(), &|_| {}).await.unwrap();
        world.change(&schema, back).await;
    }
    world.require_untouched(&before).await;
    assert_eq!(world.traces_at(&pooled).await, 0);
    // With nothing left in the way, it goes.
    world.mover.move_tenant(world.acme.tenant(), &schema, &operator(), &|_| {}).await.unwrap();
}

#[tokio::test]
async fn rows_that_are_already_at_the_target_are_neither_overwritten_nor_cleared() {
    let world = World::start().await;
    let database = world.make_database().await;
    let tenant = world.acme.tenant();
    let script = format!("insert into project (tenant_id, name) values ('{tenant}', 'precious')");
    world.change(&database, &script).await;
    let error = world.try_move(&database).await;
    assert_eq!(error.code(), "target_not_empty", "{error}");
    world.mover.roll_back(tenant, &|_| {}).await.unwrap();
    assert_eq!(world.count_at(&database).await, 2, "the project, and the ring of its bell");
}

#[tokio::test]
async fn a_target_that_fails_leaves_the_source_serving_and_the_move_resumes_once_it_is_mended() {
    let world = World::start().await;
    let (pooled, database) = (Address::pooled("control"), world.make_database().await);
    let before = world.rows_at(&pooled, &world.acme).await;
    // As a full disk answers: at one of the last tables, when others have arrived.
    world
        .change(
            &database,
            "create function full_disk() returns trigger language plpgsql as $$ begin
            raise exception 'no space left on device' using errcode = 'disk_full'; end $$;
        create trigger full_disk before insert on task for each row execute function full_disk();
        alter table task enable always trigger full_disk",
        )
        .await;
    let error = world.try_move(&database).await;
    assert_eq!((error.code(), error.is_retryable()), ("target_refused", true), "{error}");
    assert!(error.to_string().starts_with("the target refused rows of task"), "{error}");
    world.require_untouched(&before).await;
    world.change(&database, "drop trigger full_disk on task").await;
    world.mover.resume(world.acme.tenant(), &|_| {}).await.unwrap();
    let after = world.rows_at(&database, &world.acme).await;
    assert_eq!(after, world.rows_at(&pooled, &world.acme).await);
    let count = |tables: &Rows| -> usize { tables.iter().map(|(_, rows, _)| rows).sum() };
    assert_eq!(count(&after), count(&before));
}

#[tokio::test]
async fn a_row_that_refers_to_what_the_target_lacks_is_refused_with_the_name_of_the_key() {
    let world = World::start().await;
    let (pooled, database) = (Address::pooled("control"), world.make_database().await);
    let before = world.rows_at(&pooled, &world.acme).await;
    world.change(&database, "delete from country where code = 'de'").await;
    let error = world.try_move(&database).await;
    assert_eq!(error.code(), "orphan_at_target");
    assert!(error.to_string().contains("project_country_fkey"), "{error}");
    world.mover.roll_back(world.acme.tenant(), &|_| {}).await.unwrap();
    world.require_untouched(&before).await;
    assert_eq!(world.count_at(&database).await, 0);
}

#[tokio::test]
async fn a_placement_that_disappeared_is_an_error_and_the_move_is_rolled_back_without_it() {
    let world = World::start().await;
    let (pooled, database) = (Address::pooled("control"), world.make_database().await);
    let before = world.rows_at(&pooled, &world.acme).await;
    let missing = Address::schema("control", "saas_t_missing");
    let error = world.try_move(&missing).await;
    assert_eq!(error.code(), "place_gone");
    assert!(error.to_string().contains("no schema `saas_t_missing`"), "{error}");
    world.mover.roll_back(world.acme.tenant(), &|_| {}).await.unwrap();

    // It vanishes in the middle of the move.
    let (second, name) = (world.ways.second.clone(), database.database.clone().unwrap());
    let vanish = move |phase: Phase| {
        if phase == Phase::Verify {
            let (second, name) = (second.clone(), name.clone());
            apart(async move {
                let mut admin = PgConnection::connect_with(&second).await.unwrap();
                admin.execute(AssertSqlSafe(format!("drop database if exists {name} with (force)"))).await.unwrap();
            });
        }
    };
    let tenant = world.acme.tenant();
    let error = world.mover.move_tenant(tenant, &database, &operator(), &|told| vanish(told.phase)).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    world.require_untouched(&before).await;
    assert_eq!(world.mover.resume(tenant, &|_| {}).await.unwrap_err().code(), "place_gone");
    world.mover.roll_back(tenant, &|_| {}).await.unwrap();
    world.require_untouched(&before).await;
    assert_eq!(world.traces_at(&pooled).await, 0);
    assert!(world.mover.find(tenant).await.unwrap().is_none());
}

#[tokio::test]
async fn a_tenant_has_one_move_at_a_time_and_only_what_fits_its_state_is_done() {
    let world = World::start().await;
    let (pooled, schema, database) =
        (Address::pooled("control"), world.make_schema().await, world.make_database().await);
    let tenant = world.acme.tenant();
    assert_eq!(world.try_move(&pooled).await.code(), "already_there");
    assert_eq!(world.mover.resume(tenant, &|_| {}).await.unwrap_err().code(), "no_move");
    assert_eq!(world.mover.confirm(tenant, &|_| {}).await.unwrap_err().code(), "no_move");
    world.mover.move_tenant(tenant, &schema, &operator(), &|_| {}).await.unwrap();
    assert_eq!(world.try_move(&database).await.code(), "move_under_way");
    assert_eq!(world.mover.roll_back(tenant, &|_| {}).await.unwrap_err().code(), "wrong_move_state");
    // Somebody changes the placement by hand: the source may be where the tenant lives, and is not cleared.
    let mut owner = world.db.owner().await;
    owner.execute("update saas.placement set generation = 7").await.unwrap();
    let rows = world.count_at(&pooled).await;
    assert_eq!(world.mover.confirm(tenant, &|_| {}).await.unwrap_err().code(), "placement_changed");
    assert_eq!(world.count_at(&pooled).await, rows);
    owner.execute("update saas.placement set generation = 1").await.unwrap();
    // The door of the old place was opened by hand: the same.
    owner.execute("update saas.resident set generation = 0, state = 'open'").await.unwrap();
    assert_eq!(world.mover.confirm(tenant, &|_| {}).await.unwrap_err().code(), "placement_changed");
    assert_eq!(world.count_at(&pooled).await, rows);
    assert_eq!(world.mover.find(tenant).await.unwrap().unwrap().state, State::Confirming);
}

#[tokio::test]
async fn a_login_that_row_level_security_binds_copies_nothing() {
    let world = World::start().await;
    let schema = world.make_schema().await;
    world
        .db
        .owner()
        .await
        .execute("do $$ begin create role weak_mover login; exception when duplicate_object then null; end $$")
        .await
        .unwrap();
    let weak = std::sync::Arc::new(crate::world::Ways {
        control: world.ways.control.clone().username("weak_mover"),
        second: world.ways.second.clone(),
        keeps_databases: false.into(),
    });
    let clock = std::sync::Arc::new(world.db.clock().clone());
    let mover = saas_tenancy::relocate::Mover::new(world.db.system().clone(), weak, clock);
    let error = mover.move_tenant(world.acme.tenant(), &schema, &operator(), &|_| {}).await.unwrap_err();
    assert_eq!(error.code(), "mover_not_privileged");
    assert!(error.to_string().ends_with("alter role weak_mover bypassrls"), "{error}");
}

/// Runs something to its end while the mover stands still.
pub(crate) fn apart(work: impl Future<Output = ()> + Send + 'static) {
    std::thread::spawn(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    })
    .join()
    .unwrap();
}
