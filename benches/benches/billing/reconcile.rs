//! A run of reconciliation over the simulated Stripe's HTTP: calls, and the memory of the process that runs it.
//!
//! The run happens in a process of its own, this one started again: what the simulator holds is not what is measured.

use std::{
    env,
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use saas_benches::ratio;
use saas_billing::{
    Billing, BillingConfig, Mode, SigningSecrets, StripeSecret, WebhookProcessor,
    object::ObjectKind,
    provider::{PageLimit, WebAddress},
    stripe::{ApiKey, StripeApi, StripeConfig},
    testing::{CheckoutRequest, SimulatorServer},
};
use saas_core::{Actor, Clock, PlanCatalog, SystemPool, TenantPool, TestClock, db::pool_options};
use sqlx::postgres::PgConnectOptions;

use super::{shop::Shop, size};

const KEY: &str = "sk_test_bench_0123456789abcdef";
/// What an account in test mode may be asked per second.
const BUDGET: f64 = 25.0;
const VARIABLES: [&str; 4] = ["RECONCILE_SYSTEM", "RECONCILE_APP", "RECONCILE_STRIPE", "RECONCILE_NOW"];
const SCHEMAS: [&saas_core::Schema; 2] = [&saas_core::SCHEMA, &saas_billing::SCHEMA];

/// The process that runs it.
pub(crate) struct Run([String; 4]);

impl Run {
    pub(crate) fn of_the_environment() -> Option<Self> {
        let [system, app, stripe, now] = VARIABLES.map(|name| env::var(name).ok());
        Some(Self([system?, app?, stripe?, now?]))
    }

    /// Runs, and prints objects, differences, seconds and the peak of its memory in KiB.
    pub(crate) async fn report(self) -> anyhow::Result<()> {
        let Self([system, app, address, now]) = self;
        let pool = async |url: &str| {
            let options: PgConnectOptions = url.parse()?;
            anyhow::Ok(pool_options().max_connections(2).connect_with(options).await?)
        };
        let tenants = Arc::new(TenantPool::open(pool(&app).await?, &SCHEMAS).await?);
        let system = SystemPool::open(pool(&system).await?, &SCHEMAS).await?;
        let catalog = PlanCatalog::from_toml(
            "default_plan = \"free\"\n[plans.free]\nrank = 0\n[[plans.free.versions]]\nversion = 1\n",
        )?;
        let secrets = SigningSecrets::new(vec![StripeSecret::new("whsec_bench_0123456789abcdef".to_owned().into())?])?;
        let config = BillingConfig::new(catalog, secrets, Mode::Test);
        let billing = Billing::new(config, tenants, system, Arc::new(TestClock::starting(&now)));
        let key = ApiKey::new(KEY.to_owned().into())?;
        let address = WebAddress::try_from(address)?;
        let stripe = StripeApi::new(StripeConfig::new(key).with_address(address).with_calls_per_second(100_000))?;
        let begin = Instant::now();
        let mut run = billing.start_reconcile(&Actor::system("bench"), 0).await?;
        while run.finished_at.is_none() {
            run = billing.reconcile_step(&stripe).await?.ok_or_else(|| anyhow::anyhow!("no run is open"))?;
        }
        let status = std::fs::read_to_string("/proc/self/status")?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        let peak = peak.trim().trim_end_matches(" kB");
        println!("{} {} {} {peak}", run.looked_at, run.drifted, begin.elapsed().as_secs_f64());
        Ok(())
    }
}

/// What a run came to.
struct Report {
    seconds: f64,
    peak: f64,
    calls: u64,
    pages: u64,
}

pub(crate) async fn measure() -> anyhow::Result<()> {
    let subscriptions = size("SUBSCRIPTIONS", 10_000);
    let few = over(subscriptions / 10).await?;
    let many = over(subscriptions).await?;
    let name = format!("billing-reconcile-{subscriptions}");
    println!("{} calls in {:.1} s, peak {:.0} MiB", many.calls, many.seconds, many.peak / 1024.0);
    ratio(&format!("{name}-calls-to-pages"), many.calls as f64 / many.pages as f64, true, 1.0);
    ratio(&format!("{name}-time-to-what-the-rate-allows"), many.seconds / (many.calls as f64 / BUDGET), true, 1.0);
    ratio(&format!("{name}-peak-memory-to-{}", subscriptions / 10), many.peak / few.peak, true, 1.2);
    Ok(())
}

/// A run over so many subscriptions, of which all that happened has been applied.
async fn over(subscriptions: usize) -> anyhow::Result<Report> {
    let shop = Shop::open(subscriptions, 10).await?;
    for ctx in shop.server.tenants() {
        let session = shop.stripe.checkout(CheckoutRequest::new("price_pro"));
        shop.billing.record_checkout(ctx, &session).await?;
        shop.stripe.complete_checkout(&session)?;
    }
    stream::iter(shop.stripe.deliveries())
        .map(|event| {
            let billing = &shop.billing;
            async move { billing.process(&event.body, &event.signature).await.map(drop) }
        })
        .buffer_unordered(64)
        .try_collect::<()>()
        .await?;
    shop.drain(8, 100).await?;
    let pages = [
        ObjectKind::Customer,
        ObjectKind::Subscription,
        ObjectKind::Invoice,
        ObjectKind::Charge,
        ObjectKind::Refund,
        ObjectKind::Dispute,
        ObjectKind::CreditNote,
    ]
    // A list that is empty has to be asked for, too.
    .map(|kind| shop.stripe.living(kind).len().div_ceil(usize::from(PageLimit::MAX.get())).max(1));
    let server = SimulatorServer::start(Arc::clone(&shop.stripe)).await?;
    let before = shop.stripe.calls();
    let now = shop.clock.now().to_rfc3339();
    let address = server.address().as_str().to_owned();
    let values = [shop.server.url("saas_system"), shop.server.url("saas_app"), address, now];
    let mut command = Command::new(env::current_exe()?);
    let output = tokio::task::spawn_blocking(move || {
        command.envs(VARIABLES.into_iter().zip(values)).stderr(Stdio::inherit()).output()
    })
    .await??;
    anyhow::ensure!(output.status.success(), "the run ended with {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let figures: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [looked_at, drifted, seconds, peak] = figures.as_slice() else { anyhow::bail!("the run said {text}") };
    anyhow::ensure!(*looked_at >= (2 * subscriptions) as f64 && *drifted == 0.0, "the run said {text}");
    let pages = u64::try_from(pages.iter().sum::<usize>())?;
    Ok(Report { seconds: *seconds, peak: *peak, calls: shop.stripe.calls() - before, pages })
}
