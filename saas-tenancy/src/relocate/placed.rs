//! Where the control database says that tenants live.

use saas_core::{CoreError, TenantId};
use sqlx::PgConnection;

use super::{Address, Mode, record::Record, state::Home};

/// The placement of a tenant: where, and how often it has moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placement {
    pub(super) address: Address,
    pub(super) generation: i64,
    /// The place is ready.
    pub(super) is_served: bool,
}

impl Record {
    /// What the placement says about this move.
    pub(super) fn home(&self, placement: &Placement) -> Home {
        let is = |address: &Address, generation| {
            placement.generation == generation && placement.address.is_same_place(address)
        };
        if is(&self.source, self.generation) {
            Home::Source
        } else if is(&self.target, self.generation + 1) {
            Home::Target
        } else {
            Home::Elsewhere
        }
    }
}

type Row = (String, String, Option<String>, Option<String>, Option<i64>, i64, bool);

/// Where the tenant is. One that has no placement is in the shared tables of the control database.
pub(super) async fn placement_in(connection: &mut PgConnection, tenant: TenantId) -> Result<Placement, CoreError> {
    let row: Option<Row> = sqlx::query_as(
        "select mode, cluster, database_name, schema_name, schema_version, generation, state in ('active', 'moving')
         from saas.placement
         where tenant_id = $1",
    )
    .bind(tenant.as_uuid())
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    let Some((mode, cluster, database, schema, schema_version, generation, is_served)) = row else {
        return Ok(Placement { address: Address::pooled("control"), generation: 0, is_served: true });
    };
    let mode = match mode.as_str() {
        "pooled" => Mode::Pooled,
        "schema" => Mode::Schema,
        "database" => Mode::Database,
        _ => return Err(CoreError::Corrupt { table: "saas.placement", column: "mode" }),
    };
    Ok(Placement { address: Address { mode, cluster, database, schema, schema_version }, generation, is_served })
}

/// Whether another tenant lives at a place that is to be one tenant's own, or is on its way there or from there.
pub(super) async fn has_others_in(
    connection: &mut PgConnection,
    tenant: TenantId,
    place: &Address,
) -> Result<bool, CoreError> {
    sqlx::query_scalar(
        "select exists (select from saas.placement
                        where not (tenant_id = $1) and cluster = $2
                          and database_name is not distinct from $3 and schema_name is not distinct from $4)
             or exists (select from saas.move m
                        cross join lateral (values (m.source), (m.target)) as e (place)
                        where not (m.tenant_id = $1) and m.state not in ('confirmed', 'rolled_back')
                          and e.place ->> 'cluster' = $2 and e.place ->> 'database' is not distinct from $3
                          and e.place ->> 'schema' is not distinct from $4)",
    )
    .bind(tenant.as_uuid())
    .bind(&place.cluster)
    .bind(&place.database)
    .bind(&place.schema)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)
}
