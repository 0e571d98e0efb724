//! Creates and drops a tenant's own schema. The name travels as a setting, so that the text stays constant.

use saas_core::{CoreError, db::SchemaName};
use sqlx::PgConnection;

use super::{Ground, close, connect};
use crate::placement::{Database, Login, PlacementError};

const CREATE: &str = "do $$
declare
    name constant text := current_setting('saas.site_schema');
begin
    -- Not `if not exists`: that would say so in the log each time.
    if to_regnamespace(quote_ident(name)) is null then
        execute format('create schema %I authorization saas_owner', name);
    end if;
    execute format('revoke all on schema %I from public', name);
    execute format('grant usage on schema %I to saas_app, saas_system', name);
end $$";

/// What the fence, the audit, erasures and exports remember about the schema's tables goes with them.
const DROP: &str = "do $$
declare
    doomed constant text := current_setting('saas.site_schema');
begin
    set local client_min_messages = warning;
    execute format('drop schema if exists %I cascade', doomed);
    delete from saas.fenced_table f where starts_with(f.name, quote_ident(doomed) || '.');
    delete from saas.global_table g where starts_with(g.name, quote_ident(doomed) || '.');
    delete from saas.accepted_finding a where starts_with(a.object, quote_ident(doomed) || '.');
    delete from saas.retained_table r where starts_with(r.name, quote_ident(doomed) || '.');
    delete from saas.export_omission o where starts_with(o.name, quote_ident(doomed) || '.');
end $$";

/// Lets the system look into tables that were never fenced. Where row-level security is on, its policies decide.
const LET_LOOK: &str = "do $$
declare
    wanted  constant text := current_setting('saas.site_schema');
    shelf   record;
begin
    for shelf in
        select n.nspname, c.relname
        from pg_class c
        join pg_namespace n on n.oid = c.relnamespace
        join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
        where c.relkind in ('r', 'p') and not c.relispartition and not c.relrowsecurity and n.nspname = wanted
    loop
        execute format('grant select on %I.%I to saas_system', shelf.nspname, shelf.relname);
    end loop;
end $$";

/// For a place that is about to be removed.
pub(super) async fn let_look(ground: &Ground, database: &Database, schema: &str) -> Result<(), PlacementError> {
    run(ground, database, schema, LET_LOOK).await
}

pub(super) async fn create(ground: &Ground, database: &Database, name: &SchemaName) -> Result<(), PlacementError> {
    run(ground, database, name.as_str(), CREATE).await
}

pub(super) async fn remove(ground: &Ground, database: &Database, name: &SchemaName) -> Result<(), PlacementError> {
    run(ground, database, name.as_str(), DROP).await
}

async fn run(ground: &Ground, database: &Database, name: &str, script: &'static str) -> Result<(), PlacementError> {
    let mut connection = connect(&ground.clusters, database, Login::Admin, ground.timeouts).await?;
    let done = async {
        name_schema(&mut connection, name).await?;
        sqlx::raw_sql(script).execute(&mut connection).await.map(drop)
    }
    .await;
    close(connection).await;
    Ok(done.map_err(CoreError::from_database)?)
}

/// Tells the scripts of a session which schema is meant.
pub(super) async fn name_schema(connection: &mut PgConnection, name: &str) -> Result<(), sqlx::Error> {
    sqlx::query("select set_config('saas.site_schema', $1, false)").bind(name).execute(connection).await.map(drop)
}
