//! What the control database knows about places in the making. Each method is part of the caller's transaction.

use chrono::{DateTime, Utc};
use saas_core::{Actor, CoreError, SystemTx, TenantId, db::Generation, revision, tenant};
use uuid::Uuid;

use super::{Progress, Step, Target};
use crate::lifecycle::{
    State as Lifecycle,
    store::{Door, find_state, forget_due},
};
use crate::placement::{
    ClusterName, Mode, Placement, PlacementError, Site, State,
    ground::{Stub, find_rows_in, lock_door_in, set_door_in},
    ledger, record, stock,
};

pub(super) const PROVISIONER: Actor = Actor::system("provisioner");

/// The longest reason that is kept, in characters.
const REASON: usize = 2_000;

const CORRUPT_STEP: CoreError = CoreError::Corrupt { table: "saas.provisioning", column: "step" };

pub(super) struct Books<'a> {
    pub(super) tx: &'a mut SystemTx,
    pub(super) now: DateTime<Utc>,
}

/// What a provisioner finds when it takes a tenant up.
pub(super) enum Taken {
    Done(Placement),
    ToDo(Placement, Step),
}

impl Books<'_> {
    pub(super) async fn request(
        &mut self,
        tenant: TenantId,
        target: &Target,
        newest: i64,
    ) -> Result<(), PlacementError> {
        tenant::lock_in(self.tx, tenant).await?;
        self.refuse_moving(tenant).await?;
        self.require_alive(tenant).await?;
        let present = record::find_in(self.tx, tenant).await?;
        let shared = Site::shared(ClusterName::control());
        match &present {
            Some(placement) if matches!(placement.state, State::Provisioning | State::Failed) => {
                if target.is_met_by(placement) {
                    return Ok(());
                }
                return in_the_way(
                    tenant,
                    format!("is to get `{}`", placement.site),
                    "resume that, or abandon it first",
                );
            }
            Some(placement) if placement.state == State::Active && target.is_met_by(placement) => return Ok(()),
            Some(placement) if placement.state == State::Moving || placement.site != shared => {
                return in_the_way(tenant, format!("lives at `{}`", placement.site), "move it instead");
            }
            None if target.site(tenant) == shared => return Ok(()),
            Some(_) | None => {}
        }
        // Keeps others out until the closed door is committed.
        lock_door_in(self.tx, tenant).await?;
        if let Some(table) = find_rows_in(self.tx, Some(tenant), None).await? {
            return in_the_way(tenant, format!("has rows in the shared table `{table}`"), "move it instead");
        }
        let generation = present.map_or(Generation::FIRST, |placement| placement.generation).next();
        let state = State::Provisioning;
        let mode = target.mode();
        let site = match mode {
            Mode::Pooled => None,
            Mode::Schema | Mode::Database => stock::claim_in(self.tx, mode, target.cluster(), newest).await?,
        };
        let site = site.unwrap_or_else(|| target.site(tenant));
        let placement = Placement { tenant, mode, site, schema_version: None, generation, state, reason: None };
        record::put_in(self.tx, &placement, self.now).await?;
        set_door_in(self.tx, tenant, generation, Door::closed("its place is being made")).await?;
        sqlx::query(
            "insert into saas.provisioning (tenant_id, step, changed_at) values ($1, 'requested', $2)
             on conflict (tenant_id) do update set step = 'requested', changed_at = excluded.changed_at",
        )
        .bind(tenant.as_uuid())
        .bind(self.now)
        .execute(&mut **self.tx)
        .await
        .map_err(CoreError::from_database)?;
        self.announce(tenant).await
    }

    pub(super) async fn take_up(&mut self, tenant: TenantId) -> Result<Taken, PlacementError> {
        tenant::lock_in(self.tx, tenant).await?;
        let Some(mut placement) = record::find_in(self.tx, tenant).await? else {
            return in_the_way(tenant, "has no place that is being made".to_owned(), "request one first");
        };
        match placement.state {
            State::Active => return Ok(Taken::Done(placement)),
            State::Moving => return in_the_way(tenant, "is being moved".to_owned(), "finish the move"),
            State::Provisioning | State::Failed => {}
        }
        placement.state = State::Provisioning;
        placement.reason = None;
        record::put_in(self.tx, &placement, self.now).await?;
        let step: String = sqlx::query_scalar(
            "insert into saas.provisioning (tenant_id, step, tries, changed_at) values ($1, 'requested', 1, $2)
             on conflict (tenant_id) do update set tries = least(saas.provisioning.tries + 1, 1000000)
             returning step",
        )
        .bind(tenant.as_uuid())
        .bind(self.now)
        .fetch_one(&mut **self.tx)
        .await
        .map_err(CoreError::from_database)?;
        Ok(Taken::ToDo(placement, Step::read(&step).ok_or(CORRUPT_STEP)?))
    }

    /// Notes a step of a place that is still being made.
    pub(super) async fn note(&mut self, placement: &Placement, step: Step) -> Result<(), PlacementError> {
        let noted = sqlx::query(
            "update saas.provisioning set step = $2, changed_at = $3
             where tenant_id = $1
               and exists (select from saas.placement p
                           where p.tenant_id = $1 and p.generation = $4 and p.state = 'provisioning')",
        )
        .bind(placement.tenant.as_uuid())
        .bind(step.as_str())
        .bind(self.now)
        .bind(placement.generation.get())
        .execute(&mut **self.tx)
        .await
        .map_err(CoreError::from_database)?;
        if noted.rows_affected() == 0 {
            return Err(PlacementError::InProgress { what: placement.tenant.to_string() });
        }
        Ok(())
    }

    pub(super) async fn fail(&mut self, placement: &Placement, reason: &str) -> Result<(), PlacementError> {
        sqlx::query(
            "update saas.placement set state = 'failed', reason = $2, changed_at = $3
             where tenant_id = $1 and generation = $4 and state = 'provisioning'",
        )
        .bind(placement.tenant.as_uuid())
        .bind(reason.chars().take(REASON).collect::<String>())
        .bind(self.now)
        .bind(placement.generation.get())
        .execute(&mut **self.tx)
        .await
        .map_err(CoreError::from_database)?;
        self.announce(placement.tenant).await
    }

    /// Lets the tenant in, at once for every process: the placement, the door and the announcement commit together.
    pub(super) async fn activate(&mut self, placement: &Placement, door: Door) -> Result<Placement, PlacementError> {
        let tenant = placement.tenant;
        tenant::lock_in(self.tx, tenant).await?;
        let present = record::find_in(self.tx, tenant).await?;
        let unchanged = present.is_some_and(|p| p.state == placement.state && p.generation == placement.generation);
        if !unchanged {
            return Err(PlacementError::InProgress { what: tenant.to_string() });
        }
        let schema_version = ledger::version_in(self.tx, &placement.site).await?;
        let active = Placement { state: State::Active, reason: None, schema_version, ..placement.clone() };
        record::put_in(self.tx, &active, self.now).await?;
        let door = if placement.site.database.is_control() { door } else { Door::closed("it lives elsewhere") };
        set_door_in(self.tx, tenant, placement.generation, door).await?;
        forget_due(self.tx, tenant).await?;
        self.delete_provisioning(tenant).await?;
        self.announce(tenant).await?;
        Ok(active)
    }

    pub(super) async fn stub(&mut self, tenant: TenantId) -> Result<Stub, CoreError> {
        let (slug, name, created_at): (String, String, DateTime<Utc>) =
            sqlx::query_as("select slug, name, created_at from saas.tenant where id = $1")
                .bind(tenant.as_uuid())
                .fetch_one(&mut **self.tx)
                .await
                .map_err(CoreError::from_database)?;
        Ok(Stub { tenant, slug, name, created_at })
    }

    pub(super) async fn progress(&mut self, tenant: TenantId) -> Result<Option<Progress>, CoreError> {
        let Some(placement) = record::find_in(self.tx, tenant).await? else { return Ok(None) };
        let row: Option<(String, i32, DateTime<Utc>)> =
            sqlx::query_as("select step, tries, changed_at from saas.provisioning where tenant_id = $1")
                .bind(tenant.as_uuid())
                .fetch_optional(&mut **self.tx)
                .await
                .map_err(CoreError::from_database)?;
        let Some((step, tries, since)) = row else {
            return Ok(Some(Progress { placement, step: None, tries: 0, since: None }));
        };
        let step = Some(Step::read(&step).ok_or(CORRUPT_STEP)?);
        Ok(Some(Progress { placement, step, tries, since: Some(since) }))
    }

    pub(super) async fn unfinished(
        &mut self,
        after: Option<TenantId>,
        limit: u16,
    ) -> Result<Vec<(TenantId, State)>, CoreError> {
        let rows: Vec<(Uuid, bool)> = sqlx::query_as(
            "select tenant_id, state = 'failed'
             from saas.placement
             where state in ('provisioning', 'failed') and ($1::uuid is null or tenant_id > $1)
             order by tenant_id
             limit $2",
        )
        .bind(after.map(TenantId::as_uuid))
        .bind(i64::from(limit))
        .fetch_all(&mut **self.tx)
        .await
        .map_err(CoreError::from_database)?;
        let state = |failed| if failed { State::Failed } else { State::Provisioning };
        Ok(rows.into_iter().map(|(id, failed)| (TenantId::from_uuid(id), state(failed))).collect())
    }

    /// A place of its own would open a door to a tenant that is gone.
    async fn require_alive(&mut self, tenant: TenantId) -> Result<(), PlacementError> {
        match find_state(self.tx, tenant).await? {
            Some(state @ (Lifecycle::Erasing | Lifecycle::Erased)) => {
                in_the_way(tenant, format!("is {state}"), "create a new tenant instead")
            }
            Some(Lifecycle::ReadOnly | Lifecycle::Suspended | Lifecycle::Maintenance) | None => Ok(()),
        }
    }

    /// Sends a tenant that is gone back among the shared tables, behind a closed door.
    pub(super) async fn retire(&mut self, placement: &Placement) -> Result<(), PlacementError> {
        let generation = placement.generation.next();
        let pooled = Placement { generation, ..Placement::implicit(placement.tenant, None) };
        record::put_in(self.tx, &pooled, self.now).await?;
        set_door_in(self.tx, placement.tenant, generation, Door::of(Some(Lifecycle::Erasing))).await?;
        self.announce(placement.tenant).await
    }

    pub(super) async fn delete_provisioning(&mut self, tenant: TenantId) -> Result<(), CoreError> {
        sqlx::query("delete from saas.provisioning where tenant_id = $1")
            .bind(tenant.as_uuid())
            .execute(&mut **self.tx)
            .await
            .map(drop)
            .map_err(CoreError::from_database)
    }

    pub(super) async fn announce(&mut self, tenant: TenantId) -> Result<(), PlacementError> {
        revision::bump_in(self.tx, tenant).await?;
        Ok(())
    }
}

pub(super) fn in_the_way<T>(tenant: TenantId, what: String, remedy: &'static str) -> Result<T, PlacementError> {
    Err(PlacementError::InTheWay { tenant, what, remedy })
}
