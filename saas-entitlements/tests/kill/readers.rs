//! Readers of the usage events that run in every process, and are killed with it: the export and the roll-up.

use std::{collections::BTreeMap, fs::File, io::Write as _, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use saas_core::{SystemClock, SystemPool, TenantId, testing::TestDatabase};
use saas_entitlements::{
    EntitlementsError,
    usage::{Delivery, UsageBatch, UsageExport, UsagePipeline},
};

use crate::{PATIENCE, PROCESSES, file_of};

const READER: &str = "kill-test";

/// Somebody who keeps what is delivered, on a file that survives the process.
#[derive(Debug)]
struct Receiver(File);

impl Receiver {
    fn open(folder: &Path, process: usize) -> Self {
        Self(File::options().append(true).create(true).open(file_of(folder, process, "delivered")).unwrap())
    }
}

#[async_trait]
impl UsageExport for Receiver {
    async fn deliver(&self, batch: &UsageBatch) -> Result<Vec<Delivery>, EntitlementsError> {
        let row = |row: &saas_entitlements::usage::UsageRow| format!("\n{} {}", row.units, row.id);
        (&self.0).write_all(batch.rows.iter().map(row).collect::<String>().as_bytes()).unwrap();
        Ok(vec![Delivery::Taken; batch.rows.len()])
    }
}

/// Reads what is new, for the process of this number.
pub(crate) struct Readers {
    pipeline: UsagePipeline,
    receiver: Receiver,
}

impl Readers {
    pub(crate) fn new(system: SystemPool, folder: &Path, process: usize) -> Self {
        let pipeline = UsagePipeline::new(system, Arc::new(SystemClock));
        Self { pipeline, receiver: Receiver::open(folder, process) }
    }

    /// What fails is done by the next run.
    pub(crate) async fn run(&self) -> Result<(), EntitlementsError> {
        self.pipeline.export(READER, &self.receiver).await?;
        self.pipeline.roll_up(Duration::ZERO).await?;
        Ok(())
    }
}

/// Reads what is left, and compares: every event was delivered, under one id, and is in the sums once.
pub(crate) async fn have_read_everything(database: &TestDatabase, folder: &Path, tenant: TenantId) {
    let last = Readers::new(database.system().clone(), folder, PROCESSES);
    assert!(last.pipeline.roll_up(PATIENCE).await.unwrap().complete);
    last.pipeline.export(READER, &last.receiver).await.unwrap();
    let mut delivered = BTreeMap::new();
    for process in 0..=PROCESSES {
        // A process that was killed may have left half a line, without the whole id; its batch came again.
        let text = std::fs::read_to_string(file_of(folder, process, "delivered")).unwrap();
        for (units, id) in text.lines().filter_map(|line| line.split_once(' ')).filter(|(_, id)| id.len() == 36) {
            let units: i64 = units.parse().unwrap();
            let before = delivered.insert(id.to_owned(), units);
            assert!(before.is_none_or(|before| before == units), "{id} was delivered with {before:?} and {units}");
        }
    }
    let (events, units, hours, days): (i64, i64, i64, i64) = sqlx::query_as(
        "select count(*), sum(units)::bigint,
                (select sum(units)::bigint from saas.usage_hour where tenant_id = $1),
                (select sum(units)::bigint from saas.usage_day where tenant_id = $1)
         from saas.usage_event where tenant_id = $1",
    )
    .bind(tenant.as_uuid())
    .fetch_one(&mut database.owner().await)
    .await
    .unwrap();
    assert_eq!(
        (delivered.len(), delivered.values().sum::<i64>()),
        (usize::try_from(events).unwrap(), units),
        "delivered"
    );
    assert_eq!((hours, days), (units, units), "rolled up");
}
