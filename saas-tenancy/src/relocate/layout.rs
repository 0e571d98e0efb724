//! What the tables of one side look like.

use saas_core::CoreError;
use sha2::{Digest as _, Sha256};

use super::{MoveError, session::Session};

/// One column, as both sides must have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    /// Quoted where PostgreSQL wants quotes.
    pub(super) quoted: String,
    /// Its place in the table, which may be another on the other side.
    pub(super) place: i16,
    pub(super) kind: String,
    pub(super) is_required: bool,
    /// What computes it; empty for a column that is stored as given.
    pub(super) generated: String,
}

/// A tenant-scoped table of one side.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) name: String,
    pub(super) qualified: String,
    pub(super) columns: Vec<Column>,
    /// Definitions of its constraints and unique indexes.
    pub(super) constraints: Vec<String>,
    /// Partitions, which may be others on the other side.
    pub(super) partitions: String,
    /// All types are PostgreSQL's own: their binary form is the same in every database of one release.
    pub(super) is_plain: bool,
    pub(super) has_key: bool,
}

/// All tables of one side, and its major version.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) tables: Vec<Shape>,
    pub(super) release: i32,
}

impl Layout {
    /// The same for as long as nobody changes these tables.
    pub(super) fn digest(&self, other: &Self) -> String {
        let all = self.tables.iter().chain(&other.tables).fold(String::new(), |all, table| {
            let Shape { qualified, columns, constraints, partitions, .. } = table;
            all + &format!("{qualified} {columns:?} {constraints:?} {partitions};")
        });
        Sha256::digest(all).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }
}

type TableRow = (String, String, bool, bool, bool, bool, String);
type ColumnRow = (String, String, String, String, bool, String, i16);

/// Reads the tables of a schema that belong to tenants.
pub(super) async fn read(session: &mut Session, schema: &str) -> Result<Layout, MoveError> {
    let rows: Vec<TableRow> = sqlx::query_as(
        "select c.relname::text, format('%I.%I', n.nspname, c.relname),
                exists (select from pg_policy p where p.polrelid = c.oid and p.polname = 'saas_tenant') as is_fenced,
                exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary) as has_key,
                exists (select from pg_attribute a
                        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                          and (a.atttypid >= 16384 or a.attcollation >= 16384)) as is_own,
                exists (select from pg_inherits i where c.oid in (i.inhparent, i.inhrelid)) and c.relkind = 'r' as inherits,
                (select coalesce(string_agg(p.relid::oid::text, ' ' order by p.relid::oid), '')
                 from pg_partition_tree(c.oid) p where c.relkind = 'p') as partitions
         from pg_class c
         join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = $1 and c.relkind in ('r', 'p') and not c.relispartition
           and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped)
         order by c.relname collate \"C\"",
    )
    .bind(schema)
    .fetch_all(&mut session.connection)
    .await
    .map_err(CoreError::from_database)?;
    let mut tables = Vec::with_capacity(rows.len());
    for (name, qualified, is_fenced, has_key, is_own, inherits, partitions) in rows {
        if inherits {
            return Err(MoveError::Unmovable {
                reason: "it inherits from a table or is inherited from, so its rows would be there twice".into(),
                remedy: "make it a partitioned table, or let go of the other: alter table … no inherit …".into(),
                table: qualified,
            });
        }
        if !is_fenced {
            return Err(MoveError::Unmovable {
                reason: "it has a tenant_id and no fence".into(),
                remedy: format!("select saas.fence('{qualified}')"),
                table: qualified,
            });
        }
        let (columns, constraints) = (Vec::new(), Vec::new());
        tables.push(Shape { name, qualified, columns, constraints, partitions, is_plain: !is_own, has_key });
    }
    read_columns(session, schema, &mut tables).await?;
    read_constraints(session, schema, &mut tables).await?;
    let release = sqlx::query_scalar("select current_setting('server_version_num')::integer / 10000")
        .fetch_one(&mut session.connection)
        .await
        .map_err(CoreError::from_database)?;
    Ok(Layout { tables, release })
}

async fn read_columns(session: &mut Session, schema: &str, tables: &mut [Shape]) -> Result<(), CoreError> {
    let rows: Vec<ColumnRow> = sqlx::query_as(
        "select c.relname::text, a.attname::text, quote_ident(a.attname), format_type(a.atttypid, a.atttypmod), a.attnotnull,
                case when a.attgenerated = '' then '' else pg_get_expr(d.adbin, d.adrelid) end,
                a.attnum
         from pg_class c
         join pg_namespace n on n.oid = c.relnamespace
         join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
         left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
         where n.nspname = $1 and c.relkind in ('r', 'p') and not c.relispartition
         order by c.relname, a.attname collate \"C\"",
    )
    .bind(schema)
    .fetch_all(&mut session.connection)
    .await
    .map_err(CoreError::from_database)?;
    for (table, name, quoted, kind, is_required, generated, place) in rows {
        if let Some(shape) = tables.iter_mut().find(|shape| shape.name == table) {
            shape.columns.push(Column { name, quoted, place, kind, is_required, generated });
        }
    }
    Ok(())
}

async fn read_constraints(session: &mut Session, schema: &str, tables: &mut [Shape]) -> Result<(), CoreError> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "select c.relname::text, pg_get_constraintdef(k.oid)
         from pg_constraint k
         join pg_class c on c.oid = k.conrelid
         join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = $1 and not c.relispartition and k.contype in ('p', 'u', 'f', 'x', 'c')
         union all
         select c.relname::text, 'UNIQUE' || substring(pg_get_indexdef(i.indexrelid) from ' USING .*')
         from pg_index i
         join pg_class c on c.oid = i.indrelid
         join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = $1 and not c.relispartition and i.indisunique
           and not exists (select from pg_constraint k where k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x'))
         order by 1, 2",
    )
    .bind(schema)
    .fetch_all(&mut session.connection)
    .await
    .map_err(CoreError::from_database)?;
    for (table, definition) in rows {
        if let Some(shape) = tables.iter_mut().find(|shape| shape.name == table) {
            shape.constraints.push(definition);
        }
    }
    Ok(())
}

/// Refuses what would be left behind: tenants' tables in other schemas of a place that is not itself one schema, and rows
/// that stay but refer to rows that go.
pub(super) async fn refuse_leftovers(
    session: &mut Session,
    schema: &str,
    is_one_schema: bool,
) -> Result<(), MoveError> {
    let elsewhere: Option<String> = sqlx::query_scalar(
        "select format('%I.%I', n.nspname, c.relname)
         from pg_policy p
         join pg_class c on c.oid = p.polrelid
         join pg_namespace n on n.oid = c.relnamespace
         where p.polname = 'saas_tenant' and n.nspname not in ('saas', $1) and n.nspname not like 'saas\\_t\\_%' and not $2
         limit 1",
    )
    .bind(schema)
    .bind(is_one_schema)
    .fetch_optional(&mut session.connection)
    .await
    .map_err(CoreError::from_database)?;
    if let Some(table) = elsewhere {
        return Err(MoveError::Unmovable {
            table,
            reason: format!("it is not in the schema `{schema}` with the others"),
            remedy: "keep the application's tables in one schema".into(),
        });
    }
    let inbound: Option<(String, String)> = sqlx::query_as(
        "select format('%I.%I', n.nspname, c.relname), k.conname::text
         from pg_constraint k
         join pg_class c on c.oid = k.conrelid
         join pg_namespace n on n.oid = c.relnamespace
         join pg_class t on t.oid = k.confrelid
         join pg_namespace tn on tn.oid = t.relnamespace
         where k.contype = 'f' and tn.nspname = $1 and not c.relispartition
           and exists (select from pg_policy p where p.polrelid = t.oid and p.polname = 'saas_tenant')
           and not (n.nspname = $1 and exists (select from pg_policy p where p.polrelid = c.oid and p.polname = 'saas_tenant'))
         limit 1",
    )
    .bind(schema)
    .fetch_optional(&mut session.connection)
    .await
    .map_err(CoreError::from_database)?;
    match inbound {
        None => Ok(()),
        Some((table, constraint)) => Err(MoveError::Unmovable {
            reason: format!("it stays, and its foreign key {constraint} refers to rows that go"),
            remedy: format!("give it a tenant_id and a fence, or: alter table {table} drop constraint {constraint}"),
            table,
        }),
    }
}
