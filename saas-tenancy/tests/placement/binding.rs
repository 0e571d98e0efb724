//! Serving tenants where they live, and refusing where they cannot be served.

use std::time::Duration;

use saas_core::{CoreError, ErrorKind, RequestContext, TenantContext, TenantTx};
use saas_tenancy::placement::{
    ClusterName, Fairness, Mode, Placement, PlacementError, Placements, Site, State, Target, record,
};
use sqlx::{AssertSqlSafe, Executor};

use crate::stage::{PROJECT, Stage, add_project, projects};

impl Stage {
    async fn put(&self, placement: &Placement) {
        let mut tx = self.system("move a tenant by hand").await;
        record::put_in(&mut tx, placement, saas_core::Clock::now(self.db.clock())).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// Moves a pooled tenant on to the next generation, as a move does.
    async fn next_generation(&self, ctx: &RequestContext) {
        let now = Placement::implicit(ctx.tenant(), None);
        self.put(&Placement { generation: now.generation.next(), ..now }).await;
        let door = "insert into saas.resident (tenant_id, generation, state) values ($1, 1, 'open')";
        sqlx::query(door).bind(ctx.tenant().as_uuid()).execute(&mut self.db.owner().await).await.unwrap();
    }
}

/// The placement's own error inside what the binding answers.
fn inner(error: &CoreError) -> &PlacementError {
    match error {
        CoreError::Refused(refusal) => refusal.error().downcast_ref().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_disappeared_or_is_unknown_is_refused_with_what_to_do() {
    let stage = Stage::start().await;
    let provisioner = stage.provisioner(&[PROJECT]);
    let in_schema = stage.db.create_tenant("in-schema").await;
    let in_database = stage.db.create_tenant("in-database").await;
    for (ctx, target) in
        [(&in_schema, Target::Schema(ClusterName::control())), (&in_database, Target::Database(ClusterName::control()))]
    {
        provisioner.provision(ctx.tenant(), &target).await.unwrap();
        let site = target.site(ctx.tenant());
        let drop = match &site.schema {
            Some(schema) => format!("drop schema {schema} cascade"),
            None => format!("drop database {} with (force)", site.database.name.as_ref().unwrap()),
        };
        stage.db.owner().await.execute(AssertSqlSafe(drop)).await.unwrap();
        let placements = stage.serving(&[PROJECT]);
        let refused = add_project(&placements, ctx, "lost").await.unwrap_err();
        assert_eq!((refused.code(), refused.kind()), ("placement_disappeared", ErrorKind::Misconfigured));
        assert!(matches!(inner(&refused), PlacementError::Disappeared { site: lost, .. } if *lost == site));
    }
    let elsewhere = stage.db.create_tenant("elsewhere").await;
    let site = Site::database_of(elsewhere.tenant(), "mars".parse().unwrap());
    let unknown = Placement {
        mode: Mode::Database,
        site,
        schema_version: Some(1),
        ..Placement::implicit(elsewhere.tenant(), None)
    };
    stage.put(&unknown).await;
    let placements = stage.serving(&[PROJECT]);
    let refused = add_project(&placements, &elsewhere, "lost").await.unwrap_err();
    assert_eq!(refused.code(), "unknown_cluster");
    assert!(refused.to_string().contains("`mars`"), "{refused}");
    stage.put(&Placement { schema_version: None, ..unknown }).await;
    placements.forget(elsewhere.tenant());
    let refused = add_project(&placements, &elsewhere, "lost").await.unwrap_err();
    assert!(refused.to_string().contains("no version"), "{refused}");
    stage.finish().await;
}

// T43
#[tokio::test(flavor = "multi_thread")]
async fn one_tenant_cannot_take_what_all_share() {
    let stage = Stage::start().await;
    stage.shared_tables(&[PROJECT]).await;
    let fairness = Fairness::new(3, Duration::from_millis(20)).unwrap();
    let fairness = fairness.with_statement_timeout(Duration::from_secs(2));
    // Five connections in all.
    let placements = stage.placements().with_fairness(fairness).build();
    let (greedy, other) = (stage.db.create_tenant("greedy").await, stage.db.create_tenant("other").await);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(TenantTx::begin(&placements, &greedy).await.unwrap());
    }
    let refused = TenantTx::begin(&placements, &greedy).await.unwrap_err();
    assert_eq!((refused.code(), refused.is_retryable()), ("tenant_busy", true));
    assert!(matches!(inner(&refused), PlacementError::TenantBusy { limit: 3, .. }));
    add_project(&placements, &other, "served").await.unwrap();
    let slow = held[0].execute("select pg_sleep(30)").await.unwrap_err();
    assert_eq!(slow.as_database_error().unwrap().code().unwrap(), "57014", "statement timeout");
    drop(held);
    add_project(&placements, &greedy, "served").await.unwrap();
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_refuses_is_looked_up_anew_with_the_only_turn_given_back() {
    let stage = Stage::start().await;
    stage.shared_tables(&[PROJECT]).await;
    let placements = stage.placements().with_fairness(Fairness::new(1, Duration::ZERO).unwrap()).build();
    let ctx = stage.db.create_tenant("acme").await;
    add_project(&placements, &ctx, "before").await.unwrap();
    stage.next_generation(&ctx).await;
    assert_eq!(placements.placement(ctx.tenant()).await.unwrap().generation.get(), 0, "remembered");
    add_project(&placements, &ctx, "after").await.unwrap();
    assert_eq!(placements.placement(ctx.tenant()).await.unwrap().generation.get(), 1);
    assert_eq!(projects(&placements, &ctx).await.unwrap(), ["after", "before"]);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_not_remembered_and_a_placement_is_believed_for_its_time_only() {
    let stage = Stage::start().await;
    stage.shared_tables(&[PROJECT]).await;
    let ctx = stage.db.create_tenant("acme").await;
    let pooled = Placement::implicit(ctx.tenant(), None);
    let placements = stage.serving(&[PROJECT]);
    for (state, code) in [(State::Provisioning, "being_provisioned"), (State::Failed, "provisioning_failed")] {
        stage.put(&Placement { state, ..pooled.clone() }).await;
        assert_eq!(add_project(&placements, &ctx, "no").await.unwrap_err().code(), code);
    }
    stage.put(&Placement { state: State::Moving, ..pooled.clone() }).await;
    add_project(&placements, &ctx, "served while it is being moved").await.unwrap();
    let forgetful: Placements = stage.placements().with_memory(10, Duration::ZERO).build();
    add_project(&forgetful, &ctx, "active").await.unwrap();
    stage.put(&Placement { state: State::Failed, ..pooled }).await;
    assert_eq!(add_project(&forgetful, &ctx, "no").await.unwrap_err().code(), "provisioning_failed");
    stage.finish().await;
}
