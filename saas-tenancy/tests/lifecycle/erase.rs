//! What an erasure takes, what it leaves, and that nothing stops it half-way.

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use async_trait::async_trait;
use futures_util::poll;
use saas_core::{
    Actor, CoreError, SystemTx, TenantContext, TenantId, TenantTx, UserId,
    dependents::{Dependent, Dependents},
};
use saas_tenancy::{
    NewTenant, TenancyError, VerifiedEmail,
    erase::{EraseState, EraseStep, Erasure, Erasures, Fate, SlugPolicy},
};
use sqlx::Executor as _;

use crate::stage::Stage;

fn operator() -> Actor {
    Actor::Operator { id: UserId::mint(&saas_core::SystemClock) }
}

fn erasures(stage: &Stage) -> Erasures {
    Erasures::new(stage.db.system().clone(), Arc::new(stage.db.clock().clone())).with_batch(3)
}

/// Asked for by one operator and approved by another.
async fn approved(stage: &Stage) -> Erasures {
    let erasures = erasures(stage);
    erasures.request(stage.acme.tenant, &operator(), "the customer asked", SlugPolicy::Keep).await.unwrap();
    erasures.approve(stage.acme.tenant, &operator()).await.unwrap();
    erasures
}

fn counts(erasure: &Erasure) -> BTreeMap<&str, (u64, u64)> {
    erasure.tables.iter().map(|table| (table.name.as_str(), (table.rows_erased, table.rows_kept))).collect()
}

/// A checksum of all of a tenant's rows in each table that has any, read behind the policies.
async fn checksums(stage: &Stage, tenant: TenantId) -> BTreeMap<String, String> {
    let mut owner = stage.db.owner().await;
    let tables: Vec<String> = sqlx::query_scalar(
        "select a.attrelid::regclass::text from pg_attribute a join pg_class c on c.oid = a.attrelid
         where a.attname = 'tenant_id' and c.relkind in ('r', 'p') and not c.relispartition",
    )
    .fetch_all(&mut owner)
    .await
    .unwrap();
    owner
        .execute(
            "create or replace function public.checksum(t regclass, of_tenant uuid) returns text language plpgsql as $$
             declare sum text; begin
                 execute format('select md5(string_agg(r::text, chr(10) order by r::text)) from %s r where tenant_id = $1', t)
                     into sum using of_tenant;
                 return sum;
             end $$",
        )
        .await
        .unwrap();
    let mut sums = BTreeMap::new();
    for table in tables {
        let sum: Option<String> = sqlx::query_scalar("select public.checksum($1::text::regclass, $2)")
            .bind(&table)
            .bind(tenant.as_uuid())
            .fetch_one(&mut owner)
            .await
            .unwrap();
        if let Some(sum) = sum {
            sums.insert(table, sum);
        }
    }
    sums
}

const KEPT: [&str; 5] = ["saas.audit", "saas.erasure", "saas.erasure_step", "saas.resident", "saas.tenant_status"];

async fn assert_erased(stage: &Stage) {
    let left = checksums(stage, stage.acme.tenant).await;
    let mut expected: Vec<&str> = KEPT.to_vec();
    expected.push("saas.tenant_slug");
    expected.sort_unstable();
    assert_eq!(left.keys().map(String::as_str).collect::<Vec<_>>(), expected);
    let mut owner = stage.db.owner().await;
    let names: (String, String, bool) = sqlx::query_as(
        "select name, slug, exists (select from saas.user_account where email = $2)
         from saas.tenant where id = $1",
    )
    .bind(stage.acme.tenant.as_uuid())
    .bind("owner@acme.example")
    .fetch_one(&mut owner)
    .await
    .unwrap();
    assert_eq!(names, ("erased".to_owned(), "acme".to_owned(), false));
}

#[tokio::test]
async fn an_erasure_takes_one_tenants_rows_and_touches_no_other() {
    let stage = Stage::start().await;
    for ctx in [&stage.a, &stage.b] {
        let mut owner = stage.db.owner().await;
        for statement in [
            "insert into saas.custom_domain (tenant_id, domain, token, state, claimed_at, verified_at)
             values ($1, 'd' || left($1::text, 36) || '.example', gen_random_uuid(), 'active', now(), now())",
            "insert into saas.active_domain select domain, tenant_id, now(), now() from saas.custom_domain where tenant_id = $1",
        ] {
            sqlx::query(statement).bind(ctx.tenant().as_uuid()).execute(&mut owner).await.unwrap();
        }
    }
    let before = checksums(&stage, stage.b.tenant()).await;
    assert!(before.len() > 10 && before.contains_key("saas.active_domain"), "{before:?}");
    let erasures = approved(&stage).await;
    let plan = erasures.plan(stage.acme.tenant).await.unwrap();
    assert!(plan.is_possible());
    let mut steps = Vec::new();
    let done = erasures.run(stage.acme.tenant, &mut |step| steps.push(step.clone())).await.unwrap();

    assert_eq!(checksums(&stage, stage.b.tenant()).await, before, "the other tenant's rows");
    assert_erased(&stage).await;
    assert_eq!(done.state, EraseState::Done);
    let counted = counts(&done);
    assert_eq!(counted["public.task"], (15, 0));
    assert_eq!(counted["public.project"], (3, 0));
    assert_eq!(counted["public.event"], (5, 0));
    assert_eq!(counted["saas.user_account"], (1, 0));
    assert!(counted["saas.audit"].1 >= 5, "{counted:?}");
    for planned in &plan.tables {
        match &planned.fate {
            Fate::Erase => assert_eq!(Some(counted[planned.name.as_str()].0), planned.rows, "{}", planned.name),
            Fate::Keep { reason } => {
                let table = done.tables.iter().find(|table| table.name == planned.name).unwrap();
                assert_eq!(table.kept_reason.as_deref(), Some(reason.as_str()));
            }
        }
    }
    // Bounded batches, and children before their parents.
    assert!(steps.iter().all(|step| !matches!(step, EraseStep::Erased { rows, .. } if *rows > 3)));
    let emptied = |name: &str| {
        steps.iter().position(|step| matches!(step, EraseStep::Emptied { table } if table == name)).unwrap()
    };
    assert!(emptied("public.task") < emptied("public.project"));
    assert_eq!(erasures.find(stage.acme.tenant).await.unwrap(), Some(done.clone()));

    // Nothing is left to do, and saying so changes nothing.
    assert_eq!(erasures.run(stage.acme.tenant, &mut |_| ()).await.unwrap(), done);
    let log = stage.audited(stage.acme.tenant).await;
    let erasing: Vec<&str> = log.iter().map(String::as_str).filter(|action| action.contains("erase")).collect();
    assert_eq!(erasing, ["tenant.erase_requested", "tenant.erase_approved", "tenant.erase_started", "tenant.erased"]);
}

#[tokio::test]
async fn a_dry_run_reports_and_changes_nothing() {
    let stage = Stage::start().await;
    let before = checksums(&stage, stage.acme.tenant).await;
    let plan = erasures(&stage).plan(stage.acme.tenant).await.unwrap();
    let rows = |name: &str| plan.tables.iter().find(|table| table.name == name).map(|table| (table.rows, &table.fate));
    assert_eq!(rows("public.task"), Some((Some(15), &Fate::Erase)));
    assert!(matches!(rows("saas.audit"), Some((Some(2..), Fate::Keep { .. }))));
    assert!(matches!(rows("saas.tenant_slug"), Some((Some(1), Fate::Keep { .. }))));
    assert_eq!(checksums(&stage, stage.acme.tenant).await, before);
    assert_eq!(erasures(&stage).find(stage.acme.tenant).await.unwrap(), None);
}

/// The process dies after every step, and in the middle of every one.
#[tokio::test]
async fn an_erasure_that_is_killed_anywhere_resumes_and_counts_exactly() {
    let stage = Stage::start().await;
    let before = checksums(&stage, stage.b.tenant()).await;
    approved(&stage).await;
    let plan = erasures(&stage).plan(stage.acme.tenant).await.unwrap();
    let (mut polls, mut killed) = (1, 0);
    let done = loop {
        // A new process each time.
        let erasures = erasures(&stage);
        let mut step = Box::pin(erasures.step(stage.acme.tenant));
        let mut outcome = None;
        for _ in 0..polls {
            if let std::task::Poll::Ready(ready) = poll!(step.as_mut()) {
                outcome = Some(ready.unwrap());
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(step);
        match outcome {
            Some(EraseStep::Done(done)) => break *done,
            // The next step is killed earlier, and then later and later.
            Some(_) => polls = 1,
            None => (polls, killed) = (polls * 2 + 1, killed + 1),
        }
    };
    assert!(killed > 50, "killed {killed} times");
    for planned in plan.tables.iter().filter(|table| table.fate == Fate::Erase) {
        assert_eq!(Some(counts(&done)[planned.name.as_str()].0), planned.rows, "{}", planned.name);
    }
    assert_erased(&stage).await;
    assert_eq!(checksums(&stage, stage.b.tenant()).await, before);
}

#[tokio::test]
async fn four_eyes_and_no_member_may_erase() {
    let stage = Stage::start().await;
    let erasures = erasures(&stage);
    let tenant = stage.acme.tenant;
    let (ada, bob) = (operator(), operator());
    for actor in [Actor::user(stage.acme.owner), Actor::system("cron")] {
        let error = erasures.request(tenant, &actor, "why", SlugPolicy::Keep).await.unwrap_err();
        assert_eq!(error.code(), "not_an_operator");
    }
    let code = |result: Result<(), TenancyError>| result.unwrap_err().code();
    assert_eq!(code(erasures.approve(tenant, &bob).await), "erasure_state");
    assert_eq!(code(erasures.request(tenant, &ada, "  ", SlugPolicy::Keep).await), "invalid_input");
    erasures.request(tenant, &ada, "contract ended", SlugPolicy::Keep).await.unwrap();
    assert_eq!(code(erasures.request(tenant, &bob, "again", SlugPolicy::Keep).await), "erasure_state");
    assert_eq!(code(erasures.approve(tenant, &ada).await), "same_operator");
    assert_eq!(erasures.step(tenant).await.unwrap_err().code(), "erasure_state", "not approved");
    erasures.withdraw(tenant, &ada).await.unwrap();
    assert_eq!(code(erasures.withdraw(tenant, &ada).await), "erasure_state");
    erasures.request(tenant, &ada, "contract ended", SlugPolicy::Keep).await.unwrap();
    erasures.approve(tenant, &bob).await.unwrap();
    // Nor does the database believe one pair of eyes.
    let mut owner = stage.db.owner().await;
    let forged = sqlx::query("update saas.erasure set approved_by = requested_by").execute(&mut owner).await;
    assert_eq!(forged.unwrap_err().into_database_error().unwrap().code().unwrap(), "23514");
    // Nor can a tenant write there.
    let mut tx = stage.begin(&stage.a).await;
    let forged = sqlx::query("delete from saas.erasure where tenant_id = $1").bind(tenant.as_uuid()).execute(&mut *tx);
    assert_eq!(forged.await.unwrap_err().into_database_error().unwrap().code().unwrap(), "42501");
    drop(tx);
    assert!(matches!(erasures.step(tenant).await.unwrap(), EraseStep::Begun));
    assert_eq!(code(erasures.withdraw(tenant, &ada).await), "erasure_state", "it has begun");
}

#[tokio::test]
async fn what_stands_in_the_way_is_named_before_anything_is_erased() {
    let cases: [(&'static str, &str, &str); 5] = [
        (
            "create table public.loose (tenant_id uuid not null, id uuid primary key, project_id uuid,
                 project_tenant uuid, foreign key (project_tenant, project_id) references public.project on delete cascade)",
            "public.loose",
            "without tenant_id",
        ),
        (
            "create table public.ledger (tenant_id uuid not null, n integer, primary key (tenant_id, n));
             select saas.fence('public.ledger', 'select, insert')",
            "public.ledger",
            "may not delete",
        ),
        ("create table public.open (tenant_id uuid not null)", "public.open", "no fence"),
        (
            "create table public.invoice (tenant_id uuid not null, project_id uuid not null,
                 primary key (tenant_id, project_id),
                 foreign key (tenant_id, project_id) references public.project on delete cascade);
             select saas.fence('public.invoice'), saas.retain('public.invoice', 'tax law')",
            "public.invoice",
            "is kept",
        ),
        (
            "create table public.egg (tenant_id uuid not null, id uuid, hen uuid, primary key (tenant_id, id));
             create table public.hen (tenant_id uuid not null, id uuid, egg uuid, primary key (tenant_id, id),
                 foreign key (tenant_id, egg) references public.egg);
             alter table public.egg add foreign key (tenant_id, hen) references public.hen;
             select saas.fence('public.egg'), saas.fence('public.hen')",
            "public.egg",
            "circle",
        ),
    ];
    for (script, table, reason) in cases {
        let stage = Stage::start().await;
        let erasures = approved(&stage).await;
        stage.as_superuser(script).await;
        let before = checksums(&stage, stage.acme.tenant).await;
        let error = erasures.step(stage.acme.tenant).await.unwrap_err();
        assert_eq!(error.code(), "erase_blocked");
        let TenancyError::EraseBlocked { obstacles, .. } = &error else { unreachable!("{error}") };
        assert!(
            obstacles.iter().any(|it| it.table == table && it.reason.contains(reason) && !it.remedy.is_empty()),
            "{obstacles:?}"
        );
        assert_eq!(checksums(&stage, stage.acme.tenant).await, before);
        assert!(!erasures.plan(stage.acme.tenant).await.unwrap().is_possible());
    }
}

#[derive(Debug)]
struct Subscribed;

#[async_trait]
impl Dependents for Subscribed {
    async fn find(&self, _: &mut SystemTx, _: TenantId) -> Result<Vec<Dependent>, CoreError> {
        Ok(vec![Dependent { what: "the subscription sub_1 is active".into(), remedy: "cancel it first".into() }])
    }
}

#[tokio::test]
async fn an_erasure_waits_for_what_depends_on_the_tenant() {
    let stage = Stage::start().await;
    let erasures = approved(&stage).await.with_dependents(Arc::new(Subscribed));
    let error = erasures.run(stage.acme.tenant, &mut |_| ()).await.unwrap_err();
    assert_eq!(error.to_string(), "the tenant cannot be erased: the subscription sub_1 is active; cancel it first");
    assert_eq!(erasures.find(stage.acme.tenant).await.unwrap().unwrap().state, EraseState::Approved);
    let fresh = erasures.request(stage.b.tenant(), &operator(), "why", SlugPolicy::Keep).await;
    assert_eq!(fresh.unwrap_err().code(), "erase_blocked");
}

#[tokio::test]
async fn a_tenant_whose_tables_are_elsewhere_is_refused() {
    let stage = Stage::start().await;
    let erasures = approved(&stage).await;
    let place = "insert into saas.placement (tenant_id, mode, cluster, database_name, generation, state, changed_at)
                 values ($1, 'database', 'control', 'acme', 1, 'active', now())";
    let mut owner = stage.db.owner().await;
    sqlx::query(place).bind(stage.acme.tenant.as_uuid()).execute(&mut owner).await.unwrap();
    let error = erasures.step(stage.acme.tenant).await.unwrap_err();
    assert!(error.to_string().contains("out of this erasure's reach"), "{error}");

    // Back again, but the copy there is not given up yet.
    for statement in [
        "delete from saas.placement where tenant_id = $1",
        "insert into saas.move (tenant_id, id, state, lease, generation, source, target, actor, started_at, changed_at)
         values ($1, gen_random_uuid(), 'switched', gen_random_uuid(), 1, '{}', '{}', 'test', now(), now())",
    ] {
        sqlx::query(statement).bind(stage.acme.tenant.as_uuid()).execute(&mut owner).await.unwrap();
    }
    let error = erasures.step(stage.acme.tenant).await.unwrap_err();
    assert!(error.to_string().contains("in two places"), "{error}");
}

#[tokio::test]
async fn a_failure_is_on_record_and_mended_it_goes_on() {
    let stage = Stage::start().await;
    let erasures = approved(&stage).await;
    stage
        .as_superuser(
            "create function public.refuse() returns trigger language plpgsql as $$
             begin raise exception 'no' using errcode = 'P0001'; end $$;
             create trigger refuse before delete on public.project for each row execute function public.refuse()",
        )
        .await;
    let error = erasures.run(stage.acme.tenant, &mut |_| ()).await.unwrap_err();
    assert_eq!(error.code(), "statement");
    let failed = erasures.find(stage.acme.tenant).await.unwrap().unwrap();
    assert_eq!((failed.state, failed.failure.as_deref()), (EraseState::Failed, Some("statement")));
    assert_eq!(counts(&failed)["public.task"], (15, 0), "what was erased stays counted");
    stage.as_superuser("drop trigger refuse on public.project").await;
    let done = erasures.run(stage.acme.tenant, &mut |_| ()).await.unwrap();
    assert_eq!((done.state, done.failure.as_deref()), (EraseState::Done, None));
    assert_eq!((counts(&done)["public.task"], counts(&done)["public.project"]), ((15, 0), (3, 0)));
    assert_erased(&stage).await;
}

/// A process that remembers the tenant writes after the last table was emptied, and once more when all is done.
#[tokio::test]
async fn what_is_written_meanwhile_is_erased_too() {
    let stage = Stage::start().await;
    let erasures = approved(&stage).await;
    let write = async || {
        let mut tx = stage.begin(&stage.a).await;
        let insert = "insert into public.project (tenant_id, name) values ($1, 'late')";
        sqlx::query(insert).bind(stage.acme.tenant.as_uuid()).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
    };
    loop {
        if let EraseStep::Emptied { table } = erasures.step(stage.acme.tenant).await.unwrap()
            && table == "public.project"
        {
            break;
        }
    }
    write().await;
    let done = erasures.run(stage.acme.tenant, &mut |_| ()).await.unwrap();
    assert_eq!(counts(&done)["public.project"], (4, 0));
    write().await;
    let again = erasures.run(stage.acme.tenant, &mut |_| ()).await.unwrap();
    assert_eq!((again.state, counts(&again)["public.project"]), (EraseState::Done, (5, 0)));
    assert_erased(&stage).await;
}

#[tokio::test]
async fn rows_that_refer_to_each_other_go_leaf_first_or_together() {
    let stage = Stage::start().await;
    let (tenant, mut tx) = (stage.acme.tenant.as_uuid(), stage.begin(&stage.a).await);
    // A chain of seven, a row that is its own parent, and two that are each other's.
    for statement in [
        "with recursive chain as (
             select gen_random_uuid() as id, null::uuid as parent, 1 as n, (select id from public.project where tenant_id = $1 limit 1) as project
             union all select gen_random_uuid(), id, n + 1, project from chain where n < 7)
         insert into public.task (tenant_id, id, project_id, parent_id) select $1, id, project, parent from chain",
        "insert into public.task (tenant_id, id, project_id, parent_id)
         select $1, '00000000-0000-0000-0000-000000000001', id, '00000000-0000-0000-0000-000000000001'
         from public.project where tenant_id = $1 limit 1",
        "insert into public.task (tenant_id, id, project_id, parent_id)
         select $1, a::uuid, (select id from public.project where tenant_id = $1 limit 1), b::uuid
         from (values ('00000000-0000-0000-0000-000000000002', '00000000-0000-0000-0000-000000000003'),
                      ('00000000-0000-0000-0000-000000000003', '00000000-0000-0000-0000-000000000002')) v (a, b)",
    ] {
        sqlx::query(statement).bind(tenant).execute(&mut *tx).await.unwrap();
    }
    tx.commit().await.unwrap();
    let done = approved(&stage).await.run(stage.acme.tenant, &mut |_| ()).await.unwrap();
    assert_eq!(counts(&done)["public.task"], (25, 0));
    assert_erased(&stage).await;
}

// T51
#[tokio::test]
async fn an_erased_tenant_is_never_served_again_and_its_name_is_kept_or_freed() {
    let stage = Stage::start().await;
    let revision = |tenant: TenantId| {
        let mut tx: Pin<Box<dyn Future<Output = SystemTx>>> = Box::pin(stage.begin_system());
        async move {
            let mut tx = (&mut tx).await;
            saas_core::revision::current_in(&mut tx, tenant).await.unwrap()
        }
    };
    let before = revision(stage.acme.tenant).await;
    let erasures = approved(&stage).await;
    assert_eq!(erasures.step(stage.acme.tenant).await.unwrap(), EraseStep::Begun);
    assert!(revision(stage.acme.tenant).await > before, "every gate loads anew");
    let refused = stage.tenancy.enter(stage.acme.tenant, stage.acme.owner).await.unwrap_err();
    assert_eq!(refused.code(), "not_a_member");
    erasures.run(stage.acme.tenant, &mut |_| ()).await.unwrap();
    assert_eq!(stage.tenancy.enter(stage.acme.tenant, stage.acme.owner).await.unwrap_err().code(), "not_a_member");

    let owner = VerifiedEmail::vouched("new@example.com".parse().unwrap());
    let new = |slug: &str| NewTenant::new(slug.parse().unwrap(), "New").unwrap();
    assert_eq!(stage.tenancy.create_tenant(&new("acme"), &owner).await.unwrap_err().code(), "slug_taken");

    erasures.request(stage.b.tenant(), &operator(), "why", SlugPolicy::Free).await.unwrap();
    erasures.approve(stage.b.tenant(), &operator()).await.unwrap();
    erasures.run(stage.b.tenant(), &mut |_| ()).await.unwrap();
    let taken = stage.tenancy.create_tenant(&new("globex"), &owner).await.unwrap();
    assert_ne!(taken.tenant, stage.b.tenant());
    // Erasing the old one once more does not take the name from its new owner.
    erasures.run(stage.b.tenant(), &mut |_| ()).await.unwrap();
    assert_eq!(stage.tenancy.create_tenant(&new("globex"), &owner).await.unwrap_err().code(), "slug_taken");
    stage.tenancy.enter(taken.tenant, taken.owner).await.unwrap();
}

#[tokio::test]
async fn the_account_of_someone_who_is_elsewhere_too_stays() {
    let stage = Stage::start().await;
    let shared = "shared@example.com".parse().unwrap();
    for ctx in [&stage.a, &stage.b] {
        stage.tenancy.add_member(ctx, &shared, saas_tenancy::Role::Member).await.unwrap();
    }
    approved(&stage).await.run(stage.acme.tenant, &mut |_| ()).await.unwrap();
    let mut owner = stage.db.owner().await;
    let accounts: Vec<String> =
        sqlx::query_scalar("select email from saas.user_account order by email").fetch_all(&mut owner).await.unwrap();
    assert_eq!(accounts, ["owner@globex.example", "shared@example.com"]);
    let again = TenantTx::begin(stage.db.tenants(), &stage.b).await.unwrap();
    drop(again);
}
