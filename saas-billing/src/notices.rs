//! What Stripe has told that changes nothing by itself and that an operator should know.

use chrono::{DateTime, Utc};
use saas_core::{Actor, CoreError, Page, PageSize, SystemTx, TenantId};
use serde::Serialize;

use crate::{
    billing::Billing,
    error::BillingError,
    event::NoticeKind,
    postgres::notice::{self, Listed},
};

/// Something that an operator should know. There is one for each object, and it says the latest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OperatorNotice {
    /// What it is about.
    pub kind: NoticeKind,
    /// What has changed: a price, a warning.
    pub object_id: String,
    /// The customer or the charge that it concerns.
    pub about: Option<String>,
    /// The tenant that this belongs to, if one is linked.
    pub tenant: Option<TenantId>,
    /// The event that told of it.
    pub event_id: String,
    /// Its type.
    pub event_type: String,
    /// When it happened at Stripe.
    pub created_at: DateTime<Utc>,
    /// When it was noted here.
    pub noted_at: DateTime<Utc>,
}

/// A place in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoticeCursor {
    noted_at: DateTime<Utc>,
    kind: NoticeKind,
    object_id: String,
}

impl Billing {
    /// Lists what nobody has seen yet, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_notices(
        &self,
        actor: &Actor,
        after: Option<&NoticeCursor>,
        size: PageSize,
    ) -> Result<Page<OperatorNotice, NoticeCursor>, BillingError> {
        let after = after.map(|cursor| (cursor.noted_at, cursor.kind.as_str(), cursor.object_id.as_str()));
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "list what operators should know").await?;
        let rows = notice::list(&mut tx, &self.scope, after, i64::from(size.get()) + 1).await?;
        tx.commit().await?;
        let notices = rows.into_iter().map(OperatorNotice::try_from).collect::<Result<Vec<_>, _>>()?;
        Ok(Page::from_rows(notices, size, |last| NoticeCursor {
            noted_at: last.noted_at,
            kind: last.kind,
            object_id: last.object_id.clone(),
        }))
    }

    /// Takes a notice off the list, until a later event tells of the same object. One that has told of something newer
    /// meanwhile stays on it.
    ///
    /// # Errors
    /// [`NotFound`](CoreError::NotFound) when it is not on the list as it was shown.
    pub async fn see_notice(&self, actor: &Actor, seen: &OperatorNotice) -> Result<(), BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "take a notice off the list").await?;
        let key = (seen.kind, seen.object_id.as_str(), seen.event_id.as_str());
        if !notice::see(&mut tx, &self.scope, key, &actor.to_string(), self.clock.now()).await? {
            return Err(CoreError::NotFound { what: "notice" }.into());
        }
        Ok(tx.commit().await?)
    }
}

impl TryFrom<Listed> for OperatorNotice {
    type Error = CoreError;

    fn try_from(listed: Listed) -> Result<Self, CoreError> {
        let (kind, object_id, about, event_id, event_type, created_at, noted_at, tenant) = listed;
        let kind = NoticeKind::ALL.into_iter().find(|one| one.as_str() == kind);
        let kind = kind.ok_or(CoreError::Corrupt { table: "saas.billing_notice", column: "kind" })?;
        let tenant = tenant.map(TenantId::from_uuid);
        Ok(Self { kind, object_id, about, tenant, event_id, event_type, created_at, noted_at })
    }
}
