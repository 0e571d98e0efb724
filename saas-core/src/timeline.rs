//! Everything that happened to one tenant, in one ordered, paged stream: changes, billing, usage crossings, messages.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::{CoreError, Page, PageSize, TenantTx};

/// One line of the timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When.
    pub at: DateTime<Utc>,
    /// By whom, as [`Actor`](crate::Actor) prints itself.
    pub actor: String,
    /// What: `subscription.activated`, `mail.pending`, …
    pub action: String,
    /// To what.
    pub subject: String,
    /// The particulars.
    pub detail: Value,
    /// Where the next page starts when this is the last line of a page.
    pub cursor: Cursor,
}

/// A place in the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    at: DateTime<Utc>,
    id: Uuid,
}

/// Instant, id, actor, action, subject, detail.
type Row = (DateTime<Utc>, Uuid, String, String, String, Value);

impl From<Row> for Event {
    fn from((at, id, actor, action, subject, detail): Row) -> Self {
        Self { at, actor, action, subject, detail, cursor: Cursor { at, id } }
    }
}

/// The branches are cut to a page each before they are merged, so that a page costs the same however long the history.
const NEWEST_FIRST: &str = "
    select at, id, actor, action, subject, detail
    from (
        (select at, id, actor, action, subject, detail
         from saas.audit
         where tenant_id = $1 and ($2::timestamptz is null or (at, id) < ($2, $3))
         order by at desc, id desc
         limit $4)
        union all
        (select created_at, id, 'system:outbox', topic || '.' || state as action, id::text as subject,
                jsonb_build_object('attempts', attempts, 'finished_at', finished_at)
         from saas.outbox
         where tenant_id = $1 and topic = 'mail' and ($2::timestamptz is null or (created_at, id) < ($2, $3))
         order by created_at desc, id desc
         limit $4)
    ) as both_sources
    order by at desc, id desc
    limit $4";

/// Lists the tenant's timeline, newest first.
///
/// # Errors
/// When the database does not answer.
pub async fn list(tx: &mut TenantTx, after: Option<Cursor>, size: PageSize) -> Result<Page<Event, Cursor>, CoreError> {
    let rows: Vec<Row> = sqlx::query_as(NEWEST_FIRST)
        .bind(tx.tenant().as_uuid())
        .bind(after.map(|c| c.at))
        .bind(after.map(|c| c.id))
        .bind(i64::from(size.get()) + 1)
        .fetch_all(&mut **tx)
        .await
        .map_err(CoreError::from_database)?;
    Ok(Page::from_rows(rows.into_iter().map(Event::from).collect(), size, |event| event.cursor))
}
