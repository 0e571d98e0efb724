//! The whole story in the terminal: two tenants, a fence, prices, a limit, a purchase, a failed payment, a timeline.
//!
//! On a real PostgreSQL (the one that `DATABASE_URL` names, or one of its own) and a simulated Stripe that signs what it
//! sends. Every line that it prints is an answer of the library.

mod worker;

use std::{error::Error, sync::Arc, time::Instant};

use chrono::TimeDelta;
use saas_billing::{
    Billing, BillingConfig, Mode, ObjectId, SigningSecrets, WebhookProcessor,
    catalog::{OldPrices, PriceList},
    command::{Checkout, CheckoutPage},
    testing::{Chaos, StripeSimulator},
};
use saas_core::{
    Actor, Clock, FeatureKey, MeterKey, PageSize, PlanCatalog, RequestContext, SharedClock, SystemClock, TenantContext,
    TenantTx, TestClock, doctor, mail::Mailbox, outbox::Worker, revision, subscription::PlanSource,
    testing::DevDatabase, timeline,
};
use saas_entitlements::{Entitlements, Meter, PostgresCounters, PostgresSource, RevisionListener};
use saas_tenancy::{NewTenant, Tenancy, VerifiedEmail};
use sqlx::Executor;

const EXPORT: FeatureKey = FeatureKey::from_static("csv-export");
const CALLS: MeterKey = MeterKey::from_static("api-calls");

const CATALOG: &str = r#"
    default_plan = "free"

    [features.csv-export]
    kind = "boolean"
    fail = "closed"

    [features.api]
    kind = "metered"
    meter = "api-calls"
    fail = "closed"

    [meters.api-calls]
    aggregation = "sum"

    [plans.free]
    rank = 0
    [[plans.free.versions]]
    version = 1
    limits.api-calls = { max = 10, window = "month", overage = "block", warn = [80, 100] }

    [plans.pro]
    rank = 10
    [[plans.pro.versions]]
    version = 1
    prices = ["pro-monthly"]
    grants = { csv-export = true }
    limits.api-calls = { max = 10_000, window = "month", anchor = "billing", overage = "block", warn = [80, 100] }

    [products.pro]
    name = "Pro"
    [prices.pro-monthly]
    per = "flat"
    interval = "month"
    amounts = { eur = "29.00" }
"#;

/// What an application's own migration looks like: its table, and one line for the fence.
const PROJECTS: &str = "
    create table public.project (
        tenant_id  uuid not null references saas.tenant (id),
        id         uuid not null default gen_random_uuid(),
        name       text not null,
        primary key (tenant_id, id),
        unique (tenant_id, name)
    );
    create table public.task (
        tenant_id   uuid not null references saas.tenant (id),
        id          uuid not null default gen_random_uuid(),
        project_id  uuid not null,
        primary key (tenant_id, id),
        foreign key (tenant_id, project_id) references public.project (tenant_id, id)
    );
    select saas.fence('public.project'), saas.fence('public.task')";

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// Everything an application holds.
struct App {
    db: DevDatabase,
    clock: TestClock,
    stripe: Arc<StripeSimulator>,
    tenancy: Tenancy,
    billing: Billing,
    entitlements: Entitlements,
    meter: Meter,
    worker: Worker,
    mailbox: Mailbox,
    _listener: RevisionListener,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Outcome {
    let app = App::start().await?;
    chapter("Two tenants, each with its owner, in one transaction each");
    let (acme, globex) =
        (app.sign_up("acme", "ada@acme.example").await?, app.sign_up("globex", "bob@globex.example").await?);
    app.fence(&acme, &globex).await?;
    app.doctor().await?;
    app.prices().await?;
    app.limits(&acme).await?;
    let customer = app.purchase(&acme).await?;
    app.dunning(&acme, &customer).await?;
    app.history(&acme).await?;
    println!("\nDone. The database and the server of this run are gone when this program is.");
    Ok(())
}

impl App {
    async fn start() -> Outcome<Self> {
        let schemas = [&saas_core::SCHEMA, &saas_tenancy::SCHEMA, &saas_entitlements::SCHEMA, &saas_billing::SCHEMA];
        println!("Starting PostgreSQL and migrating …");
        let db = DevDatabase::start("quickstart", &schemas).await?;
        db.owner().await?.execute(PROJECTS).await?;

        let clock = TestClock::at(SystemClock.now());
        let shared: SharedClock = Arc::new(clock.clone());
        let stripe = Arc::new(StripeSimulator::new("whsec_quickstart_0123456789", clock.clone())?);

        let catalog = PlanCatalog::from_toml(CATALOG)?;
        let (tenants, system) = (Arc::new(db.tenants().clone()), db.system().clone());
        let config = BillingConfig::new(catalog.clone(), SigningSecrets::new(vec![stripe.secret()])?, Mode::Test);
        let billing = Billing::new(config, tenants.clone(), system.clone(), shared.clone());
        let source = PostgresSource::new(tenants.clone(), Arc::new(billing.clone()));
        let entitlements = Entitlements::new(catalog, Arc::new(source), shared.clone());
        let meter = Meter::new(entitlements.clone(), Arc::new(PostgresCounters::new(tenants.clone())));
        let listener = RevisionListener::start(entitlements.clone(), db.options("saas_app"));
        let mailbox = Mailbox::default();
        let worker = worker::worker((system.clone(), shared.clone()), &billing, &stripe, &mailbox);
        let tenancy = Tenancy::new((*tenants).clone(), system, shared);
        Ok(Self { db, clock, stripe, tenancy, billing, entitlements, meter, worker, mailbox, _listener: listener })
    }

    async fn sign_up(&self, slug: &str, email: &str) -> Outcome<RequestContext> {
        let owner = VerifiedEmail::vouched(email.parse()?);
        let created = self.tenancy.create_tenant(&NewTenant::new(slug.parse()?, slug)?, &owner).await?;
        let ctx = self.tenancy.enter(created.tenant, created.owner).await?;
        println!(
            "{slug}: tenant {}, {email} is its {}",
            ctx.tenant(),
            ctx.role().map_or("guest", |role| role.as_str())
        );
        Ok(ctx)
    }

    async fn fence(&self, acme: &RequestContext, globex: &RequestContext) -> Outcome {
        chapter("The database keeps them apart");
        let (a, b) = (acme.tenant().as_uuid(), globex.tenant().as_uuid());
        for (ctx, id) in [(acme, a), (globex, b)] {
            let mut tx = TenantTx::begin(self.db.tenants(), ctx).await?;
            sqlx::query("insert into project (tenant_id, name) values ($1, 'Apollo')")
                .bind(id)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
        }
        println!("both store a project named Apollo: the names do not collide");

        let mut tx = TenantTx::begin(self.db.tenants(), acme).await?;
        let seen: i64 = sqlx::query_scalar("select count(*) from project").fetch_one(&mut *tx).await?;
        println!("acme selects every project: {seen} row");
        let update =
            sqlx::query("update project set name = 'x' where tenant_id = $1").bind(b).execute(&mut *tx).await?;
        println!("acme updates globex's project: {} rows", update.rows_affected());
        drop(tx);
        for (what, sql) in [
            ("acme inserts a project for globex", "insert into project (tenant_id, name) values ($2, 'planted')"),
            ("acme moves its project to globex", "update project set tenant_id = $2 where tenant_id = $1"),
            (
                "acme refers to a project it does not have",
                "insert into task (tenant_id, project_id) values ($1, coalesce((select id from project where tenant_id = $2), gen_random_uuid()))",
            ),
        ] {
            let mut tx = TenantTx::begin(self.db.tenants(), acme).await?;
            let refused = sqlx::query(sql).bind(a).bind(b).execute(&mut *tx).await;
            println!(
                "{what}: {}",
                refused.err().map_or("done!".into(), |error| saas_core::CoreError::from_database(error).to_string())
            );
        }
        let seen: i64 = sqlx::query_scalar("select count(*) from project").fetch_one(self.db.tenants().pool()).await?;
        println!("a query without a tenant: {seen} rows");
        Ok(())
    }

    async fn doctor(&self) -> Outcome {
        chapter("The isolation audit");
        println!("findings: {}", doctor::examine(self.db.tenants().pool()).await?.len());
        let mut owner = self.db.owner().await?;
        println!("someone adds a view for a report …");
        owner.execute("create view public.all_projects as select * from public.project; grant select on public.all_projects to saas_app").await?;
        for finding in doctor::examine(self.db.tenants().pool()).await? {
            println!("{finding}");
        }
        owner.execute("drop view public.all_projects").await?;
        Ok(())
    }

    async fn prices(&self) -> Outcome {
        chapter("The plans, brought to Stripe");
        let list = PriceList::from_toml(CATALOG, &PlanCatalog::from_toml(CATALOG)?)?;
        println!("{}", self.billing.plan_prices(self.stripe.as_ref(), &list, OldPrices::Keep).await?);
        let operator = Actor::system("deployment");
        self.billing.apply_prices(self.stripe.as_ref(), &list, OldPrices::Keep, &operator).await?;
        println!("applied. {}", self.billing.plan_prices(self.stripe.as_ref(), &list, OldPrices::Keep).await?);
        Ok(())
    }

    async fn limits(&self, ctx: &RequestContext) -> Outcome {
        chapter("The free plan");
        self.clock.advance(TimeDelta::minutes(1));
        println!("{}", self.entitlements.explain(ctx.tenant(), &EXPORT).await?);
        for n in 1..=11 {
            let used = self.meter.consume(ctx, &CALLS, 1, &format!("call-{n}").parse()?).await?;
            println!("call {n:>2}: {used}");
        }
        println!("call 11 again, then call 1 again: {}; {}", self.again(ctx, 11).await?, self.again(ctx, 1).await?);
        self.post().await
    }

    async fn again(&self, ctx: &RequestContext, n: u32) -> Outcome<String> {
        Ok(self.meter.consume(ctx, &CALLS, 1, &format!("call-{n}").parse()?).await?.to_string())
    }

    async fn purchase(&self, ctx: &RequestContext) -> Outcome<ObjectId> {
        chapter("A purchase, whose events arrive shuffled and twice");
        self.clock.advance(TimeDelta::minutes(1));
        let price = self.billing.price("pro-monthly", "eur".parse()?).await?;
        let address = || "https://app.example.com/billing".parse();
        let page = CheckoutPage::new(price, Some(1), address()?, address()?);
        let stripe = self.stripe.as_ref();
        // A double click: both lead to one page.
        let clicks = tokio::join!(self.billing.checkout(stripe, ctx, &page), self.billing.checkout(stripe, ctx, &page));
        let (Checkout::Open { session, .. }, Checkout::Open { session: same, .. }) = (clicks.0?, clicks.1?) else {
            return Err("acme has a subscription already".into());
        };
        println!("two clicks at once, one page: {}", session == same);
        let purchase = self.stripe.complete_checkout(&session)?;
        self.deliver(Chaos::shuffled(7).duplicating(100)).await?;
        let waited = Instant::now();
        while !self.entitlements.is_feature_enabled(ctx.tenant(), &EXPORT).await {
            if waited.elapsed().as_secs() > 10 {
                return Err("the gate did not hear of the purchase".into());
            }
            tokio::task::yield_now().await;
        }
        println!("the gate heard of it: {}", self.entitlements.explain(ctx.tenant(), &EXPORT).await?);
        println!("call 11: {}", self.again(ctx, 11).await?);
        Ok(purchase.customer)
    }

    async fn dunning(&self, ctx: &RequestContext, customer: &ObjectId) -> Outcome {
        chapter("A payment fails");
        self.stripe.fail_next_payment(customer);
        for days in [31, 13, 2, 14] {
            self.stripe.advance(TimeDelta::days(days));
            self.deliver(Chaos::shuffled(days.unsigned_abs())).await?;
            self.post().await?;
            println!("{days:>2} days later: {}", self.standing_and_feature(ctx).await?);
        }
        self.stripe.pay(customer);
        self.deliver(Chaos::shuffled(1)).await?;
        self.post().await?;
        println!("it is paid: {}", self.standing_and_feature(ctx).await?);
        Ok(())
    }

    async fn standing_and_feature(&self, ctx: &RequestContext) -> Outcome<String> {
        // Who wants to see a change before its notification arrives says which revision it must have.
        let mut tx = TenantTx::begin(self.db.tenants(), ctx).await?;
        self.entitlements.hear(ctx.tenant(), revision::current_in(&mut tx, ctx.tenant()).await?);
        drop(tx);
        let standing = self.billing.plan_of(ctx, self.clock.now()).await?.standing;
        Ok(format!("{standing}\n               {}", self.entitlements.explain(ctx.tenant(), &EXPORT).await?))
    }

    /// What a web framework's webhook route and a background task do between them.
    async fn deliver(&self, chaos: Chaos) -> Outcome {
        for delivery in self.stripe.deliveries_through(chaos) {
            let accepted = self.billing.process(&delivery.body, &delivery.signature).await?;
            println!("  {:<38} {accepted:?}", delivery.event_type);
        }
        let mut applied = 0;
        loop {
            let step = self.billing.apply_pending(100).await?;
            if step.total() == 0 {
                break;
            }
            applied += step.applied;
        }
        println!("  applied {applied} events");
        Ok(())
    }

    /// What another background task does: the outbox, until nothing is due.
    async fn post(&self) -> Outcome {
        let before = self.mailbox.messages().len();
        while !self.worker.run_once().await?.is_idle() {}
        for mail in self.mailbox.messages().iter().skip(before) {
            println!("  mail to {}: {}", mail.to(), mail.subject());
        }
        Ok(())
    }

    async fn history(&self, ctx: &RequestContext) -> Outcome {
        chapter("What happened, newest last");
        let mut tx = TenantTx::begin(self.db.tenants(), ctx).await?;
        let page = timeline::list(&mut tx, None, PageSize::new(200)?).await?;
        for event in page.items.iter().rev() {
            println!("  {} {:<28} {:<30} {}", event.at.format("%F %T"), event.action, event.subject, event.actor);
        }
        Ok(())
    }
}

fn chapter(title: &str) {
    println!("\n── {title} ──");
}
