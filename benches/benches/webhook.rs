//! Webhook intake beside its floors, SHA-256 of the same bytes and a bare durable insert of the event's id; and beside the
//! usual way, BEGIN, INSERT, UPSERT, COMMIT. Beside async-stripe's parser: `./dev bench peers --bench webhook`.
//!
//! The server is a durable one of its own (`fsync` and `synchronous_commit` on). Contenders run in turn, round by round;
//! the result is the median of the rounds' ratios, since the machine is shared and slows down both at once.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use saas_benches::{median, ratio, rounds};
use saas_billing::{
    Billing, BillingConfig, Mode, ObjectId, SigningSecrets, WebhookProcessor,
    event::{Envelope, read_snapshot},
    object::Interval,
    testing::{CheckoutRequest, StripeSimulator},
};
use saas_core::{
    Clock, PlanCatalog, SystemPool, TenantPool, TestClock, migrate,
    testing::{DevServer, Durability},
};
use sha2::{Digest, Sha256};
use sqlx::{
    ConnectOptions, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const CATALOG: &str = "default_plan = \"free\"\n[plans.free]\nrank = 0\n[[plans.free.versions]]\nversion = 1\n";
const SCHEMAS: [&saas_core::Schema; 2] = [&saas_core::SCHEMA, &saas_billing::SCHEMA];

fn main() -> Result<(), Failure> {
    let clock = TestClock::starting("2026-01-15T12:00:00Z");
    let stripe = StripeSimulator::new("whsec_bench_0123456789abcdef", clock.clone())?;
    stripe.create_price("price_pro", 2000, "eur", &Interval::Month);
    let body = subscription_updated(&stripe)?;
    let secrets = SigningSecrets::new(vec![stripe.secret()])?;
    for size in [body.len(), 8 * 1024, 12 * 1024] {
        processor(&secrets, &stripe, &clock, &padded(&body, size))?;
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(intake(secrets, stripe, clock, body))
}

/// A pretty-printed `customer.subscription.updated`.
fn subscription_updated(stripe: &StripeSimulator) -> Result<Vec<u8>, Failure> {
    let session = stripe.checkout(CheckoutRequest::new("price_pro"));
    let purchase = stripe.complete_checkout(&session)?;
    drop(stripe.deliveries());
    stripe.update_quantity(&purchase.subscription, 3);
    Ok(stripe.deliveries().remove(0).body)
}

/// The same event with metadata up to about `size` bytes.
fn padded(body: &[u8], size: usize) -> Vec<u8> {
    let mut text = String::from_utf8_lossy(body).into_owned();
    let at = text.find("\"metadata\": {}").map(|at| at + "\"metadata\": {".len());
    let Some(at) = at else { return body.to_vec() };
    let mut metadata = Vec::new();
    while text.len() + metadata.iter().map(String::len).sum::<usize>() + 80 < size {
        metadata.push(format!("\n        \"key_of_the_adopter_{}\": \"a value that nobody reads\"", metadata.len()));
    }
    text.insert_str(at, &metadata.join(","));
    text.into_bytes()
}

/// Nanoseconds per call, over about 10 ms.
fn time<T>(mut work: impl FnMut() -> T) -> f64 {
    const CALLS: u32 = 1000;
    let begin = Instant::now();
    for _ in 0..CALLS {
        let _ = black_box(work());
    }
    begin.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
}

fn processor(
    secrets: &SigningSecrets,
    stripe: &StripeSimulator,
    clock: &TestClock,
    body: &[u8],
) -> Result<(), Failure> {
    let (header, now) = (stripe.sign(body), clock.now());
    secrets.verify(body, &header, now)?;
    if read_snapshot(&Envelope::read(body)?)?.is_none() {
        return Err("the event is not understood".into());
    }
    let (mut floors, mut verify, mut intake, mut applied) = (vec![], vec![], vec![], vec![]);
    for _ in 0..61 {
        let floor = time(|| Sha256::digest(black_box(body)));
        verify.push(time(|| secrets.verify(black_box(body), &header, now)) / floor);
        intake.push(time(|| (secrets.verify(black_box(body), &header, now), Envelope::read(black_box(body)))) / floor);
        applied.push(
            time(|| {
                let read = Envelope::read(black_box(body)).and_then(|envelope| read_snapshot(&envelope));
                (secrets.verify(black_box(body), &header, now), read)
            }) / floor,
        );
        floors.push(floor);
    }
    println!("{} bytes: SHA-256 {:.2} µs", body.len(), median(&floors) / 1000.0);
    ratio(&format!("webhook-verify-{}", body.len()), median(&verify), true, 1.15);
    ratio(&format!("webhook-verify-and-parse-{}", body.len()), median(&intake), true, 2.5);
    println!(
        "{} bytes: verify, parse and read both states of the object {:.2} of SHA-256 (worker, no goal)",
        body.len(),
        median(&applied)
    );
    Ok(())
}

/// Durable intake of fresh events beside a bare insert of their ids.
async fn intake(
    secrets: SigningSecrets,
    stripe: StripeSimulator,
    clock: TestClock,
    body: Vec<u8>,
) -> Result<(), Failure> {
    let server = DevServer::start_own(Durability::Full)?;
    let admin: PgConnectOptions = server.admin_url().parse()?;
    migrate(&admin, &SCHEMAS).await?;
    let mut owner = admin.connect().await?;
    sqlx::raw_sql(
        // The bytes are kept as the receipt keeps them: in the row, compressed by lz4.
        "create table public.floor (id text primary key, body bytea compression lz4);
         alter table public.floor alter column body set storage main;
         create table public.applied (subscription text primary key, status text, last_event bigint);
         grant insert on public.floor to saas_system;
         grant select, insert, update on public.applied to saas_system",
    )
    .execute(&mut owner)
    .await?;
    for (connections, callers) in [(1, 1), (8, 8), (32, 32), (1, 64), (8, 512)] {
        // Plain pools on both sides: no ping before and no look after.
        let pool = |role: &str| {
            let options = PgPoolOptions::new().max_connections(connections).min_connections(connections);
            options.test_before_acquire(false).connect_with(admin.clone().username(role))
        };
        let system = pool("saas_system").await?;
        let tenants = TenantPool::open(pool("saas_app").await?, &SCHEMAS).await?;
        let config = BillingConfig::new(PlanCatalog::from_toml(CATALOG)?, secrets.clone(), Mode::Test);
        let opened = SystemPool::open(system.clone(), &SCHEMAS).await?;
        let billing = Billing::new(config, Arc::new(tenants), opened, Arc::new(clock.clone()));
        let (mut of_ids, mut of_bytes, mut of_way, mut bare) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..=rounds(ROUNDS) {
            let ids = bare_inserts(&system, None, callers).await?;
            let bytes = bare_inserts(&system, Some(body.as_slice()), callers).await?;
            let way = four_round_trips(&system, connections).await?;
            let intake = deliveries(&billing, &stripe, &body, callers).await?;
            if round > 0 {
                of_way.push(intake / way);
                of_ids.push(intake / ids);
                of_bytes.push(intake / bytes);
                bare.push(ids / way);
            }
            if round == rounds(ROUNDS) {
                println!(
                    "{connections} connections, {callers} callers, {} bytes: ids {ids:.0}/s, ids and bytes {bytes:.0}/s, BEGIN to COMMIT {way:.0}/s, intake {intake:.0}/s",
                    body.len()
                );
            }
        }
        let name = format!("webhook-durable-intake-{connections}-connections-{callers}-callers");
        // A floor that keeps nothing but the id, and one that keeps the same bytes as the server compresses them.
        ratio(&format!("{name}-to-insert-of-same-bytes"), median(&of_bytes), false, 0.8);
        ratio(&format!("{name}-to-insert-of-id-alone"), median(&of_ids), false, 0.8);
        // Where more deliver than there are connections, a burst shares inserts: a backlog is stored in batches.
        let goal = if callers > connections { 10.0 } else { 2.0 };
        ratio(&format!("{name}-to-begin-insert-upsert-commit"), median(&of_way), false, goal);
        println!("{name}: the bare insert of an id comes to {:.2} of BEGIN to COMMIT (no goal)", median(&bare));
    }
    Ok(())
}

/// How long one side runs in a round.
const TURN: Duration = Duration::from_millis(100);
/// Many short turns, since a disk that others use as well changes its speed several times a second.
const ROUNDS: usize = 60;
/// Makes every event's id new.
static NUMBER: AtomicU64 = AtomicU64::new(0);

async fn bare_inserts(pool: &PgPool, body: Option<&[u8]>, callers: u32) -> Result<f64, Failure> {
    let begin = Instant::now();
    let workers = (0..callers).map(|_| {
        let (pool, body) = (pool.clone(), body.map(<[u8]>::to_vec));
        tokio::spawn(async move {
            let mut done = 0_u32;
            while begin.elapsed() < TURN {
                let id = format!("evt_floor{:016}", NUMBER.fetch_add(1, Ordering::Relaxed));
                sqlx::query("insert into public.floor (id, body) values ($1, $2) on conflict do nothing")
                    .bind(id)
                    .bind(body.as_deref())
                    .execute(&pool)
                    .await?;
                done += 1;
            }
            Ok::<_, sqlx::Error>(done)
        })
    });
    let mut done = 0;
    for worker in workers.collect::<Vec<_>>() {
        done += worker.await??;
    }
    Ok(f64::from(done) / begin.elapsed().as_secs_f64())
}

/// What most do: a transaction that keeps the event's id and applies the event, on every connection.
#[expect(clippy::disallowed_methods, reason = "the way to compare with")]
async fn four_round_trips(pool: &PgPool, callers: u32) -> Result<f64, Failure> {
    let begin = Instant::now();
    let workers = (0..callers).map(|_| {
        let pool = pool.clone();
        tokio::spawn(async move {
            let mut done = 0_u32;
            while begin.elapsed() < TURN {
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                let mut tx = pool.begin().await?;
                sqlx::query("insert into public.floor (id) values ($1) on conflict do nothing")
                    .bind(format!("evt_usual{number:016}"))
                    .execute(&mut *tx)
                    .await?;
                sqlx::query(
                    "insert into public.applied as known (subscription, status, last_event) values ($1, 'active', $2)
                     on conflict (subscription) do update set status = excluded.status, last_event = excluded.last_event
                     where known.last_event <= excluded.last_event",
                )
                .bind(format!("sub_{}", number % 10_000))
                .bind(i64::try_from(number).unwrap_or(i64::MAX))
                .execute(&mut *tx)
                .await?;
                tx.commit().await?;
                done += 1;
            }
            Ok::<_, sqlx::Error>(done)
        })
    });
    let mut done = 0;
    for worker in workers.collect::<Vec<_>>() {
        done += worker.await??;
    }
    Ok(f64::from(done) / begin.elapsed().as_secs_f64())
}

async fn deliveries(billing: &Billing, stripe: &StripeSimulator, body: &[u8], callers: u32) -> Result<f64, Failure> {
    let id: ObjectId = Envelope::read(body)?.id;
    let text = String::from_utf8(body.to_vec())?;
    // Signed beforehand: that is Stripe's work. More than any machine takes in one turn.
    let batch: Vec<(Vec<u8>, String)> = (0..8000)
        .map(|_| {
            let fresh = format!("evt_bench{:016}", NUMBER.fetch_add(1, Ordering::Relaxed));
            let body = text.replace(id.as_str(), &fresh).into_bytes();
            let signature = stripe.sign(&body);
            (body, signature)
        })
        .collect();
    let batch = Arc::new(batch);
    let next = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let workers = (0..callers).map(|_| {
        let (billing, batch, next) = (billing.clone(), Arc::clone(&batch), Arc::clone(&next));
        tokio::spawn(async move {
            let mut done = 0_u32;
            while begin.elapsed() < TURN {
                let at = usize::try_from(next.fetch_add(1, Ordering::Relaxed))?;
                let Some((body, signature)) = batch.get(at) else { return Err("the batch is too small".into()) };
                let _ = billing.process(body, signature).await?;
                done += 1;
            }
            Ok::<_, Failure>(done)
        })
    });
    let mut done = 0;
    for worker in workers.collect::<Vec<_>>() {
        done += worker.await??;
    }
    Ok(f64::from(done) / begin.elapsed().as_secs_f64())
}
