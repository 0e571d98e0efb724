//! Tenants that click twice on "subscribe", in two processes at once: one customer and one live subscription each.
//!
//! The program runs itself again as each process of ours, with a real PostgreSQL and Stripe's simulator over HTTP between them.
//! Every tenant clicks twice in each process at the same moment; the buyer pays, twice, on the page that the first answer
//! names, while the other clicks are still under way; Stripe's events come shuffled and doubled meanwhile. Some of Stripe's answers are lost.
//! In the middle one process is killed with clicks in its hands, and another takes its place.
//!
//! `CLICKS_TENANTS` says how many: some hundreds in the usual run, 10,000 in `./dev clicks`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod process;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    sync::Arc,
    time::Instant,
};

use chrono::TimeDelta;
use saas_billing::{
    Billing, ObjectId, PaymentProvider, WebhookProcessor as _,
    command::{COMMANDS, CommandHandler},
    object::{Interval, ObjectKind},
    testing::{Chaos, Fault, SimulatorServer, StripeSimulator},
};
use saas_core::{
    Clock as _, SharedClock, SystemClock, TenantContext as _,
    outbox::Worker,
    testing::{TestDatabase, leaks},
};
use tokio::sync::mpsc;

use crate::process::{Answer, Process};

const TENANTS: usize = 200;
/// Tenants that click at the same time.
const AT_ONCE: usize = 8;
/// A lost answer for so many tenants.
const FAULT_EVERY: usize = 25;
const FAULTS: [Fault; 4] = [Fault::CutAfter, Fault::CutBefore, Fault::BrokenAfterwards, Fault::RateLimited(0)];

fn main() {
    // Of the keys and signing secrets here, also a part.
    leaks::listen(&["0123456789abcdef"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match env::var("CLICKS_STRIPE") {
        Ok(stripe) => runtime.block_on(process::serve(&stripe)),
        Err(_) => runtime.block_on(every_double_click_makes_one_customer_and_one_subscription()),
    }
}

/// What is handed to both processes and not answered by both.
#[derive(Default)]
struct UnderWay {
    answered: [bool; 2],
    named: BTreeSet<ObjectId>,
}

struct Run {
    stripe: Arc<StripeSimulator>,
    processes: [Process; 2],
    waiting: Vec<String>,
    under_way: BTreeMap<String, UnderWay>,
    handed: usize,
    /// Told of each payment.
    paid: mpsc::UnboundedSender<()>,
}

impl Run {
    /// Hands the next tenant to both.
    fn hand(&mut self) {
        let Some(tenant) = self.waiting.pop() else { return };
        if self.handed.is_multiple_of(FAULT_EVERY) {
            self.stripe.inject([FAULTS[self.handed / FAULT_EVERY % FAULTS.len()]]);
        }
        self.handed += 1;
        for process in &mut self.processes {
            process.click(&tenant);
        }
        self.under_way.insert(tenant, UnderWay::default());
    }

    /// Takes what a process has answered to a tenant's clicks; the buyer pays at once, and once more.
    fn take(&mut self, answer: &Answer) {
        // Killed after it had answered: its successor answers again.
        let Some(under_way) = self.under_way.get_mut(&answer.tenant) else { return };
        for named in &answer.named {
            if named.as_str().starts_with("cs_") {
                let _ = self.stripe.complete_checkout(named);
                let _ = self.stripe.complete_checkout(named);
            }
            under_way.named.insert(named.clone());
        }
        let _ = self.paid.send(());
        under_way.answered[answer.process] = true;
        if under_way.answered == [true, true] {
            let named = self.under_way.remove(&answer.tenant).unwrap_or_default().named;
            let pages = named.iter().filter(|named| named.as_str().starts_with("cs_")).count();
            assert!(pages == 1 && named.len() <= 2, "a page, and the subscription that came of it: {named:?}");
            self.hand();
        }
    }
}

/// Delivers what Stripe tells, as long as there are payments, and applies it.
async fn hear(billing: Billing, stripe: Arc<StripeSimulator>, mut paid: mpsc::UnboundedReceiver<()>) -> usize {
    let mut events = 0;
    let mut open = true;
    while open {
        let mut payments = Vec::new();
        open = paid.recv_many(&mut payments, AT_ONCE).await > 0;
        for delivery in stripe.deliveries_through(Chaos::shuffled(events as u64).duplicating(10)) {
            let _ = billing.process(&delivery.body, &delivery.signature).await.unwrap();
            events += 1;
        }
        while billing.apply_pending(100).await.unwrap().total() > 0 {}
    }
    events
}

/// What did not come to its end: receipts, fetches, tenants.
const ODD: &str = "
    (select concat_ws(' ', event_id, event_type, state, reason, waits_for, 'tries', attempts)
     from saas.billing_receipt where state not in ('applied', 'ignored') limit 20)
    union all
    (select concat_ws(' ', object_id, state, last_error, waits_for, 'tries', attempts)
     from saas.billing_fetch where state <> 'done' limit 20)
    union all
    (select concat_ws(' ', t.id, s.plan, s.derived)
     from saas.tenant t left join saas.billing_state s on s.tenant_id = t.id
     where s.plan is distinct from 'pro' or s.has_alerts limit 5)";

// Show 4, f-B2, f-B3, W27, C16, lesson 17
async fn every_double_click_makes_one_customer_and_one_subscription() {
    let tenants = env::var("CLICKS_TENANTS").map_or(TENANTS, |text| text.parse().unwrap());
    let database =
        TestDatabase::builder().max_system_connections(6).start(&[&saas_core::SCHEMA, &saas_billing::SCHEMA]).await;
    // The processes live by the clock of the machine.
    database.clock().set(SystemClock.now());
    let stripe = Arc::new(StripeSimulator::new(process::SECRET, database.clock().clone()).unwrap());
    stripe.create_price("price_pro", 2_000, "eur", &Interval::Month);
    let server = SimulatorServer::start(Arc::clone(&stripe)).await.unwrap();
    let mut waiting = Vec::new();
    for n in 0..tenants {
        waiting.push(database.create_tenant(&format!("tenant-{n}")).await.tenant().to_string());
    }
    let billing = process::service(database.tenants(), database.system(), Arc::new(database.clock().clone()));
    let (paid, payments) = mpsc::unbounded_channel();
    let hearing = tokio::spawn(hear(billing.clone(), Arc::clone(&stripe), payments));

    let started = Instant::now();
    let (tell, mut answers) = mpsc::unbounded_channel();
    let start = |at: usize| Process::start(at, server.address().as_str(), &database, tell.clone());
    let processes = [start(0), start(1)];
    let mut run = Run { stripe: Arc::clone(&stripe), processes, waiting, under_way: BTreeMap::new(), handed: 0, paid };
    for _ in 0..AT_ONCE {
        run.hand();
    }
    let mut in_its_hands = None;
    while !run.under_way.is_empty() {
        match answers.recv().await.unwrap() {
            Ok(answer) => run.take(&answer),
            Err((process, life)) if run.processes[process].life == life => panic!("process {process} has ended"),
            // The last words of the one that was killed.
            Err(_) => {}
        }
        if in_its_hands.is_none() && run.handed > tenants / 2 {
            run.processes[0].kill();
            run.processes[0] = start(0);
            let open: Vec<String> =
                run.under_way.iter().filter(|(_, one)| !one.answered[0]).map(|(tenant, _)| tenant.clone()).collect();
            // Every other buyer comes back; nobody asks again for the rest.
            for (n, tenant) in open.iter().enumerate() {
                if n % 2 == 0 {
                    run.processes[0].click(tenant);
                } else if let Some(under_way) = run.under_way.get_mut(tenant) {
                    under_way.answered[0] = true;
                }
            }
            in_its_hands = Some(open.len());
        }
        // Answered by the other one before the kill: nothing is to be waited for.
        let over: Vec<String> =
            run.under_way.iter().filter(|(_, one)| one.answered == [true, true]).map(|(id, _)| id.clone()).collect();
        for tenant in over {
            run.under_way.remove(&tenant);
            run.hand();
        }
    }
    let clicked = started.elapsed().as_secs_f64();
    for process in &mut run.processes {
        process.end();
    }
    let in_its_hands = in_its_hands.unwrap();
    assert!(in_its_hands > 0, "the kill met no click");
    drop(run);
    let mut events = hearing.await.unwrap();

    // The outbox sees through what the killed one has begun; a reader reads what no event told.
    let provider: Arc<dyn PaymentProvider> = Arc::clone(&stripe) as _;
    database.clock().advance(TimeDelta::hours(1));
    let clock: SharedClock = Arc::new(database.clock().clone());
    let handler = Arc::new(CommandHandler::new(billing.clone(), provider));
    let worker = Worker::new(database.system().clone(), clock).with_handler(COMMANDS, handler);
    while !worker.run_once().await.unwrap().is_idle() {}
    let (last, rest) = mpsc::unbounded_channel();
    drop(last);
    events += hear(billing.clone(), Arc::clone(&stripe), rest).await;
    while billing.fetch_pending(stripe.as_ref(), 100).await.unwrap().done > 0 {}

    let made = [ObjectKind::Customer, ObjectKind::Subscription, ObjectKind::CheckoutSession]
        .map(|kind| stripe.living(kind).len());
    println!(
        "{tenants} double clicks in two processes: {} customers, {} live subscriptions, {} pages; {} calls of Stripe, \
         {events} events; one process killed with {in_its_hands} tenants in its hands; clicked in {clicked:.1} s, all in {:.1} s",
        made[0],
        made[1],
        made[2],
        stripe.calls(),
        started.elapsed().as_secs_f64()
    );
    assert_eq!(made, [tenants; 3]);
    let mut owner = database.owner().await;
    let odd: Vec<String> = sqlx::query_scalar(ODD).fetch_all(&mut owner).await.unwrap();
    assert!(odd.is_empty(), "{odd:#?}");
    let whole =
        "select count(*) from (select tenant_id from saas.billing_object where kind in ('customer', 'subscription')
         group by tenant_id having count(*) = 2 and count(distinct kind) = 2) as whole";
    let whole: i64 = sqlx::query_scalar(whole).fetch_one(&mut owner).await.unwrap();
    assert_eq!(whole, tenants as i64, "have one customer and one subscription");
    let left = "select count(*) from saas.billing_command where state = 'pending'";
    let left: i64 = sqlx::query_scalar(left).fetch_one(&mut owner).await.unwrap();
    assert_eq!(left, 0, "commands that nobody has seen through");
}
