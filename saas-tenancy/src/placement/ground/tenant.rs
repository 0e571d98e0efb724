//! A tenant's own rows in a database that is not the control one: the parent of its tables' rows, and its door. And
//! whether it has rows in a place.

use std::time::Duration;

use saas_core::{Actor, CoreError, SystemTx, TenantId, db::Generation};
use sqlx::PgConnection;

use super::Ground;
use crate::{
    lifecycle::store::Door,
    placement::{Database, PlacementError, Site},
};

/// What stands in `saas.tenant` about a tenant.
#[derive(Debug, Clone)]
pub(in crate::placement) struct Stub {
    pub(in crate::placement) tenant: TenantId,
    pub(in crate::placement) slug: String,
    pub(in crate::placement) name: String,
    pub(in crate::placement) created_at: chrono::DateTime<chrono::Utc>,
}

const PLACES: Actor = Actor::system("places");

/// Looks through the tables that have tenants' rows, in one schema or, without one, in all that are neither the
/// foundation's nor one tenant's own. Raises SA002 with the table's name when the tenant has a row (without a tenant: when
/// anybody has), or may have one.
const LOOK: &str = "do $$
declare
    wanted  constant text := current_setting('saas.site_schema');
    owner   constant uuid := nullif(current_setting('saas.site_tenant'), '')::uuid;
    shelf   record;
    hit     boolean;
begin
    for shelf in
        select n.nspname, c.relname,
               c.relrowsecurity and not exists (
                   select from pg_policy p where p.polrelid = c.oid and p.polname = 'saas_system') as is_hidden
        from pg_class c
        join pg_namespace n on n.oid = c.relnamespace
        join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
        where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence <> 't'
          and case when wanted <> '' then n.nspname = wanted
                   else n.nspname not in ('saas', 'information_schema') and n.nspname not like 'pg\\_%'
                        and n.nspname not like 'saas\\_t\\_%' end
    loop
        execute format('select exists (select from %I.%I where $1 is null or tenant_id = $1)', shelf.nspname, shelf.relname)
            into hit using owner;
        -- What policies of the application's own hide from the system is not known to be empty.
        if hit or shelf.is_hidden then
            raise exception 'saas: the tenant has rows' using errcode = 'SA002', table = shelf.relname, schema = shelf.nspname;
        end if;
    end loop;
end $$";

/// Finds a table of the application in which the tenant has rows, or without one anybody: in that schema, or in the shared
/// ones.
///
/// Fails when the system may not read one of them: it then cannot know.
pub(in crate::placement) async fn find_rows_in(
    tx: &mut PgConnection,
    tenant: Option<TenantId>,
    schema: Option<&str>,
) -> Result<Option<String>, CoreError> {
    sqlx::query("select set_config('saas.site_schema', $1, true), set_config('saas.site_tenant', $2, true)")
        .bind(schema.unwrap_or_default())
        .bind(tenant.map(|tenant| tenant.to_string()).unwrap_or_default())
        .execute(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
    match sqlx::raw_sql(LOOK).execute(tx).await {
        Ok(_) => Ok(None),
        Err(error) => {
            let found = error.as_database_error().filter(|e| e.code().is_some_and(|code| code == "SA002"));
            match found.and_then(|e| e.table()) {
                Some(table) => Ok(Some(table.to_owned())),
                None => Err(CoreError::from_database(error)),
            }
        }
    }
}

impl Ground {
    /// Registers the tenant in another database than the control one, behind a closed door.
    pub(in crate::placement) async fn register(
        &self,
        database: &Database,
        stub: &Stub,
        generation: Generation,
    ) -> Result<(), PlacementError> {
        self.as_system(database, "register a tenant in another database", async |tx| {
            sqlx::query(
                "insert into saas.tenant (id, slug, name, created_at) values ($1, $2, $3, $4) on conflict (id) do nothing",
            )
            .bind(stub.tenant.as_uuid())
            .bind(&stub.slug)
            .bind(&stub.name)
            .bind(stub.created_at)
            .execute(&mut **tx)
            .await
            .map_err(CoreError::from_database)?;
            set_door_in(tx, stub.tenant, generation, Door::closed("its place is being made")).await
        })
        .await
    }

    /// Sets the door of a tenant in another database than the control one.
    pub(in crate::placement) async fn set_door(
        &self,
        database: &Database,
        tenant: TenantId,
        generation: Generation,
        door: Door,
    ) -> Result<(), PlacementError> {
        self.as_system(database, "open a tenant's door", async |tx| set_door_in(tx, tenant, generation, door).await)
            .await
    }

    /// Waits until none of the tenant's transactions is under way in another database, and lets no further one in.
    pub(in crate::placement) async fn close_door(
        &self,
        database: &Database,
        tenant: TenantId,
        generation: Generation,
    ) -> Result<(), PlacementError> {
        let patience = self.timeouts.lock;
        self.as_system(database, "close a tenant's door", async |tx| {
            set_lock_timeout_in(tx, patience).await?;
            lock_door_in(tx, tenant).await?;
            set_door_in(tx, tenant, generation, Door::closed("its place is being removed")).await
        })
        .await
    }

    /// Takes a tenant's registration in another database back.
    pub(in crate::placement) async fn unregister(
        &self,
        database: &Database,
        tenant: TenantId,
    ) -> Result<(), PlacementError> {
        self.as_system(database, "remove a tenant from another database", async |tx| {
            for statement in ["delete from saas.resident where tenant_id = $1", "delete from saas.tenant where id = $1"]
            {
                sqlx::query(statement)
                    .bind(tenant.as_uuid())
                    .execute(&mut **tx)
                    .await
                    .map_err(CoreError::from_database)?;
            }
            Ok(())
        })
        .await
    }

    /// Finds a table of the site in which the tenant has rows, or may have some; in a site of its own, whoever's they are.
    pub(in crate::placement) async fn find_rows(
        &self,
        site: &Site,
        tenant: TenantId,
    ) -> Result<Option<String>, PlacementError> {
        let schema = site.schema.as_ref().map(|schema| schema.as_str());
        if !site.is_shared() {
            super::schema::let_look(self, &site.database, site.schema_or_public()).await?;
        }
        let system = self.system(&site.database).await?;
        let found = async {
            let mut tx = SystemTx::begin(&system, PLACES, "look for a tenant's rows").await?;
            // Only looked: there is nothing to commit, and a row that was found has ended the transaction.
            find_rows_in(&mut tx, site.is_shared().then_some(tenant), schema).await
        }
        .await;
        system.pool().close().await;
        Ok(found?)
    }

    async fn as_system<T>(
        &self,
        database: &Database,
        reason: &'static str,
        work: impl AsyncFnOnce(&mut SystemTx) -> Result<T, CoreError>,
    ) -> Result<T, PlacementError> {
        let system = self.system(database).await?;
        let done = async {
            let mut tx = SystemTx::begin(&system, PLACES, reason).await?;
            let done = work(&mut tx).await?;
            tx.commit().await?;
            Ok::<T, CoreError>(done)
        }
        .await;
        system.pool().close().await;
        Ok(done?)
    }
}

/// Waits until none of the tenant's transactions is under way in this database. Those that come later wait for the end of
/// this one.
pub(in crate::placement) async fn lock_door_in(tx: &mut PgConnection, tenant: TenantId) -> Result<(), CoreError> {
    sqlx::query("select pg_advisory_xact_lock(saas.door($1))")
        .bind(tenant.as_uuid())
        .execute(tx)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
}

/// How long this transaction waits for a lock.
pub(in crate::placement) async fn set_lock_timeout_in(
    tx: &mut PgConnection,
    timeout: Duration,
) -> Result<(), CoreError> {
    sqlx::query("select set_config('lock_timeout', $1, true)")
        .bind(timeout.as_millis().clamp(1, 2_147_483_647).to_string())
        .execute(tx)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
}

/// Says at which generation the tenant is at home in a database, and whether it is let in.
pub(in crate::placement) async fn set_door_in(
    tx: &mut PgConnection,
    tenant: TenantId,
    generation: Generation,
    door: Door,
) -> Result<(), CoreError> {
    sqlx::query(
        "insert into saas.resident (tenant_id, generation, state, reason)
         values ($1, $2, $3, $4)
         on conflict (tenant_id) do update
         set generation = excluded.generation, state = excluded.state, reason = excluded.reason",
    )
    .bind(tenant.as_uuid())
    .bind(generation.get())
    .bind(door.state)
    .bind(door.reason)
    .execute(tx)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}
