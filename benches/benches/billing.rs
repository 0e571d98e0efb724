//! The worker, a run of reconciliation and the revenue, at size.
//!
//! `cargo bench -p saas-benches --bench billing [apply] [fairness] [reconcile] [mrr]`; all without a name. A PostgreSQL of its
//! own that waits for the disk at every commit, the simulated Stripe, the real services. `TENANTS` (10,000, of ten receipts
//! each), `STORED` (1,000,000), `FLOOD` (10,000), `SUBSCRIPTIONS` (10,000, a run over a tenth of them beside it), `PAYING`
//! (100,000), `WORKERS` (8) and `ROUNDS` (5) make it smaller.
#![expect(clippy::expect_used, reason = "a benchmark that cannot start has nothing to report")]

#[path = "billing/apply.rs"]
mod apply;
#[path = "billing/fairness.rs"]
mod fairness;
#[path = "billing/mrr.rs"]
mod mrr;
#[path = "billing/reconcile.rs"]
mod reconcile;
#[path = "billing/shop.rs"]
mod shop;

/// A size: from the environment, or this one.
fn size(name: &str, unless_set: usize) -> usize {
    std::env::var(name).ok().and_then(|size| size.parse().ok()).unwrap_or(unless_set)
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if let Some(run) = reconcile::Run::of_the_environment() {
        // This process is the one whose memory is measured.
        return runtime.block_on(run.report());
    }
    let named: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let wanted = |name: &str| named.is_empty() || named.iter().any(|wanted| wanted == name);
    runtime.block_on(async {
        if wanted("apply") {
            apply::throughput().await?;
            apply::flatness().await?;
        }
        if wanted("fairness") {
            fairness::measure().await?;
        }
        if wanted("reconcile") {
            reconcile::measure().await?;
        }
        if wanted("mrr") {
            mrr::measure().await?;
        }
        Ok(())
    })
}
