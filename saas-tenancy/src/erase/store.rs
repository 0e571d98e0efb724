//! The statements on an erasure's own tables, and on the tombstone.

use chrono::{DateTime, Utc};
use saas_core::{Actor, CoreError, SystemTx, TenantId};

use super::{EraseState, ErasedPlace, ErasedTable, Erasure};
use crate::postgres::execute;

const CORRUPT: CoreError = CoreError::Corrupt { table: "saas.erasure", column: "state" };
/// Where what was kept stands in the order of a report.
const LAST: i32 = i32::MAX;

type Row = (
    String,
    bool,
    String,
    String,
    DateTime<Utc>,
    Option<String>,
    Option<DateTime<Utc>>,
    Option<String>,
    Option<DateTime<Utc>>,
    Option<String>,
);

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Close the door of the tenant's own place, and list its tables.
    Shut,
    /// Empty a table.
    Table { name: String, at_place: bool },
    /// Remove the tenant's own place.
    Remove,
}

/// The erasure of a tenant, locked until the transaction ends: whoever runs it runs alone.
pub(super) async fn find_locked(tx: &mut SystemTx, tenant: TenantId) -> Result<Option<Erasure>, CoreError> {
    let locked = sqlx::query("select 1 from saas.erasure where tenant_id = $1 for update").bind(tenant.as_uuid());
    execute(tx, locked).await?;
    find(tx, tenant).await
}

/// The erasure of a tenant as it stands, without waiting for a step that is under way.
pub(super) async fn find(tx: &mut SystemTx, tenant: TenantId) -> Result<Option<Erasure>, CoreError> {
    let row: Option<Row> = sqlx::query_as(
        "select state, frees_slug, reason, requested_by, requested_at, approved_by, approved_at, failure, finished_at, place
         from saas.erasure
         where tenant_id = $1",
    )
    .bind(tenant.as_uuid())
    .fetch_optional(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let Some(row) = row else { return Ok(None) };
    let (state, frees_slug, reason, requested_by, requested_at, approved_by, approved_at, failure, finished_at, place) =
        row;
    let state = EraseState::ALL.iter().copied().find(|known| known.as_str() == state).ok_or(CORRUPT)?;
    let (mut tables, mut of_place) = (Vec::new(), None);
    for (table, is_open) in steps(tx, tenant).await? {
        if table.at_place && table.name.is_empty() {
            of_place = Some((!is_open && table.kept_reason.is_none(), table.kept_reason));
        } else {
            tables.push(table);
        }
    }
    let place = place.map(|name| {
        let (is_removed, kept_reason) = of_place.unwrap_or_default();
        ErasedPlace { name, is_removed, kept_reason }
    });
    Ok(Some(Erasure {
        tenant,
        state,
        frees_slug,
        reason,
        requested_by,
        requested_at,
        approved_by,
        approved_at,
        failure,
        finished_at,
        place,
        tables,
    }))
}

/// The tables of an erasure in their order, each with whether it is still to be emptied.
async fn steps(tx: &mut SystemTx, tenant: TenantId) -> Result<Vec<(ErasedTable, bool)>, CoreError> {
    let rows: Vec<(String, bool, i64, i64, Option<String>, bool)> = sqlx::query_as(
        "select table_name, at_place, rows_erased, rows_kept, kept_reason, finished_at is null
         from saas.erasure_step
         where tenant_id = $1
         order by place, at_place, table_name",
    )
    .bind(tenant.as_uuid())
    .fetch_all(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let count = |rows: i64| u64::try_from(rows).unwrap_or(0);
    Ok(rows
        .into_iter()
        .map(|(name, at_place, erased, kept, kept_reason, is_open)| {
            let (rows_erased, rows_kept) = (count(erased), count(kept));
            (ErasedTable { name, at_place, rows_erased, rows_kept, kept_reason }, is_open)
        })
        .collect())
}

/// The first step that is not finished.
pub(super) async fn next(tx: &mut SystemTx, tenant: TenantId) -> Result<Option<Next>, CoreError> {
    let row: Option<(String, bool, bool)> = sqlx::query_as(
        "select table_name, at_place, rows_found is not null
         from saas.erasure_step
         where tenant_id = $1 and finished_at is null
         order by place, at_place, table_name
         limit 1",
    )
    .bind(tenant.as_uuid())
    .fetch_optional(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    Ok(row.map(|(name, at_place, is_shut)| match (name.is_empty(), is_shut) {
        (true, false) => Next::Shut,
        (true, true) => Next::Remove,
        (false, _) => Next::Table { name, at_place },
    }))
}

pub(super) async fn request(
    tx: &mut SystemTx,
    tenant: TenantId,
    actor: &Actor,
    reason: &str,
    frees_slug: bool,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    let put = sqlx::query(
        "insert into saas.erasure (tenant_id, state, frees_slug, reason, requested_by, requested_at)
         values ($1, 'requested', $2, $3, $4, $5)",
    );
    let put = put.bind(tenant.as_uuid()).bind(frees_slug).bind(reason).bind(actor.to_string()).bind(now);
    execute(tx, put).await.map(drop)
}

pub(super) async fn approve(
    tx: &mut SystemTx,
    tenant: TenantId,
    actor: &Actor,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    let set = sqlx::query(
        "update saas.erasure set state = 'approved', approved_by = $2, approved_at = $3 where tenant_id = $1",
    );
    execute(tx, set.bind(tenant.as_uuid()).bind(actor.to_string()).bind(now)).await.map(drop)
}

pub(super) async fn withdraw(tx: &mut SystemTx, tenant: TenantId) -> Result<(), CoreError> {
    let forget = sqlx::query("delete from saas.erasure where tenant_id = $1").bind(tenant.as_uuid());
    execute(tx, forget).await.map(drop)
}

/// Sets a state that says nothing else: running, failed with a code, or done at an instant.
pub(super) async fn set_state(
    tx: &mut SystemTx,
    tenant: TenantId,
    state: EraseState,
    failure: Option<&str>,
    finished_at: Option<DateTime<Utc>>,
) -> Result<(), CoreError> {
    let set = sqlx::query("update saas.erasure set state = $2, failure = $3, finished_at = $4 where tenant_id = $1");
    let set = set.bind(tenant.as_uuid()).bind(state.as_str()).bind(failure).bind(finished_at);
    execute(tx, set).await.map(drop)
}

/// Puts a table of the control database on the list, or on it again; what was counted before stays counted.
pub(super) async fn open_step(tx: &mut SystemTx, tenant: TenantId, table: &str, place: i32) -> Result<(), CoreError> {
    let open = sqlx::query(
        "insert into saas.erasure_step (tenant_id, table_name, place)
         values ($1, $2, $3)
         on conflict (tenant_id, at_place, table_name) do update
         set place = excluded.place, finished_at = null, kept_reason = null, rows_kept = 0",
    );
    execute(tx, open.bind(tenant.as_uuid()).bind(table).bind(place)).await.map(drop)
}

/// Puts the tenant's own place on the list, and into the report. Once: what an earlier try has found there stands.
pub(super) async fn open_place(
    tx: &mut SystemTx,
    tenant: TenantId,
    name: &str,
    place: i32,
    is_shut: bool,
) -> Result<(), CoreError> {
    let note = sqlx::query("update saas.erasure set place = $2 where tenant_id = $1").bind(tenant.as_uuid()).bind(name);
    execute(tx, note).await?;
    let open = sqlx::query(
        "insert into saas.erasure_step (tenant_id, at_place, table_name, place, rows_found)
         values ($1, true, '', $2, case when $3 then 0 end)
         on conflict (tenant_id, at_place, table_name) do update
         set place = excluded.place
         where saas.erasure_step.finished_at is null and $3",
    );
    execute(tx, open.bind(tenant.as_uuid()).bind(place).bind(is_shut)).await.map(drop)
}

/// Puts a table of the tenant's own place on the list, with its rows, which nobody can add to any more.
pub(super) async fn open_step_at_place(
    tx: &mut SystemTx,
    tenant: TenantId,
    table: &str,
    place: i32,
    rows: u64,
) -> Result<(), CoreError> {
    let open = sqlx::query(
        "insert into saas.erasure_step (tenant_id, at_place, table_name, place, rows_found)
         values ($1, true, $2, $3, $4)
         on conflict (tenant_id, at_place, table_name) do nothing",
    );
    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
    execute(tx, open.bind(tenant.as_uuid()).bind(table).bind(place).bind(rows)).await.map(drop)
}

/// The place's door is closed: its removal comes after its tables.
pub(super) async fn set_shut(tx: &mut SystemTx, tenant: TenantId, place: i32) -> Result<(), CoreError> {
    let set = sqlx::query(
        "update saas.erasure_step set rows_found = 0, place = $2 where tenant_id = $1 and at_place and table_name = ''",
    );
    execute(tx, set.bind(tenant.as_uuid()).bind(place)).await.map(drop)
}

/// Counts a batch; a table is finished, at an instant, when a batch found nothing. What was counted before the first batch
/// is then what was erased.
pub(super) async fn count_step(
    tx: &mut SystemTx,
    tenant: TenantId,
    (table, at_place): (&str, bool),
    rows: i64,
    finished_at: Option<DateTime<Utc>>,
) -> Result<(), CoreError> {
    let count = sqlx::query(
        "update saas.erasure_step
         set rows_erased = greatest(rows_erased + $4, case when $5::timestamptz is not null then rows_found end),
             finished_at = $5
         where tenant_id = $1 and at_place = $2 and table_name = $3",
    );
    let count = count.bind(tenant.as_uuid()).bind(at_place).bind(table).bind(rows).bind(finished_at);
    execute(tx, count).await.map(drop)
}

/// Records a table, or with the name `""` the place itself, that was kept.
pub(super) async fn keep_step(
    tx: &mut SystemTx,
    tenant: TenantId,
    (table, at_place): (&str, bool),
    rows: u64,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    let keep = sqlx::query(
        "insert into saas.erasure_step (tenant_id, at_place, table_name, place, rows_kept, kept_reason, finished_at)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (tenant_id, at_place, table_name) do update
         set rows_kept = excluded.rows_kept, kept_reason = excluded.kept_reason, finished_at = excluded.finished_at",
    );
    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
    let keep = keep.bind(tenant.as_uuid()).bind(at_place).bind(table).bind(LAST).bind(rows).bind(reason).bind(now);
    execute(tx, keep).await.map(drop)
}

/// Remembers who is a member, before the memberships go.
pub(super) async fn note_accounts(tx: &mut SystemTx, tenant: TenantId) -> Result<(), CoreError> {
    let note = sqlx::query(
        "insert into saas.erasure_account (tenant_id, user_id)
         select tenant_id, user_id from saas.membership where tenant_id = $1
         on conflict (tenant_id, user_id) do nothing",
    );
    execute(tx, note.bind(tenant.as_uuid())).await.map(drop)
}

/// Looks at a batch of the noted accounts: how many, and how many were erased.
pub(super) async fn erase_accounts(tx: &mut SystemTx, tenant: TenantId, batch: i32) -> Result<(i64, i64), CoreError> {
    sqlx::query_as("select looked, erased from saas.erase_accounts($1, $2)")
        .bind(tenant.as_uuid())
        .bind(batch)
        .fetch_one(&mut **tx)
        .await
        .map_err(CoreError::from_database)
}

/// Takes the names from the tenant's row. The row stays: what is kept refers to it, and no other tenant gets its id.
pub(super) async fn bury(tx: &mut SystemTx, tenant: TenantId, frees_slug: bool) -> Result<(), CoreError> {
    let rename = sqlx::query(
        "update saas.tenant
         set name = 'erased', slug = case when $2 then 'erased-' || id::text else slug end
         where id = $1",
    );
    execute(tx, rename.bind(tenant.as_uuid()).bind(frees_slug)).await?;
    if frees_slug {
        let free = sqlx::query("delete from saas.tenant_slug where tenant_id = $1").bind(tenant.as_uuid());
        execute(tx, free).await?;
    }
    Ok(())
}
