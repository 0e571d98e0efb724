//! Serves the application on 127.0.0.1:3000, on a PostgreSQL of its own, with one tenant and a simulated Stripe.

use std::{error::Error, sync::Arc};

use axum_minimal::{App, resolver, router};
use saas_billing::{Billing, BillingConfig, Mode, SigningSecrets, StripeSecret};
use saas_core::{PlanCatalog, SharedClock, SystemClock, TenantContext, TenantTx, testing::DevDatabase};
use saas_entitlements::{Entitlements, Meter, PostgresCounters, PostgresSource, RevisionListener};
use saas_tenancy::{NewTenant, Tenancy, VerifiedEmail, resolve::Entrance};
use sqlx::Executor;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let schemas = [&saas_core::SCHEMA, &saas_tenancy::SCHEMA, &saas_entitlements::SCHEMA, &saas_billing::SCHEMA];
    let db = DevDatabase::start("axum_minimal", &schemas).await?;
    db.owner().await?.execute(include_str!("../project.sql")).await?;
    let (tenants, system) = (Arc::new(db.tenants().clone()), db.system().clone());
    let clock: SharedClock = Arc::new(SystemClock);

    let catalog = PlanCatalog::from_toml(include_str!("../plans.toml"))?;
    let secret = StripeSecret::new("whsec_of_your_endpoint".into())?;
    let config = BillingConfig::new(catalog.clone(), SigningSecrets::new(vec![secret])?, Mode::Test);
    let billing = Billing::new(config, tenants.clone(), system.clone(), clock.clone());
    let source = PostgresSource::new(tenants.clone(), Arc::new(billing.clone()));
    let entitlements = Entitlements::new(catalog, Arc::new(source), clock.clone());
    let _clock = entitlements.start_clock();
    let _listener = RevisionListener::start(entitlements.clone(), db.options("saas_app"));
    let tenancy = Tenancy::new((*tenants).clone(), system, clock);
    let entrance = Entrance::new(tenancy.clone(), resolver())?;
    let _names = entrance.listen(db.options("saas_app"));
    let app = App {
        tenants: (*tenants).clone(),
        tenancy,
        entrance,
        webhooks: Arc::new(billing),
        meter: Meter::new(entitlements.clone(), Arc::new(PostgresCounters::new(tenants))),
        entitlements,
    };

    let owner = VerifiedEmail::vouched("ada@acme.example".parse()?);
    let acme = app.tenancy.create_tenant(&NewTenant::new("acme".parse()?, "Acme Inc.")?, &owner).await?;
    let ctx = app.tenancy.enter(acme.tenant, acme.owner).await?;
    let mut tx = TenantTx::begin(&app.tenants, &ctx).await?;
    let project = "insert into project (tenant_id, name) values ($1, 'Apollo')";
    sqlx::query(project).bind(ctx.tenant().as_uuid()).execute(&mut *tx).await?;
    tx.commit().await?;

    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    println!("curl -H 'x-user: {}' http://127.0.0.1:3000/t/acme/projects", acme.owner);
    axum::serve(listener, router(app)).await?;
    Ok(())
}
