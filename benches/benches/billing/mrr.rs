//! What all tenants pay per month, beside the bare sum of the same rows: without a fence, and not in a transaction. That it is
//! one pass over an index is for a test to say.

use std::time::Instant;

use saas_benches::{Contender, Server, nanos, race, ratio, rounds};
use saas_core::Actor;
use tokio::runtime::Handle;

use super::{
    shop::{Shop, service},
    size,
};

const CALLS: u32 = 10;
const FLOOR: &str = "
    select currency, sum(mrr_minor)::text, count(*)
    from public.floor
    where livemode = false and mrr_minor > 0
    group by currency";

pub(crate) async fn measure() -> anyhow::Result<()> {
    let paying = size("PAYING", 100_000);
    let shop = Shop::open(paying, 2).await?;
    fill(&shop.server).await?;
    let system = shop.server.pool("saas_system", 1).await?;
    let actor = Actor::system("bench");
    let numbers = service(&shop.server, &shop.stripe, &shop.clock, 1).await?;
    let mrr = numbers.mrr(&actor).await?;
    let counted: i64 = sqlx::query_scalar("select count(*) from public.floor").fetch_one(&system).await?;
    anyhow::ensure!(counted == i64::try_from(paying)? && mrr.len() == 1, "{counted} rows, {mrr:?}");
    let handle = Handle::current();
    let figures = tokio::task::block_in_place(|| {
        let timed = |call: &dyn Fn()| {
            let begin = Instant::now();
            (0..CALLS).for_each(|_| call());
            nanos(begin.elapsed()) / f64::from(CALLS)
        };
        race(
            rounds(7),
            &mut [
                Contender::new("the bare sum", || {
                    timed(&|| drop(handle.block_on(sqlx::query(FLOOR).fetch_one(&system)).expect("the sum")))
                }),
                Contender::new("mrr", || timed(&|| drop(handle.block_on(numbers.mrr(&actor)).expect("the revenue")))),
            ],
        )
    });
    let [floor, mrr] = figures.as_slice() else { anyhow::bail!("two figures") };
    println!("MRR of {paying}: {:.2} ms, the bare sum {:.2} ms", mrr / 1e6, floor / 1e6);
    ratio("billing-mrr-to-bare-sum", mrr / floor, true, 2.0);
    Ok(())
}

/// A row of revenue for each tenant, and the same rows in a bare table with the same index.
async fn fill(server: &Server) -> anyhow::Result<()> {
    let mut owner = server.owner().await?;
    sqlx::raw_sql(
        "insert into saas.revenue_state (tenant_id, livemode, currency, mrr_minor, ever_paid, changes, at)
         select id, false, 'eur', 2000, true, 1, now() from saas.tenant",
    )
    .execute(&mut owner)
    .await?;
    server
        .make(
            "create table public.floor as select tenant_id, livemode, currency, mrr_minor from saas.revenue_state;
             create index on public.floor (livemode, currency) include (mrr_minor) where mrr_minor > 0",
        )
        .await?;
    for table in ["vacuum analyze saas.revenue_state", "vacuum analyze public.floor"] {
        sqlx::query(table).execute(&mut owner).await?;
    }
    Ok(())
}
