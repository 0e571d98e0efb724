//! One receipt behind another tenant's flood.

use std::time::Instant;

use saas_benches::ratio;

use super::{shop::Shop, size};

/// How much of a flood is applied before the one receipt behind it, and how much of its time the receipt waits.
pub(crate) async fn measure() -> anyhow::Result<()> {
    let flood = size("FLOOD", 10_000);
    let shop = Shop::open(2, 10).await?;
    let history = shop.history(flood)?;
    shop.open_checkouts(&history, 0..2).await?;
    // Both have bought, and both purchases are applied: the flood is of changes.
    let bought = history.names().iter().position(|name| name.starts_with("checkout.session")).unwrap_or_default();
    shop.deliver(&history, vec![(bought, 0), (bought, 1)]).await?;
    shop.drain(1, 100).await?;
    shop.tick();
    shop.deliver(&history, (0..flood).filter(|event| *event != bought).map(|event| (event, 0)).collect()).await?;
    shop.tick();
    let last = history.events().len() - 1;
    shop.deliver(&history, vec![(last, 1)]).await?;
    let quiet = shop.server.tenants().get(1).expect("there are two tenants");
    let (begin, mut applied, mut waited) = (Instant::now(), 0, None);
    loop {
        let step = shop.billing.apply_pending(100).await?;
        applied += step.applied;
        if waited.is_none() && shop.billing.derived(quiet).await?.plan.is_some() {
            waited = Some((applied, begin.elapsed()));
        }
        if step.total() == 0 {
            break;
        }
    }
    let (before, waited) = waited.ok_or_else(|| anyhow::anyhow!("the receipt was never applied"))?;
    anyhow::ensure!(applied == flood, "{applied} applied");
    println!(
        "a flood of {flood}: {before} applied until the receipt behind it was, after {waited:.0?} of {:.0?}",
        begin.elapsed()
    );
    ratio("billing-wait-behind-a-flood-to-the-flood", before as f64 / flood as f64, true, 0.05);
    Ok(())
}
