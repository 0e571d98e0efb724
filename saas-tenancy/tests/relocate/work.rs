//! A tenant at work: writers that remember what was acknowledged to them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use saas_core::{CoreError, ErrorKind, RequestContext, TenantContext, TenantTx};
use saas_tenancy::relocate::Address;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::world::{Binding, World};

/// What was acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Projects that exist: their names.
    projects: Mutex<BTreeMap<Uuid, String>>,
    /// How often each task was counted up.
    counts: Mutex<BTreeMap<Uuid, i64>>,
    /// Transactions that were refused and are to be tried again: what a caller sees.
    pub(crate) refused: AtomicU64,
    pub(crate) committed: AtomicU64,
}

pub(crate) struct Work {
    stop: Arc<AtomicBool>,
    pub(crate) ledger: Arc<Ledger>,
    writers: Vec<JoinHandle<()>>,
}

impl Work {
    /// Starts writers for the tenant, wherever it lives.
    pub(crate) fn start(world: &World, writers: usize) -> Self {
        let (stop, ledger) = (Arc::new(AtomicBool::new(false)), Arc::new(Ledger::default()));
        let writers = (0..writers)
            .map(|number| {
                let (stop, ledger) = (stop.clone(), ledger.clone());
                let (binding, ctx) = (world.binding.clone(), world.acme.clone());
                tokio::spawn(async move {
                    let mut turn = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        turn += 1;
                        let written = write(&binding, &ctx, &ledger, number, turn).await;
                        if written.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unavailable) {
                            ledger.refused.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                        written.unwrap();
                        ledger.committed.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        Self { stop, ledger, writers }
    }

    /// Waits until as many more transactions have been acknowledged.
    pub(crate) async fn go_on(&self, more: u64) {
        let wanted = self.ledger.committed.load(Ordering::Relaxed) + more;
        while self.ledger.committed.load(Ordering::Relaxed) < wanted {
            assert!(self.writers.iter().all(|writer| !writer.is_finished()), "a writer failed");
            tokio::task::yield_now().await;
        }
    }

    /// Ends the writers, and compares what was acknowledged with what is there.
    pub(crate) async fn finish(self, world: &World, address: &Address) -> Arc<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.unwrap();
        }
        let mut connection = world.ways.connect(address).await;
        let tenant = world.acme.tenant().as_uuid();
        let projects: Vec<(Uuid, String)> =
            sqlx::query_as("select id, name from project where tenant_id = $1 and name like 'work %' order by id")
                .bind(tenant)
                .fetch_all(&mut connection)
                .await
                .unwrap();
        let expected: Vec<(Uuid, String)> = self.ledger.projects.lock().unwrap().clone().into_iter().collect();
        assert_eq!(projects, expected, "each acknowledged project once, and no other");
        let counts: Vec<(Uuid, i64)> =
            sqlx::query_as("select id, \"Count\" from task where tenant_id = $1 and \"Count\" > 0 order by id")
                .bind(tenant)
                .fetch_all(&mut connection)
                .await
                .unwrap();
        let expected: Vec<(Uuid, i64)> = self.ledger.counts.lock().unwrap().clone().into_iter().collect();
        assert_eq!(counts, expected, "each acknowledged step counted once");
        let numbers: (i64, i64) =
            sqlx::query_as("select count(*), count(distinct number) from entry where tenant_id = $1")
                .bind(tenant)
                .fetch_one(&mut connection)
                .await
                .unwrap();
        assert_eq!(numbers.0, numbers.1);
        self.ledger
    }
}

/// One transaction: a new project, another one renamed or deleted, a task counted up, a number drawn.
async fn write(
    binding: &Binding,
    ctx: &RequestContext,
    ledger: &Ledger,
    writer: usize,
    turn: u64,
) -> Result<(), CoreError> {
    let tenant = ctx.tenant().as_uuid();
    let mut tx = TenantTx::begin(binding, ctx).await?;
    let name = format!("work {writer} {turn}");
    let created: Uuid = sqlx::query_scalar("insert into project (tenant_id, name) values ($1, $2) returning id")
        .bind(tenant)
        .bind(&name)
        .fetch_one(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
    // One's own of three turns ago, so that writers do not wait for each other.
    let former = format!("work {writer} {}", turn.saturating_sub(3));
    let statement = match turn % 3 {
        0 => "delete from project where tenant_id = $1 and name = $2 returning id, '' as name",
        // A unique value changes hands: what was called so before is called otherwise in the same transaction.
        1 => "update project set name = name || ' renamed' where tenant_id = $1 and name = $2 returning id, name",
        // The key itself changes.
        _ => "update project set id = gen_random_uuid() where tenant_id = $1 and name = $2 returning id, name",
    };
    let touched: Option<(Uuid, String)> = sqlx::query_as(statement)
        .bind(tenant)
        .bind(&former)
        .fetch_optional(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
    let task: Uuid = sqlx::query_scalar(
        "update task set \"Count\" = \"Count\" + 1
         where tenant_id = $1
           and id = (select id from task where tenant_id = $1 order by id offset $2 limit 1)
         returning id",
    )
    .bind(tenant)
    .bind(writer as i64 * 10 + (turn % 10) as i64)
    .fetch_one(&mut *tx)
    .await
    .map_err(CoreError::from_database)?;
    sqlx::query("insert into entry (tenant_id, what) values ($1, $2)")
        .bind(tenant)
        .bind(&name)
        .execute(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
    tx.commit().await?;
    let mut projects = ledger.projects.lock().unwrap();
    projects.insert(created, name);
    if let Some((id, renamed)) = touched {
        projects.retain(|_, name| *name != former);
        if !renamed.is_empty() {
            projects.insert(id, renamed);
        }
    }
    drop(projects);
    *ledger.counts.lock().unwrap().entry(task).or_default() += 1;
    Ok(())
}
