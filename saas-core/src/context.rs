//! Who is asking, and for which tenant.

use std::fmt;

use chrono::{DateTime, Utc};

use crate::{Actor, RequestId, RoleName, TenantId};

/// Says who is asking. An adopter's request type implements it, or uses [`RequestContext`].
///
/// # Contract
/// - The tenant comes from a verified principal, never from a bare parameter of the request.
/// - The answers do not change during one request.
pub trait TenantContext: fmt::Debug + Send + Sync {
    /// The tenant whose data this request may touch.
    fn tenant(&self) -> TenantId;
    /// Who acts.
    fn actor(&self) -> &Actor;
    /// The actor's role in the tenant; `None` for jobs and credentials without one.
    fn role(&self) -> Option<&RoleName>;
    /// The request, for the audit log and for tracing.
    fn request(&self) -> RequestId;
}

/// A ready-made [`TenantContext`].
///
/// ```
/// use saas_core::{Actor, RequestContext, SystemClock, TenantContext, TenantId, UserId};
///
/// let (tenant, ada) = (TenantId::mint(&SystemClock), UserId::mint(&SystemClock));
/// let ctx = RequestContext::new(tenant, Actor::user(ada), &SystemClock);
/// assert_eq!(ctx.tenant(), tenant);
/// ```
#[derive(Debug, Clone)]
pub struct RequestContext {
    tenant: TenantId,
    actor: Actor,
    role: Option<RoleName>,
    request: RequestId,
}

impl RequestContext {
    /// A context for one request that starts now.
    #[must_use]
    pub fn new(tenant: TenantId, actor: Actor, clock: &dyn crate::Clock) -> Self {
        Self::new_at(tenant, actor, clock.now())
    }

    /// A context for one request, when the caller has already read the clock.
    #[must_use]
    pub fn new_at(tenant: TenantId, actor: Actor, now: DateTime<Utc>) -> Self {
        Self { tenant, actor, role: None, request: RequestId::mint_at(now) }
    }

    /// Adds the role that the membership gives.
    #[must_use]
    pub fn with_role(mut self, role: RoleName) -> Self {
        self.role = Some(role);
        self
    }

    /// Keeps a request id that came from the adopter's own tracing.
    #[must_use]
    pub fn with_request(mut self, request: RequestId) -> Self {
        self.request = request;
        self
    }
}

impl TenantContext for RequestContext {
    fn tenant(&self) -> TenantId {
        self.tenant
    }

    fn actor(&self) -> &Actor {
        &self.actor
    }

    fn role(&self) -> Option<&RoleName> {
        self.role.as_ref()
    }

    fn request(&self) -> RequestId {
        self.request
    }
}
