//! One process of ours: takes a tenant per line, clicks twice at once, and answers with what the clicks have led to.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use saas_billing::{
    Billing, BillingConfig, Mode, ObjectId, SigningSecrets, StripeSecret,
    command::{Checkout, CheckoutPage},
    stripe::{ApiKey, Retries, StripeApi, StripeConfig},
};
use saas_core::{
    Actor, PlanCatalog, RequestContext, SharedClock, SystemClock, SystemPool, TenantId, TenantPool, db,
    testing::TestDatabase,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _},
    sync::{Mutex, mpsc},
};

pub(crate) const SECRET: &str = "whsec_test_0123456789abcdef";

const CATALOG: &str = "
    default_plan = 'free'
    [plans.free]
    rank = 0
    [[plans.free.versions]]
    version = 1
    [plans.pro]
    rank = 10
    [[plans.pro.versions]]
    version = 1
    prices = ['price_pro']";

pub(crate) fn service(tenants: &TenantPool, system: &SystemPool, clock: SharedClock) -> Billing {
    let secret = StripeSecret::new(SECRET.to_owned().into()).unwrap();
    let secrets = SigningSecrets::new(vec![secret]).unwrap();
    let config = BillingConfig::new(PlanCatalog::from_toml(CATALOG).unwrap(), secrets, Mode::Test);
    Billing::new(config, Arc::new(tenants.clone()), system.clone(), clock)
}

/// What the child does, until nobody asks any more.
pub(crate) async fn serve(stripe: &str) {
    let connect =
        async |name: &str| db::pool_options().max_connections(6).connect(&env::var(name).unwrap()).await.unwrap();
    let schemas = [&saas_core::SCHEMA, &saas_billing::SCHEMA];
    let tenants = TenantPool::open(connect("CLICKS_APP").await, &schemas).await.unwrap();
    let system = SystemPool::open(connect("CLICKS_SYSTEM").await, &schemas).await.unwrap();
    let billing = service(&tenants, &system, Arc::new(SystemClock));
    let key = ApiKey::new("sk_test_0123456789abcdef".to_owned().into()).unwrap();
    let retries = Retries { tries: 3, base: Duration::ZERO, cap: Duration::ZERO };
    let config = StripeConfig::new(key).with_address(stripe.parse().unwrap()).with_retries(retries);
    let stripe = Arc::new(StripeApi::new(config.with_calls_per_second(100_000)).unwrap());
    let out = Arc::new(Mutex::new(tokio::io::stdout()));
    let mut asked = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    let mut clicks = tokio::task::JoinSet::new();
    while let Some(line) = asked.next_line().await.unwrap() {
        let (billing, stripe, out) = (billing.clone(), Arc::clone(&stripe), Arc::clone(&out));
        clicks.spawn(async move {
            let tenant: TenantId = line.parse().unwrap();
            let ctx = RequestContext::new(tenant, Actor::system("buyer"), &SystemClock);
            let (one, two) = tokio::join!(click(&billing, &stripe, &ctx), click(&billing, &stripe, &ctx));
            // A line goes out whole.
            let mut out = out.lock().await;
            out.write_all(format!("{tenant} {one} {two}\n").as_bytes()).await.unwrap();
            out.flush().await.unwrap();
        });
    }
    while let Some(click) = clicks.join_next().await {
        click.unwrap();
    }
}

/// A buyer who clicks until there is an answer.
async fn click(billing: &Billing, stripe: &StripeApi, ctx: &RequestContext) -> ObjectId {
    let address = || "https://app.example.com/billing".parse().unwrap();
    let page = CheckoutPage::new("price_pro".parse().unwrap(), Some(1), address(), address());
    for _ in 0..50 {
        match billing.checkout(stripe, ctx, &page).await {
            Ok(Checkout::Open { session, .. }) => return session,
            Ok(Checkout::Subscribed { subscription }) => return subscription,
            Err(why) => assert!(why.is_retryable(), "{why:?}"),
        }
    }
    panic!("no answer in fifty clicks");
}

/// What a process has answered to a tenant's two clicks: pages or subscriptions.
pub(crate) struct Answer {
    pub(crate) process: usize,
    pub(crate) tenant: String,
    pub(crate) named: Vec<ObjectId>,
}

/// An answer; or the process, by its place and its number in the system, has closed its mouth.
pub(crate) type Told = Result<Answer, (usize, u32)>;

/// The child, as its parent has it. Killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    ask: Option<ChildStdin>,
    /// Tells a successor from it.
    pub(crate) life: u32,
}

impl Process {
    pub(crate) fn start(at: usize, stripe: &str, database: &TestDatabase, tell: mpsc::UnboundedSender<Told>) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .env("CLICKS_STRIPE", stripe)
            .env("CLICKS_APP", database.url("saas_app"))
            .env("CLICKS_SYSTEM", database.url("saas_system"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (ask, said, life) = (child.stdin.take(), child.stdout.take().unwrap(), child.id());
        thread::spawn(move || {
            // Half a line is what a kill leaves.
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                let Some((tenant, named)) = line.split_once(' ') else { break };
                let Ok(named) = named.split(' ').map(str::parse).collect::<Result<Vec<ObjectId>, _>>() else { break };
                if named.len() == 2 && tell.send(Ok(Answer { process: at, tenant: tenant.to_owned(), named })).is_err()
                {
                    return;
                }
            }
            let _ = tell.send(Err((at, life)));
        });
        Self { child, ask, life }
    }

    /// The tenant clicks twice.
    pub(crate) fn click(&mut self, tenant: &str) {
        writeln!(self.ask.as_mut().unwrap(), "{tenant}").unwrap();
    }

    /// As the kernel does when memory is short: nothing is finished.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        let _ = self.child.wait().unwrap();
    }

    /// Nobody clicks any more.
    pub(crate) fn end(&mut self) {
        drop(self.ask.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
