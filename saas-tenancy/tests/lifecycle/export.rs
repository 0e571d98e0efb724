//! What leaves with an export, and what never does.

use std::{pin::pin, sync::Arc};

use async_trait::async_trait;
use futures_util::poll;
use saas_core::{
    Actor, ApiKeyId, CoreError, ErrorKind, RequestContext, SCHEMA as CORE, SessionBinding, TenantContext, TenantPool,
    TenantTx, UserId, db::Place, testing::TestDatabase,
};
use saas_tenancy::{
    Role, TenancyError,
    export::{Exported, Exports, FileFormat, LocalFolder, Manifest},
};
use sha2::{Digest as _, Sha256};
use sqlx::Executor as _;

use crate::{
    stage::{Stage, TABLES},
    targets::{Folder, Memory},
};

async fn export(stage: &Stage, target: &Memory) -> Exported {
    stage.exports.run(&stage.a, target, &mut |_| ()).await.unwrap()
}

fn names(manifest: &Manifest) -> Vec<&str> {
    manifest.tables.iter().map(|table| table.name.as_str()).collect()
}

#[tokio::test]
async fn an_export_holds_the_rows_that_its_caller_alone_would_not_see() {
    let stage = Stage::start().await;
    let mut owner = stage.db.owner().await;
    owner
        .execute(
            "create table public.diary (
                 tenant_id uuid not null references saas.tenant (id), id int not null, owner_id uuid not null,
                 primary key (tenant_id, id));
             select saas.fence('public.diary');
             select saas.fence_rows('public.diary', 'owner_id', '{}')",
        )
        .await
        .unwrap();
    for (id, of) in [(1, stage.a.actor().person().unwrap().to_string()), (2, uuid::Uuid::from_u128(7).to_string())] {
        sqlx::query("insert into public.diary values ($1, $2, $3::text::uuid)")
            .bind(stage.acme.tenant.as_uuid())
            .bind(id)
            .bind(of)
            .execute(&mut owner)
            .await
            .unwrap();
    }
    let done = export(&stage, &Memory::default()).await;
    let diary = done.manifest.tables.iter().find(|table| table.name == "public.diary").unwrap();
    assert_eq!(diary.rows, 2);
}

#[tokio::test]
async fn an_export_holds_every_table_of_its_tenant_and_says_what_is_in_it() {
    let stage = Stage::start().await;
    let folder = Folder::new();
    let mut last = None;
    let target = LocalFolder::new(folder.path());
    let done = stage.exports.run(&stage.a, &target, &mut |now| last = Some(now.clone())).await.unwrap();

    let place = folder.path().join(stage.acme.tenant.to_string()).join(done.manifest.export.to_string());
    assert_eq!(done.place, place.display().to_string());
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(place.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest, done.manifest);
    assert_eq!((manifest.format_version, manifest.tenant), (1, stage.acme.tenant));
    assert_eq!(manifest.schema_versions["core"], CORE.version());
    for expected in [
        "public.project",
        "public.task",
        "public.event",
        "public.\"../Weird \"\"name\"\"\"",
        "saas.tenant",
        "saas.membership",
        "saas.audit",
    ] {
        assert!(names(&manifest).contains(&expected), "{expected} is not in {:?}", names(&manifest));
    }
    assert!(
        !names(&manifest).iter().any(|name| name.starts_with("public.event_")),
        "partitions leave with their parent"
    );
    let left_out: Vec<&str> = manifest.left_out.iter().map(|left| left.name.as_str()).collect();
    assert!(left_out.contains(&"saas.tenant_slug"), "{left_out:?}");

    let (mut bytes, mut files) = (0, vec![format!("{}/{}/manifest.json", manifest.tenant, manifest.export)]);
    for table in &manifest.tables {
        for file in &table.files {
            let contents = std::fs::read(place.join(&file.path)).unwrap();
            assert_eq!(contents.len() as u64, file.bytes, "{}", file.path);
            let digest: String = Sha256::digest(&contents).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(digest, file.sha256, "{}", file.path);
            let lines = String::from_utf8(contents).unwrap().matches('\n').count() as u64;
            assert_eq!(lines, table.rows + u64::from(file.format == FileFormat::Csv), "{}", file.path);
            bytes += file.bytes;
            files.push(format!("{}/{}/{}", manifest.tenant, manifest.export, file.path));
        }
    }
    files.sort();
    assert_eq!(folder.files(), files, "nothing but the manifest and what it names");
    assert_eq!(last.unwrap().bytes, bytes, "the last progress is the whole");
    let rows = |name: &str| manifest.tables.iter().find(|table| table.name == name).unwrap().rows;
    assert_eq!((rows("public.project"), rows("public.task"), rows("public.event")), (3, 15, 5));
    let log = stage.audited(stage.acme.tenant).await;
    assert_eq!(log[log.len() - 2..], ["tenant.export_started", "tenant.exported"]);
}

#[tokio::test]
async fn declared_secrets_stay_and_spreadsheets_run_nothing() {
    let stage = Stage::start().await;
    let target = Memory::default();
    let done = export(&stage, &target).await;
    let project = done.manifest.tables.iter().find(|table| table.name == "public.project").unwrap();
    assert_eq!(project.omitted_columns[0].name, "secret");
    assert_eq!(project.omitted_columns[0].reason, "a credential of the customer");
    for (path, contents) in target.files.lock().unwrap().iter() {
        let text = String::from_utf8_lossy(contents);
        assert!(!text.contains("project 0 secret"), "{path}");
    }
    let weird = "tables/public/-2e-2e-2f-57eird-20-22name-22";
    let csv = target.text(&format!("{weird}.csv"));
    assert_eq!(csv.lines().next().unwrap(), "tenant_id,'=1+1");
    assert!(csv.contains(",\"'=HYPERLINK(\"\"acme\"\")\"\r\n"), "{csv}");
    assert!(target.text(&format!("{weird}.jsonl")).contains(r#""=1+1":"=HYPERLINK(\"acme\")""#));
}

/// Without the `where` that every export names, the policies still hold.
#[tokio::test]
async fn row_level_security_alone_keeps_the_other_tenant_out() {
    let stage = Stage::start().await;
    stage
        .as_superuser(
            "create or replace function saas.open_export(target regclass, columns name[], of_tenant uuid)
             returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
             declare rows refcursor := 'saas_export';
             begin
                 open rows no scroll for execute format('select %s from %s',
                     (select string_agg(quote_ident(c), ', ') from unnest(columns) c), target);
             end $$",
        )
        .await;
    let target = Memory::default();
    let done = export(&stage, &target).await;
    assert_eq!(done.manifest.tables.iter().find(|table| table.name == "public.task").unwrap().rows, 15);
    let other = stage.b.tenant().to_string();
    for (path, contents) in target.files.lock().unwrap().iter() {
        let text = String::from_utf8_lossy(contents);
        assert!(!text.contains("globex") && !text.contains(&other), "{path} holds a row of the other tenant");
    }
}

// T8
#[tokio::test]
async fn a_table_without_a_fence_stops_the_export() {
    let stage = Stage::start().await;
    stage
        .as_superuser(
            "create table public.\"Open\" (tenant_id uuid not null); grant select on public.\"Open\" to saas_app;
             insert into public.\"Open\" select id from saas.tenant",
        )
        .await;
    let target = Memory::default();
    let error = stage.exports.run(&stage.a, &target, &mut |_| ()).await.unwrap_err();
    assert!(matches!(&error, TenancyError::Unfenced { table } if table == "public.\"Open\""), "{error}");
    assert_eq!((error.kind(), error.code()), (ErrorKind::Misconfigured, "table_unfenced"));
    assert_eq!(*target.state.lock().unwrap(), "aborted");
    stage.as_superuser("select saas.omit_from_export('public.\"Open\"', null, 'a scratch table')").await;
    let done = export(&stage, &Memory::default()).await;
    assert!(done.manifest.left_out.iter().any(|left| left.reason == "a scratch table"));
}

#[tokio::test]
async fn an_export_is_of_one_instant_whatever_is_written_meanwhile() {
    let stage = Stage::start().await;
    let (pool, ctx) = (stage.db.tenants().clone(), stage.a.clone());
    // Runs when the first file is created: the snapshot exists, and no row is read yet.
    let write = move || {
        let (pool, ctx) = (pool.clone(), ctx.clone());
        Box::pin(async move {
            let mut tx = TenantTx::begin(&pool, &ctx).await.unwrap();
            for statement in [
                "with moved as (delete from public.task where tenant_id = $1 and parent_id is not null)
                 update public.project set name = 'late' where tenant_id = $1",
                "insert into public.event values ($1, '2027-06-01', 'late')",
                "insert into saas.audit values ($1, gen_random_uuid(), now(), 'test', null, 'late', '', '{}')",
            ] {
                sqlx::query(statement).bind(ctx.tenant().as_uuid()).execute(&mut *tx).await.unwrap();
            }
            tx.commit().await.unwrap();
        }) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
    };
    let target = Memory { on_create: Some(Arc::new(Box::new(write))), ..Memory::default() };
    let done = export(&stage, &target).await;
    let rows = |name: &str| done.manifest.tables.iter().find(|table| table.name == name).unwrap().rows;
    assert_eq!((rows("public.project"), rows("public.task"), rows("public.event")), (3, 15, 5));
    for (path, contents) in target.files.lock().unwrap().iter() {
        assert!(!String::from_utf8_lossy(contents).contains("late"), "{path} holds what was written meanwhile");
    }
    let again = Memory::default();
    export(&stage, &again).await;
    assert!(again.text("tables/public/project.jsonl").contains("late"), "the write really happened");
}

#[test]
fn memory_does_not_grow_with_the_table() {
    const ROWS: i32 = 10_000;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stage = runtime.block_on(async {
        let stage = Stage::start().await;
        let mut tx = stage.begin(&stage.a).await;
        let insert = "insert into public.project (tenant_id, name)
                      select $1, n || repeat('x', 1000) from generate_series(1, $2) n";
        sqlx::query(insert).bind(stage.a.tenant().as_uuid()).bind(ROWS).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        stage
    });
    let target = Memory { counts_only: true, ..Memory::default() };
    let exports = stage.exports.clone().with_chunk(64 * 1024);
    let heap = allocation_counter::measure(|| {
        let done = runtime.block_on(exports.run(&stage.a, &target, &mut |_| ())).unwrap();
        let project = done.manifest.tables.iter().find(|table| table.name == "public.project").unwrap();
        assert_eq!(project.rows, 3 + ROWS as u64);
    });
    let (longest, written) = *target.counted.lock().unwrap();
    assert!(written > 20_000_000, "{written} bytes");
    assert!(longest < 66 * 1024, "a chunk of {longest} bytes");
    assert!(heap.bytes_max < 1 << 20, "{} bytes of heap at once", heap.bytes_max);
    runtime.block_on(async move { drop(stage) });
}

#[tokio::test]
async fn a_failed_or_cancelled_export_leaves_nothing_to_see() {
    let stage = Stage::start().await;
    let target = Memory { fails_at_file: Some(5), ..Memory::default() };
    let error = stage.exports.run(&stage.a, &target, &mut |_| ()).await.unwrap_err();
    assert_eq!((error.code(), error.is_retryable()), ("export_target", true));
    assert_eq!(*target.state.lock().unwrap(), "aborted");

    let folder = Folder::new();
    let local = LocalFolder::new(folder.path());
    let mut polls = 1;
    // Dropped at every poll until it is done before it is dropped.
    loop {
        let mut progress = |_: &_| ();
        let mut run = Box::pin(stage.exports.run(&stage.a, &local, &mut progress));
        let mut ready = false;
        for _ in 0..polls {
            ready = poll!(run.as_mut()).is_ready();
            if ready {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(run);
        if ready {
            break;
        }
        let published: Vec<String> = folder.files().into_iter().filter(|file| !file.contains(".partial/")).collect();
        assert!(
            published.is_empty() || published.iter().any(|file| file.ends_with("manifest.json")),
            "after {polls} polls: {published:?}"
        );
        polls = polls * 3 / 2 + 1;
    }
    assert!(polls > 20, "it was cancelled in the middle");
    local.remove_partial(stage.acme.tenant).await.unwrap();
    assert!(!folder.files().iter().any(|file| file.contains(".partial/")));
    assert!(folder.files().iter().any(|file| file.ends_with("manifest.json")));
    let mut idle = pin!(local.remove_partial(stage.b.tenant()));
    assert_eq!(idle.as_mut().await.unwrap(), 0, "a tenant without exports");
}

#[tokio::test]
async fn only_who_may_take_everything_may_export() {
    let stage = Stage::start().await;
    let admin = stage.tenancy.add_member(&stage.a, &"admin@acme.example".parse().unwrap(), Role::Admin).await.unwrap();
    let clock = stage.db.clock();
    let stranger = UserId::mint(clock);
    for (actor, code) in [
        (Actor::user(admin), "not_allowed"),
        (Actor::user(stranger), "not_a_member"),
        (Actor::ApiKey { id: ApiKeyId::mint(clock) }, "not_a_person"),
        (Actor::Impersonation { operator: stranger, user: stage.acme.owner }, "not_a_person"),
    ] {
        let ctx = RequestContext::new(stage.acme.tenant, actor, clock);
        let error = stage.exports.run(&ctx, &Memory::default(), &mut |_| ()).await.unwrap_err();
        assert_eq!(error.code(), code);
    }
    let operator = RequestContext::new(stage.acme.tenant, Actor::Operator { id: stranger }, clock);
    stage.exports.run(&operator, &Memory::default(), &mut |_| ()).await.unwrap();
}

/// Places every tenant in the pool it holds.
#[derive(Debug)]
struct Elsewhere(TenantPool);

#[async_trait]
impl SessionBinding for Elsewhere {
    async fn place(&self, _: &dyn TenantContext) -> Result<Place, CoreError> {
        Ok(Place::pooled(&self.0))
    }
}

#[tokio::test]
async fn the_applications_tables_come_from_where_the_tenant_is_placed() {
    let stage = Stage::start().await;
    let other = TestDatabase::start(&[&CORE]).await;
    let mut owner = other.owner().await;
    owner.execute(TABLES).await.unwrap();
    for script in [
        "insert into saas.tenant (id, slug, name, created_at) values ($1, 'stub', 'stub', now())",
        "insert into public.project (tenant_id, name) values ($1, 'from the other database')",
    ] {
        sqlx::query(script).bind(stage.acme.tenant.as_uuid()).execute(&mut owner).await.unwrap();
    }
    let exports =
        |pool: &TenantPool| -> Exports { stage.exports.clone().with_placements(Arc::new(Elsewhere(pool.clone()))) };
    let target = Memory::default();
    let done = exports(other.tenants()).run(&stage.a, &target, &mut |_| ()).await.unwrap();
    let project = target.text("tables/public/project.jsonl");
    assert!(project.contains("from the other database") && !project.contains("acme project"), "{project}");
    assert!(!target.text("tables/saas/tenant.jsonl").contains("stub"));
    assert_eq!(names(&done.manifest).iter().filter(|name| **name == "saas.tenant").count(), 1);

    // Placed in the control database itself: one snapshot, everything once.
    let here = exports(stage.db.tenants()).run(&stage.a, &Memory::default(), &mut |_| ()).await.unwrap();
    let plain = export(&stage, &Memory::default()).await;
    assert_eq!(names(&here.manifest), names(&plain.manifest));
}

#[cfg(feature = "object-store")]
mod into_objects {
    use object_store::{ObjectStore, ObjectStoreExt as _, memory::InMemory, path::Path};
    use saas_tenancy::export::ObjectTarget;

    use super::*;

    async fn listed(store: &InMemory) -> Vec<String> {
        use futures_util::TryStreamExt as _;
        let objects: Vec<_> = store.list(None).try_collect().await.unwrap();
        objects.into_iter().map(|object| object.location.to_string()).collect()
    }

    #[tokio::test]
    async fn an_export_in_an_object_store_has_the_same_files() {
        let stage = Stage::start().await;
        let store = Arc::new(InMemory::new());
        let target = ObjectTarget::new(store.clone(), Path::from("exports"));
        let done = stage.exports.run(&stage.a, &target, &mut |_| ()).await.unwrap();
        assert_eq!(done.place, format!("exports/{}/{}", done.manifest.tenant, done.manifest.export));
        let manifest = Path::from(format!("{}/manifest.json", done.place));
        let stored = store.get(&manifest).await.unwrap().bytes().await.unwrap();
        assert_eq!(serde_json::from_slice::<Manifest>(&stored).unwrap(), done.manifest);
        for file in done.manifest.tables.iter().flat_map(|table| &table.files) {
            let path = Path::from(format!("{}/{}", done.place, file.path));
            let contents = store.get(&path).await.unwrap().bytes().await.unwrap();
            let digest: String = Sha256::digest(&contents).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(digest, file.sha256, "{path}");
        }
    }

    #[tokio::test]
    async fn a_failed_export_leaves_no_object() {
        let stage = Stage::start().await;
        stage
            .as_superuser(
                "create table public.zzz (tenant_id uuid not null, n integer);
                 insert into public.zzz select id, 0 from saas.tenant;
                 select saas.fence('public.zzz');
                 create policy breaks on public.zzz as restrictive for select to saas_app using (1 / n = 1)",
            )
            .await;
        let store = Arc::new(InMemory::new());
        let target = ObjectTarget::new(store.clone(), Path::from("exports"));
        let mut begun = Vec::new();
        let run = stage.exports.run(&stage.a, &target, &mut |now| begun.push(now.table.clone())).await;
        assert_eq!(run.unwrap_err().code(), "statement");
        assert!(begun.contains(&"public.task".to_owned()), "other files were complete: {begun:?}");
        assert_eq!(listed(&store).await, Vec::<String>::new());
    }
}
