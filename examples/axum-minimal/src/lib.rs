//! The four crates wired into axum: a webhook route on raw bytes, a tenant middleware, a gated route, a metered route.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use saas_billing::{BillingError, SIGNATURE_HEADER, WebhookProcessor};
use saas_core::{ErrorKind, FeatureKey, IdempotencyKey, MeterKey, RequestContext, TenantContext, TenantPool, TenantTx};
use saas_entitlements::{Consumption, Entitlements, EntitlementsError, Meter};
use saas_tenancy::{Tenancy, TenancyError};

/// A feature of the plan.
pub const EXPORT: FeatureKey = FeatureKey::from_static("csv-export");
/// What is counted.
pub const CALLS: MeterKey = MeterKey::from_static("api-calls");

/// Everything that the handlers share.
#[derive(Debug, Clone)]
pub struct App {
    /// Rows of the bound tenant.
    pub tenants: TenantPool,
    /// Who is in which tenant.
    pub tenancy: Tenancy,
    /// Where Stripe's deliveries go.
    pub webhooks: Arc<dyn WebhookProcessor>,
    /// What a tenant may do.
    pub entitlements: Entitlements,
    /// How much of it.
    pub meter: Meter,
}

/// The application.
pub fn router(app: App) -> Router {
    let tenant = Router::new()
        .route("/projects", get(projects))
        .route("/export", get(export))
        .route("/calls", post(call))
        .route_layer(middleware::from_fn_with_state(app.clone(), enter));
    // Bytes, not Json: the signature is over what Stripe sent, not over what a parser made of it.
    let stripe = Router::new().route("/webhooks/stripe", post(webhook)).layer(DefaultBodyLimit::max(4 << 20));
    Router::new().merge(tenant).merge(stripe).with_state(app)
}

async fn webhook(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Result<StatusCode, Failure> {
    let signature = headers.get(SIGNATURE_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let _accepted = app.webhooks.process(&body, signature).await?;
    Ok(StatusCode::OK)
}

/// Lets a member in. The user comes from the session that your identity provider verified; here, a header that your proxy
/// sets stands for it. A tenant that is unknown looks like one that the user is not in.
async fn enter(
    State(app): State<App>,
    headers: HeaderMap,
    mut request: Request,
    next: Next,
) -> Result<Response, Failure> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(tenant), Some(user)) = (header("x-tenant"), header("x-user")) else {
        return Ok(StatusCode::UNAUTHORIZED.into_response());
    };
    let (Ok(tenant), Ok(user)) = (tenant.parse(), user.parse()) else {
        return Ok(StatusCode::NOT_FOUND.into_response());
    };
    let ctx = app.tenancy.enter(tenant, user).await?;
    request.extensions_mut().insert(ctx);
    Ok(next.run(request).await)
}

async fn projects(
    State(app): State<App>,
    Extension(ctx): Extension<RequestContext>,
) -> Result<Json<Vec<String>>, Failure> {
    let mut tx = TenantTx::begin(&app.tenants, &ctx).await?;
    let names = sqlx::query_scalar("select name from project order by name").fetch_all(&mut *tx).await;
    names.map(Json).map_err(|error| saas_core::CoreError::from_database(error).into())
}

async fn export(State(app): State<App>, Extension(ctx): Extension<RequestContext>) -> Result<Response, Failure> {
    if app.entitlements.is_feature_enabled(ctx.tenant(), &EXPORT).await {
        return Ok("name\nApollo\n".into_response());
    }
    let why = app.entitlements.explain(ctx.tenant(), &EXPORT).await?;
    Ok((StatusCode::PAYMENT_REQUIRED, why.to_string()).into_response())
}

async fn call(
    State(app): State<App>,
    Extension(ctx): Extension<RequestContext>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let key = headers.get("idempotency-key").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let key: IdempotencyKey =
        key.parse().map_err(|error: saas_core::InvalidInput| Failure(ErrorKind::Invalid, error.to_string()))?;
    let used = app.meter.consume(&ctx, &CALLS, 1, &key).await?;
    let status = match used {
        Consumption::Granted { .. } | Consumption::AlreadyCounted => StatusCode::OK,
        Consumption::Exhausted { .. } => StatusCode::TOO_MANY_REQUESTS,
        Consumption::Denied { .. } => StatusCode::PAYMENT_REQUIRED,
    };
    Ok((status, used.to_string()).into_response())
}

/// An error of any of the crates, as HTTP sees it.
#[derive(Debug)]
struct Failure(ErrorKind, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // What went wrong inside is for the log, not for the client.
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            status.into_response()
        } else {
            (status, self.1).into_response()
        }
    }
}

macro_rules! failures {
    ($($error:ty),+) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self(error.kind(), error.to_string())
            }
        }
    )+};
}

failures!(saas_core::CoreError, TenancyError, EntitlementsError, BillingError);

/// The code of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
