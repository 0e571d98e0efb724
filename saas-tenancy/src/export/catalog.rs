//! Which tables hold a tenant's rows: asked of PostgreSQL's catalogue, inside the export's own snapshot.

use std::collections::BTreeMap;

use saas_core::{CoreError, TenantTx};

use super::{
    encode::Encoding,
    manifest::{ColumnManifest, LeftOut},
};
use crate::TenancyError;

/// A table to export.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) schema: String,
    pub(super) table: String,
    /// Quoted, for SQL and people.
    pub(super) name: String,
    pub(super) columns: Vec<ColumnManifest>,
    pub(super) omitted: Vec<LeftOut>,
}

/// Which part of a database is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Everything: foundation and application live together.
    Whole,
    /// The schema `saas` only.
    Foundation,
    /// Everything else.
    Application,
}

impl Part {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Foundation => "foundation",
            Self::Application => "application",
        }
    }
}

type Found = (String, String, String, Option<String>, bool);

/// The tenant's tables, and those that hold something of the tenant's and cannot or must not leave.
///
/// Where the session lives in a schema of its own, the application's tables are those of that schema.
pub(super) async fn tables(tx: &mut TenantTx, part: Part) -> Result<(Vec<Table>, Vec<LeftOut>), TenancyError> {
    let found: Vec<Found> = sqlx::query_as(
        "select n.nspname::text, c.relname::text, quoted.name,
                case
                    when o.reason is not null then o.reason
                    when g.reason is not null then 'belongs to no tenant: ' || g.reason
                    when not own.is_keyed then 'names the tenant in another column than tenant_id'
                    when not has_any_column_privilege(c.oid, 'select') then 'closed to tenants'
                end,
                c.relrowsecurity and exists (
                    select from pg_policy p where p.polrelid = c.oid and p.polname = 'saas_tenant_only')
         from pg_class c
         join pg_namespace n on n.oid = c.relnamespace
         cross join lateral format('%I.%I', n.nspname, c.relname) as quoted (name)
         cross join lateral (
             select c.oid = 'saas.tenant'::regclass or exists (
                 select from pg_attribute a
                 where a.attrelid = c.oid and a.attname = 'tenant_id' and a.atttypid = 'uuid'::regtype
                   and not a.attisdropped) as is_keyed) as own
         left join saas.global_table g on g.name = quoted.name
         left join saas.export_omission o on o.name = quoted.name and o.column_name = ''
         where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence <> 't'
           and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\\_%'
           and (own.is_keyed or exists (
               select from pg_constraint k
               where k.conrelid = c.oid and k.contype = 'f' and k.confrelid = 'saas.tenant'::regclass))
           and case
               when n.nspname = 'saas' then $1 <> 'application'
               when current_schema() like 'saas\\_t\\_%' then $1 <> 'foundation' and n.nspname = current_schema()
               else $1 <> 'foundation' and n.nspname not like 'saas\\_t\\_%'
           end
         order by quoted.name",
    )
    .bind(part.as_str())
    .fetch_all(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let (mut tables, mut left_out) = (Vec::new(), Vec::new());
    for (schema, table, name, reason, is_fenced) in found {
        match reason {
            Some(reason) => left_out.push(LeftOut { name, reason }),
            None if !is_fenced => return Err(TenancyError::Unfenced { table: name }),
            None => {
                let (columns, omitted) = columns(tx, &name).await?;
                tables.push(Table { schema, table, name, columns, omitted });
            }
        }
    }
    Ok((tables, left_out))
}

async fn columns(tx: &mut TenantTx, table: &str) -> Result<(Vec<ColumnManifest>, Vec<LeftOut>), TenancyError> {
    let rows: Vec<(String, String, String, Option<String>)> = sqlx::query_as(
        "select a.attname::text, format_type(a.atttypid, a.atttypmod), base.name,
                case
                    when o.reason is not null then o.reason
                    when not has_column_privilege(a.attrelid, a.attnum, 'select') then 'closed to tenants'
                end
         from pg_attribute a
         cross join lateral (
             with recursive step as (
                 select t.typname, t.typtype, t.typbasetype, t.typnamespace from pg_type t where t.oid = a.atttypid
                 union all
                 select t.typname, t.typtype, t.typbasetype, t.typnamespace
                 from step join pg_type t on t.oid = step.typbasetype
                 where step.typtype = 'd')
             select case when typnamespace = 'pg_catalog'::regnamespace then typname::text else 'other' end as name
             from step where typtype <> 'd') as base
         left join saas.export_omission o on o.name = $1 and o.column_name = a.attname
         where a.attrelid = $1::text::regclass and a.attnum > 0 and not a.attisdropped
         order by a.attnum",
    )
    .bind(table)
    .fetch_all(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let (mut columns, mut omitted) = (Vec::new(), Vec::new());
    for (name, sql_type, base_type, reason) in rows {
        match reason {
            Some(reason) => omitted.push(LeftOut { name, reason }),
            None => columns.push(ColumnManifest { name, sql_type, encoding: Encoding::of(&base_type) }),
        }
    }
    Ok((columns, omitted))
}

/// Which database of which cluster a transaction runs in.
pub(super) async fn identity(tx: &mut TenantTx) -> Result<(i64, String), TenancyError> {
    sqlx::query_as("select system_identifier, current_database()::text from pg_control_system()")
        .fetch_one(&mut **tx)
        .await
        .map_err(|error| CoreError::from_database(error).into())
}

/// The version of each part of the foundation's schema.
pub(super) async fn schema_versions(tx: &mut TenantTx) -> Result<BTreeMap<String, i64>, TenancyError> {
    let versions: Vec<(String, i64)> = sqlx::query_as("select module, version from saas.schema_versions()")
        .fetch_all(&mut **tx)
        .await
        .map_err(CoreError::from_database)?;
    Ok(versions.into_iter().collect())
}
