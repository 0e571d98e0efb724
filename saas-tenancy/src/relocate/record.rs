//! A move as the control database keeps it. Every change names the lease: a mover that was taken for dead changes nothing.

use std::{collections::BTreeMap, sync::Arc};

use saas_core::{
    Actor, Clock, CoreError, LeaseToken, SharedClock, SystemPool, SystemTx, TenantId, audit, revision, tenant,
};
use serde_json::json;
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::{
    Address, Mode, MoveError, Report, clear,
    pipe::Carried,
    placed::{Placement, has_others_in, placement_in},
    state::{Home, State},
};
use crate::lifecycle::{
    State as Status,
    store::{Door, find_state, forget_due, lock_door},
};

/// A move and who drives it.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) tenant: TenantId,
    pub(super) id: Uuid,
    pub(super) state: State,
    pub(super) lease: Uuid,
    pub(super) generation: i64,
    pub(super) source: Address,
    pub(super) target: Address,
    pub(super) report: Report,
}

type Row = (Uuid, String, Uuid, i64, Json<Address>, Json<Address>, Json<Report>);

/// The control database.
#[derive(Debug, Clone)]
pub(super) struct Control {
    pub(super) system: SystemPool,
    pub(super) clock: SharedClock,
}

impl Control {
    pub(super) fn new(system: SystemPool, clock: Arc<dyn Clock>) -> Self {
        Self { system, clock }
    }

    async fn tx(&self) -> Result<SystemTx, CoreError> {
        SystemTx::begin(&self.system, Actor::system("mover"), "move a tenant").await
    }

    /// Where the tenant is. One that has no placement is in the shared tables of the control database.
    pub(super) async fn placement(&self, tenant: TenantId) -> Result<Placement, CoreError> {
        placement_in(&mut *self.tx().await?, tenant).await
    }

    /// Begins a move. One that is under way stands in its way.
    pub(super) async fn begin(&self, tenant: TenantId, target: &Address, actor: &Actor) -> Result<Record, MoveError> {
        let mut tx = self.tx().await?;
        // An erasure begins under the same lock, and is refused while a move is under way.
        tenant::lock_in(&mut tx, tenant).await?;
        if let Some(state @ (Status::Erasing | Status::Erased)) = find_state(&mut tx, tenant).await? {
            return Err(MoveError::Erased { state });
        }
        let Placement { address, generation, is_served } = placement_in(&mut tx, tenant).await?;
        if !is_served {
            return Err(MoveError::NotServed { address: address.to_string() });
        }
        if address.is_same_place(target) {
            return Err(MoveError::AlreadyThere { address: address.to_string() });
        }
        if let Some(state) = open_in(&mut tx, tenant).await?.map(|record| record.state) {
            return Err(MoveError::UnderWay { state });
        }
        if target.mode != Mode::Pooled && has_others_in(&mut tx, tenant, target).await? {
            return Err(MoveError::Occupied { address: target.to_string() });
        }
        let now = self.clock.now();
        let (id, lease) = (LeaseToken::mint_at(now).as_uuid(), LeaseToken::mint_at(now).as_uuid());
        sqlx::query(
            "insert into saas.move (tenant_id, id, state, lease, generation, source, target, actor, started_at, changed_at)
             values ($1, $2, 'planned', $3, $4, $5, $6, $7, $8, $8)",
        )
        .bind(tenant.as_uuid())
        .bind(id)
        .bind(lease)
        .bind(generation)
        .bind(Json(&address))
        .bind(Json(target))
        .bind(actor.to_string())
        .bind(now)
        .execute(&mut *tx)
        .await
        .map_err(|error| match CoreError::from_database(error) {
            error if error.constraint() == Some("move_under_way") => MoveError::UnderWay { state: State::Planned },
            error => error.into(),
        })?;
        let entry = audit::Entry::new("tenant.move_started", id)
            .with_detail(json!({ "from": address.to_string(), "to": target.to_string() }));
        audit::record_in(&mut tx, tenant, actor, entry, now).await?;
        tx.commit().await?;
        let (state, report, target) = (State::Planned, Report::default(), target.clone());
        Ok(Record { tenant, id, state, lease, generation, source: address, target, report })
    }

    /// The move that is neither confirmed nor rolled back.
    pub(super) async fn find_open(&self, tenant: TenantId) -> Result<Option<Record>, CoreError> {
        open_in(&mut *self.tx().await?, tenant).await
    }

    /// Tenants whose move is neither at rest nor over.
    pub(super) async fn list_unfinished(&self, at_most: i64) -> Result<Vec<TenantId>, CoreError> {
        let mut tx = self.tx().await?;
        let tenants: Vec<Uuid> = sqlx::query_scalar(
            "select tenant_id
             from saas.move -- of every tenant
             where state not in ('switched', 'confirmed', 'rolled_back')
             order by changed_at
             limit $1",
        )
        .bind(at_most)
        .fetch_all(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        Ok(tenants.into_iter().map(TenantId::from_uuid).collect())
    }

    /// Becomes the one who drives the move, and reads it as it is then. Waits for a former driver's switch that may still
    /// be on its way: its outcome is known afterwards.
    pub(super) async fn take_over(&self, record: &mut Record) -> Result<(), MoveError> {
        let mut tx = self.tx().await?;
        let now = self.clock.now();
        let lease = LeaseToken::mint_at(now).as_uuid();
        let row: Option<(String, Json<Report>)> = sqlx::query_as(
            "update saas.move set lease = $3, changed_at = $4 where tenant_id = $1 and id = $2 returning state, report",
        )
        .bind(record.tenant.as_uuid())
        .bind(record.id)
        .bind(lease)
        .bind(now)
        .fetch_optional(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        tx.commit().await?;
        let (state, report) = row.ok_or(MoveError::NoMove)?;
        (record.state, record.report, record.lease) = (state.parse()?, report.0, lease);
        Ok(())
    }

    /// Records the next state and the report so far.
    pub(super) async fn advance(&self, record: &mut Record, to: State) -> Result<(), MoveError> {
        let mut tx = self.tx().await?;
        self.advance_in(&mut tx, record, to).await?;
        tx.commit().await?;
        record.state = to;
        Ok(())
    }

    async fn advance_in(&self, connection: &mut PgConnection, record: &Record, to: State) -> Result<(), MoveError> {
        let changed = sqlx::query(
            "update saas.move
             set state = $5, report = $6, changed_at = $7
             where tenant_id = $1 and id = $2 and lease = $3 and state = $4",
        )
        .bind(record.tenant.as_uuid())
        .bind(record.id)
        .bind(record.lease)
        .bind(record.state.as_str())
        .bind(to.as_str())
        .bind(Json(&record.report))
        .bind(self.clock.now())
        .execute(connection)
        .await
        .map_err(CoreError::from_database)?;
        if changed.rows_affected() == 1 { Ok(()) } else { Err(MoveError::Driven) }
    }

    /// Records the state that comes next, without committing it, and what the tenant's door has to say. Until the answered
    /// transaction ends, nobody changes the tenant's status, and nobody takes the move over.
    pub(super) async fn take_turn(&self, record: &Record, to: State) -> Result<(SystemTx, Door), MoveError> {
        let mut tx = self.tx().await?;
        let door = lock_door(&mut tx, record.tenant).await?;
        self.advance_in(&mut tx, record, to).await?;
        if record.home(&placement_in(&mut tx, record.tenant).await?) != Home::Source {
            return Err(MoveError::PlacementChanged { state: record.state });
        }
        Ok((tx, door))
    }

    /// The point of no return: the tenant is at home in the target, and every process hears of it.
    pub(super) async fn switch(&self, mut turn: SystemTx, record: &mut Record) -> Result<(), MoveError> {
        let (tenant, now) = (record.tenant, self.clock.now());
        // What the ledger says of the place's tables goes before what was said when the move was asked for.
        sqlx::query(
            "insert into saas.placement
                 (tenant_id, mode, cluster, database_name, schema_name, schema_version, generation, state, changed_at)
             select $1::uuid, $2, $3, $4, $5, case when $2 <> 'pooled' then coalesce(
                        (select s.version from saas.fleet_site s
                         where s.cluster = $3 and s.database_name = coalesce($4, '') and s.schema_name = coalesce($5, '')),
                        $6) end, $7::bigint, 'active', $8::timestamptz
             on conflict (tenant_id) do update
             set mode = excluded.mode, cluster = excluded.cluster, database_name = excluded.database_name,
                 schema_name = excluded.schema_name, schema_version = excluded.schema_version,
                 generation = excluded.generation, state = excluded.state, reason = null, changed_at = excluded.changed_at",
        )
        .bind(tenant.as_uuid())
        .bind(record.target.mode.as_str())
        .bind(&record.target.cluster)
        .bind(&record.target.database)
        .bind(&record.target.schema)
        .bind(record.target.schema_version)
        .bind(record.generation + 1)
        .bind(now)
        .execute(&mut *turn)
        .await
        .map_err(CoreError::from_database)?;
        // Whatever door was due where it lived: the new one was opened as its status is.
        forget_due(&mut turn, tenant).await?;
        revision::bump_in(&mut turn, tenant).await?;
        self.audit_in(&mut turn, record, "tenant.moved").await?;
        turn.commit().await?;
        record.state = State::Switched;
        Ok(())
    }

    /// The last state of a move. `gone` is a place of the tenant's own that is no more: the fleet's ledger forgets it.
    pub(super) async fn finish(
        &self,
        record: &mut Record,
        to: State,
        action: &'static str,
        gone: Option<&Address>,
    ) -> Result<(), MoveError> {
        let mut tx = self.tx().await?;
        self.advance_in(&mut tx, record, to).await?;
        if let Some(gone) = gone {
            clear::forget_site_in(&mut tx, gone).await?;
        }
        self.audit_in(&mut tx, record, action).await?;
        tx.commit().await?;
        record.state = to;
        Ok(())
    }

    async fn audit_in(
        &self,
        connection: &mut PgConnection,
        record: &Record,
        action: &'static str,
    ) -> Result<(), CoreError> {
        let detail = json!({
            "from": record.source.to_string(),
            "to": record.target.to_string(),
            "rows": record.report.rows(),
            "freeze_ms": u64::try_from(record.report.freeze.as_millis()).unwrap_or(u64::MAX),
        });
        let entry = audit::Entry::new(action, record.id).with_detail(detail);
        audit::record_in(connection, record.tenant, &Actor::system("mover"), entry, self.clock.now()).await.map(drop)
    }

    /// Records that a table has arrived.
    pub(super) async fn arrived(
        &self,
        record: &Record,
        table: &str,
        carried: Carried,
        checksum: &str,
    ) -> Result<(), MoveError> {
        let mut tx = self.tx().await?;
        self.advance_in(&mut tx, record, record.state).await?;
        sqlx::query(
            "insert into saas.move_table (tenant_id, move_id, name, row_count, byte_count, checksum)
             values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(record.tenant.as_uuid())
        .bind(record.id)
        .bind(table)
        .bind(i64::try_from(carried.rows).unwrap_or(i64::MAX))
        .bind(i64::try_from(carried.bytes).unwrap_or(i64::MAX))
        .bind(checksum)
        .execute(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        Ok(tx.commit().await?)
    }

    /// Forgets what had arrived: the target is about to be cleared.
    pub(super) async fn forget_arrived(&self, record: &Record) -> Result<(), CoreError> {
        let mut tx = self.tx().await?;
        sqlx::query("delete from saas.move_table where tenant_id = $1 and move_id = $2")
            .bind(record.tenant.as_uuid())
            .bind(record.id)
            .execute(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        tx.commit().await
    }

    /// Tables that have arrived: rows, bytes, checksum.
    pub(super) async fn list_arrived(
        &self,
        record: &Record,
    ) -> Result<BTreeMap<String, (i64, i64, String)>, CoreError> {
        let mut tx = self.tx().await?;
        let rows: Vec<(String, i64, i64, String)> = sqlx::query_as(
            "select name, row_count, byte_count, checksum from saas.move_table where tenant_id = $1 and move_id = $2",
        )
        .bind(record.tenant.as_uuid())
        .bind(record.id)
        .fetch_all(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        Ok(rows.into_iter().map(|(name, rows, bytes, checksum)| (name, (rows, bytes, checksum))).collect())
    }
}

async fn open_in(connection: &mut PgConnection, tenant: TenantId) -> Result<Option<Record>, CoreError> {
    let row: Option<Row> = sqlx::query_as(
        "select id, state, lease, generation, source, target, report
         from saas.move
         where tenant_id = $1 and state not in ('confirmed', 'rolled_back')",
    )
    .bind(tenant.as_uuid())
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    row.map(|(id, state, lease, generation, source, target, report)| {
        let (source, target, report) = (source.0, target.0, report.0);
        Ok(Record { tenant, id, state: state.parse()?, lease, generation, source, target, report })
    })
    .transpose()
}
