//! The facts a plan is made from, asked of PostgreSQL's catalogue as the system role.

use saas_core::{CoreError, SystemTx, TenantId};

use super::plan::{ReferenceFacts, TableFacts};

/// The tables of this database with rows of the tenant: the foundation's, the application's shared ones, and those of the
/// tenant's own schema. Directories that are declared for the system only, such as that of domains, are among them.
pub(super) async fn tables(tx: &mut SystemTx, tenant: TenantId) -> Result<Vec<TableFacts>, CoreError> {
    let rows: Vec<(String, Option<String>, bool, bool)> = sqlx::query_as(
        "select quoted.name, r.reason,
                g.audience is not null or c.relrowsecurity and exists (
                    select from pg_policy p where p.polrelid = c.oid and p.polname = 'saas_system'),
                has_table_privilege(c.oid, 'delete') and has_table_privilege(c.oid, 'select')
         from pg_class c
         join pg_namespace n on n.oid = c.relnamespace
         cross join lateral format('%I.%I', n.nspname, c.relname) as quoted (name)
         left join saas.retained_table r on r.name = quoted.name
         left join saas.global_table g on g.name = quoted.name
         where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence <> 't'
           and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\\_%'
           and (n.nspname not like 'saas\\_t\\_%' or n.nspname = 'saas_t_' || replace($1::text, '-', ''))
           and (c.oid = 'saas.tenant'::regclass or exists (
               select from pg_attribute a
               where a.attrelid = c.oid and a.attname = 'tenant_id' and a.atttypid = 'uuid'::regtype
                 and not a.attisdropped))
           and g.audience is distinct from 'everyone'
         order by quoted.name",
    )
    .bind(tenant.as_uuid())
    .fetch_all(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let facts = |(name, retained, is_fenced, may_delete)| TableFacts { name, retained, is_fenced, may_delete };
    Ok(rows.into_iter().map(facts).collect())
}

/// Every foreign key of the database, those of partitions under their parent's name.
pub(super) async fn references(tx: &mut SystemTx) -> Result<Vec<ReferenceFacts>, CoreError> {
    let rows: Vec<(String, String, String, bool)> = sqlx::query_as(
        "select quote_ident(k.conname), child.name, parent.name,
                exists (
                    select from unnest(k.conkey, k.confkey) as pair (mine, theirs)
                    join pg_attribute m on m.attrelid = k.conrelid and m.attnum = pair.mine
                    join pg_attribute t on t.attrelid = k.confrelid and t.attnum = pair.theirs
                    where m.attname = 'tenant_id'
                      and t.attname = case when k.confrelid = 'saas.tenant'::regclass then 'id' else 'tenant_id' end)
         from pg_constraint k
         cross join lateral (
             select format('%I.%I', n.nspname, c.relname) as name
             from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where c.oid = coalesce(pg_partition_root(k.conrelid), k.conrelid)) as child
         cross join lateral (
             select format('%I.%I', n.nspname, c.relname) as name
             from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where c.oid = coalesce(pg_partition_root(k.confrelid), k.confrelid)) as parent
         where k.contype = 'f' and k.conparentid = 0",
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let facts = |(name, from, to, names_tenant)| ReferenceFacts { name, from, to, names_tenant };
    Ok(rows.into_iter().map(facts).collect())
}

/// How far a move of the tenant is, if one is under way.
pub(super) async fn unfinished_move(tx: &mut SystemTx, tenant: TenantId) -> Result<Option<String>, CoreError> {
    sqlx::query_scalar("select state from saas.move where tenant_id = $1 and state not in ('confirmed', 'rolled_back')")
        .bind(tenant.as_uuid())
        .fetch_optional(&mut **tx)
        .await
        .map_err(CoreError::from_database)
}

/// How many rows of a table are the tenant's; `None` when the system role may not read it.
pub(super) async fn count(tx: &mut SystemTx, table: &str, tenant: TenantId) -> Result<Option<u64>, CoreError> {
    let rows: Option<i64> = sqlx::query_scalar("select saas.count_rows($1::text::regclass, $2)")
        .bind(table)
        .bind(tenant.as_uuid())
        .fetch_one(&mut **tx)
        .await
        .map_err(CoreError::from_database)?;
    Ok(rows.map(|rows| u64::try_from(rows).unwrap_or(0)))
}

/// Erases one batch of a table's rows; 0 when none is left.
pub(super) async fn erase_batch(
    tx: &mut SystemTx,
    table: &str,
    tenant: TenantId,
    batch: i32,
) -> Result<i64, CoreError> {
    sqlx::query_scalar("select saas.erase_batch($1::text::regclass, $2, $3)")
        .bind(table)
        .bind(tenant.as_uuid())
        .bind(batch)
        .fetch_one(&mut **tx)
        .await
        .map_err(CoreError::from_database)
}
