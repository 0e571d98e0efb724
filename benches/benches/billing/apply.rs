//! Applying a backlog, and whether what is stored already makes it slower.

use saas_benches::{median, ratio, rounds};

use super::{
    shop::{Shop, bursts},
    size,
};

/// Receipts of a tenant.
const EVENTS: usize = 10;
/// Places within which the bursts of different tenants are mixed.
const MIXED: usize = 200;

/// Events per second, the receipts of a customer together where they come together, beside one receipt per step.
pub(crate) async fn throughput() -> anyhow::Result<()> {
    let (tenants, workers) = (size("TENANTS", 10_000), size("WORKERS", 8));
    let step = u16::try_from(size("STEP", 1000))?;
    // As many again, a tenth of them, go one by one.
    let alone = tenants / 10;
    let shop = Shop::open(tenants + alone, u32::try_from(workers)? + 2).await?;
    let history = shop.history(EVENTS)?;
    println!("a tenant's receipts: {}", history.names().iter().take(EVENTS).cloned().collect::<Vec<_>>().join(", "));
    shop.open_checkouts(&history, 0..tenants + alone).await?;
    shop.deliver(&history, bursts(0..tenants, EVENTS, MIXED)).await?;
    let (applied, took) = shop.drain(workers, step).await?;
    anyhow::ensure!(applied == tenants * EVENTS, "{applied} applied");
    let together = applied as f64 / took.as_secs_f64();
    shop.deliver(&history, bursts(tenants..tenants + alone, EVENTS, MIXED)).await?;
    let (applied, took) = shop.drain(workers, 1).await?;
    anyhow::ensure!(applied == alone * EVENTS, "{applied} applied one by one");
    let one_by_one = applied as f64 / took.as_secs_f64();
    println!("{workers} workers: {together:.0} events/s in steps of {step}, {one_by_one:.0} events/s in steps of one");
    ratio("billing-apply-thousands-of-events-per-second", together / 1000.0, false, 4.0);
    ratio("billing-apply-in-steps-to-one-by-one", together / one_by_one, false, 1.5);
    Ok(())
}

/// The cost of an event where many receipts are stored to where few are, round by round.
pub(crate) async fn flatness() -> anyhow::Result<()> {
    let (stored, workers, rounds) = (size("STORED", 1_000_000), size("WORKERS", 8), rounds(5));
    let step = u16::try_from(size("STEP", 1000))?;
    let turn = (size("TENANTS", 10_000) / 20).max(10);
    let tenants = turn * (rounds + 1);
    let connections = u32::try_from(workers)? + 2;
    let (few, many) = (Shop::open(tenants, connections).await?, Shop::open(tenants, connections).await?);
    let mut ratios = Vec::new();
    let histories = [few.history(EVENTS)?, many.history(EVENTS)?];
    for round in 0..=rounds {
        let mut costs = [0.0; 2];
        for (number, (shop, history)) in [&few, &many].into_iter().zip(&histories).enumerate() {
            let worlds = round * turn..(round + 1) * turn;
            shop.open_checkouts(history, worlds.clone()).await?;
            shop.deliver(history, bursts(worlds, EVENTS, MIXED)).await?;
            if round == 0 {
                // What is stored has the size and the shape of what was just received.
                fill(shop, if number == 0 { stored / 100 } else { stored }).await?;
            }
            let (applied, took) = shop.drain(workers, step).await?;
            anyhow::ensure!(applied == turn * EVENTS, "{applied} applied");
            if let Some(cost) = costs.get_mut(number) {
                *cost = took.as_secs_f64();
            }
        }
        let [of_few, of_many] = costs;
        if round > 0 {
            ratios.push(of_many / of_few);
        }
    }
    ratio(&format!("billing-apply-with-{stored}-receipts-stored-to-{}", stored / 100), median(&ratios), true, 1.2);
    Ok(())
}

/// Stores receipts that are over.
async fn fill(shop: &Shop, receipts: usize) -> anyhow::Result<()> {
    let mut owner = shop.server.owner().await?;
    sqlx::query(
        "insert into saas.billing_receipt
            (account, livemode, event_id, event_type, created_at, body, state, due_at, received_at, finished_at)
         select account, livemode, 'evt_stored' || md5(n::text), event_type, created_at, body, 'applied', due_at,
                received_at, received_at
         from (select * from saas.billing_receipt limit 1) as one, generate_series(1, $1::bigint) as n",
    )
    .bind(i64::try_from(receipts)?)
    .execute(&mut owner)
    .await?;
    sqlx::query("vacuum analyze saas.billing_receipt").execute(&mut owner).await?;
    Ok(())
}
