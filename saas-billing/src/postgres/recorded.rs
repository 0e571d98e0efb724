//! What is recorded about a tenant beside its objects and what was derived from them: `saas.dunning_exception`, `saas.dunning`,
//! `saas.revenue_state`, in one round trip.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, TenantId};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::{
    dunning::{self, Head},
    revenue::{self, Paying, PayingRow},
};
use crate::dunning::DunningException;

/// What is recorded.
#[derive(Debug)]
pub(crate) struct Recorded {
    /// The exception that was made from the dunning policy, over or not.
    pub(crate) exception: Option<DunningException>,
    pub(crate) dunning: Option<Head>,
    pub(crate) paying: Vec<Paying>,
}

pub(crate) async fn load(
    connection: &mut PgConnection,
    tenant: TenantId,
    livemode: bool,
) -> Result<Recorded, CoreError> {
    type Row = (
        Option<Json<DunningException>>,
        Option<String>,
        Option<DateTime<Utc>>,
        Option<Uuid>,
        Option<Json<Vec<PayingRow>>>,
    );
    let (exception, access, next_at, job, paying): Row = sqlx::query_as(
        "select case when e.tenant_id is not null then jsonb_build_object(
                    'policy', e.policy, 'author', e.author, 'reason', e.reason, 'created_at', e.created_at,
                    'expires_at', e.expires_at)
                end,
                d.access, d.next_at, d.job,
                (select jsonb_agg(jsonb_build_array(r.currency, r.mrr_minor, r.ever_paid, r.changes, r.at))
                 from saas.revenue_state r
                 where r.tenant_id = $1 and r.livemode = $2)
         from (values ($1::uuid, $2::boolean)) as asked (tenant_id, livemode)
         left join saas.dunning_exception e on e.tenant_id = asked.tenant_id and e.livemode = asked.livemode
         left join saas.dunning d on d.tenant_id = asked.tenant_id and d.livemode = asked.livemode",
    )
    .bind(tenant.as_uuid())
    .bind(livemode)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(Recorded {
        exception: exception.map(|Json(exception)| exception),
        dunning: access.map(|access| dunning::read_head((access, next_at, job))).transpose()?,
        paying: paying
            .map_or_else(Vec::new, |Json(rows)| rows)
            .into_iter()
            .map(revenue::read)
            .collect::<Result<_, _>>()?,
    })
}
