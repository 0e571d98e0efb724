//! A tenant with a limit, and processes that count its uses in Redis.

use std::{sync::Arc, time::Duration};

use saas_core::{
    IdempotencyKey, MeterKey, PlanCatalog, PlanKey, RequestContext, SharedClock, TenantContext, TenantPool,
    subscription::FixedPlan, testing::TestDatabase,
};
use saas_entitlements::{
    Balance, Consumption, Entitlements, EntitlementsError, LeaseStore, Meter, PostgresCounters, PostgresLeases,
    PostgresSource, Redis, RedisTier, SCHEMA, TierOptions,
};
use sqlx::types::Uuid;

pub(super) const CALLS: MeterKey = MeterKey::from_static("calls");
pub(super) const LIMIT: u64 = 10_000;

/// A tenth of the limit may be out, nothing is settled but when the test says so, and nothing dies of age meanwhile.
pub(super) fn by_hand() -> TierOptions {
    TierOptions::default()
        .with_exposed_share(10)
        .with_size(1, 1_000)
        .with_pause(Duration::ZERO)
        .with_answer_within(Duration::from_secs(10))
        .with_tick(Duration::from_secs(3_600))
        .with_life(Duration::from_secs(600))
}

/// What one process has.
pub(super) struct Till {
    pub(super) meter: Meter,
    pub(super) tier: RedisTier,
    gate: Entitlements,
}

impl Till {
    pub(super) fn open(pool: &TenantPool, clock: SharedClock, redis: Redis, options: TierOptions, limit: u64) -> Self {
        let catalog = PlanCatalog::from_toml(&format!(
            "default_plan = 'free'\n[meters.calls]\naggregation = 'sum'\n[plans.free]\nrank = 0\n\
             [[plans.free.versions]]\nversion = 1\n\
             limits.calls = {{ max = {limit}, window = 'lifetime', overage = 'block', warn = [50] }}",
        ))
        .unwrap();
        let binding = Arc::new(pool.clone());
        let plans = Arc::new(FixedPlan(PlanKey::from_static("free")));
        let gate = Entitlements::new(catalog, Arc::new(PostgresSource::new(binding.clone(), plans)), clock.clone());
        let tier = RedisTier::start(PostgresCounters::new(binding), redis, clock, options);
        Self { meter: Meter::new(gate.clone(), Arc::new(tier.clone())), tier, gate }
    }

    /// Counting that does not know of Redis, by the same gate.
    pub(super) fn on_postgresql(&self, shop: &Shop) -> Meter {
        let binding = Arc::new(shop.database.tenants().clone());
        Meter::new(self.gate.clone(), Arc::new(PostgresCounters::new(binding)))
    }

    pub(super) async fn r#use(
        &self,
        ctx: &RequestContext,
        amount: u64,
        key: &str,
    ) -> Result<Consumption, EntitlementsError> {
        let key: IdempotencyKey = key.parse().unwrap();
        self.meter.consume(ctx, &CALLS, amount, &key).await
    }

    /// Uses until a slice is lent, and returns how much that was.
    pub(super) async fn warm_up(&self, ctx: &RequestContext) -> u64 {
        let mut used = 0;
        while self.tier.stats().admitted == 0 {
            assert!(used < 10, "{:?}", self.tier.stats());
            assert!(self.r#use(ctx, 1, &format!("warm-up-{used}")).await.unwrap().is_granted());
            used += 1;
        }
        used
    }
}

pub(super) struct Shop {
    pub(super) database: TestDatabase,
    pub(super) ctx: RequestContext,
    pub(super) limit: u64,
}

impl Shop {
    pub(super) async fn open() -> Self {
        Self::with_limit(LIMIT).await
    }

    pub(super) async fn with_limit(limit: u64) -> Self {
        let database = TestDatabase::builder().max_connections(8).start(&[&saas_core::SCHEMA, &SCHEMA]).await;
        let ctx = database.create_tenant("acme").await;
        Self { database, ctx, limit }
    }

    pub(super) fn till(&self, redis: Redis, options: TierOptions) -> Till {
        Till::open(self.database.tenants(), Arc::new(self.database.clock().clone()), redis, options, self.limit)
    }

    /// What PostgreSQL says of the window.
    pub(super) async fn balance(&self) -> Balance {
        let used =
            self.number("select coalesce(sum(used), 0)::bigint from saas.usage_counter where tenant_id = $1").await;
        let held =
            self.number("select coalesce(sum(held), 0)::bigint from saas.usage_counter where tenant_id = $1").await;
        Balance { used, held }
    }

    pub(super) fn tenant(&self) -> Uuid {
        self.ctx.tenant().as_uuid()
    }

    /// One number about the tenant.
    pub(super) async fn number(&self, sql: &'static str) -> u64 {
        let number: i64 =
            sqlx::query_scalar(sql).bind(self.tenant()).fetch_one(&mut self.database.owner().await).await.unwrap();
        number.unsigned_abs()
    }

    /// Units that are written as used with their keys.
    pub(super) async fn recorded(&self) -> u64 {
        self.number(
            "select coalesce(sum(units), 0)::bigint from saas.usage_event where tenant_id = $1 and kind = 'consume'",
        )
        .await
    }

    /// Units that count as used because nobody knows, corrected by those of which it was found out later.
    pub(super) async fn stranded(&self) -> u64 {
        self.number(
            "select coalesce(sum(units), 0)::bigint from saas.usage_event
             where tenant_id = $1 and kind in ('stranded', 'correction')",
        )
        .await
    }

    /// Ends the lives of all slices, and counts what is not known of them as used.
    pub(super) async fn reclaim(&self) {
        sqlx::query("update saas.usage_lease set expires_at = created_at where tenant_id = $1")
            .bind(self.tenant())
            .execute(&mut self.database.owner().await)
            .await
            .unwrap();
        let store = PostgresLeases::new(Arc::new(self.database.tenants().clone()));
        store.reclaim(&self.ctx, saas_core::Clock::now(self.database.clock())).await.unwrap();
    }

    /// Every key has one event, every lease is accounted for, and the counter says what the events say.
    pub(super) async fn is_in_order(&self) {
        let doubled = "select count(*) from (
                select from saas.usage_event where tenant_id = $1 and kind = 'consume' group by meter, key having count(*) > 1
            ) d";
        assert_eq!(self.number(doubled).await, 0, "a key was counted twice");
        let lost = "select count(*) from saas.usage_lease
            where tenant_id = $1 and (ended_at is not null) <> (spent + returned + stranded = lent)";
        assert_eq!(self.number(lost).await, 0, "a lease is not accounted for");
        let drift = "select count(*) from saas.usage_counter c
            where c.tenant_id = $1 and (
                c.used <> (select coalesce(sum(units), 0) from saas.usage_event e where e.tenant_id = $1)
                or c.held <> (select coalesce(sum(lent - spent - returned), 0) from saas.usage_lease l
                              where l.tenant_id = $1 and l.ended_at is null))";
        assert_eq!(self.number(drift).await, 0, "the counter is not what events and leases say");
        let Balance { used, held } = self.balance().await;
        assert!(used + held <= self.limit, "{used} + {held} of {}", self.limit);
    }
}
