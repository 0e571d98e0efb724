//! The four crates wired into axum: a webhook route on raw bytes, a tenant's routes, one of them gated, one metered.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use saas_billing::{WebhookProcessor, web::tower::WebhookEndpoint};
use saas_core::{
    ErrorKind, FeatureKey, IdempotencyKey, MeterKey, TenantContext, TenantPool, TenantTx, subscription::Intent,
};
use saas_entitlements::{Consumption, Entitlements, EntitlementsError, Meter};
use saas_tenancy::{
    Tenancy,
    resolve::{Entrance, Resolver, SignedIn},
    web::{axum::Tenant, tower::TenantLayer},
};

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
    /// Which tenant a request is for.
    pub entrance: Entrance,
    /// Where Stripe's deliveries go.
    pub webhooks: Arc<dyn WebhookProcessor>,
    /// What a tenant may do.
    pub entitlements: Entitlements,
    /// How much of it.
    pub meter: Meter,
}

/// Where a request names its tenant: `acme.example.com`, `app.customer.com`, `/t/acme/…` or `x-tenant: acme`.
pub fn resolver() -> Resolver {
    Resolver::subdomain("example.com")
        .or(Resolver::custom_domain())
        .with_own_host("localhost")
        .or(Resolver::path("/t/{tenant}"))
        .or(Resolver::header("x-tenant"))
}

/// The application.
pub fn router(app: App) -> Router {
    let routes = Router::new()
        .route("/projects", get(projects))
        .route("/export", get(export))
        .route("/calls", post(call))
        .route("/t/{tenant}/projects", get(projects));
    // The layer that is added last is met first.
    let routes = routes.layer(middleware::from_fn_with_state(app.clone(), paid));
    let tenant = routes.layer(TenantLayer::new(app.entrance.clone())).layer(middleware::from_fn(sign_in));
    let stripe = Router::new().route_service("/webhooks/stripe", WebhookEndpoint::new(Arc::clone(&app.webhooks)));
    // A fallback of its own: otherwise the layers of a merged router lie around what no route has.
    Router::new().merge(stripe).merge(tenant).fallback(async || StatusCode::NOT_FOUND).with_state(app)
}

/// Says who is signed in. Your session says so, or the token that your identity provider signed; here, a header that your
/// proxy sets stands for it.
async fn sign_in(mut request: Request, next: Next) -> Response {
    let user = request.headers().get("x-user").and_then(|value| value.to_str().ok()?.parse().ok());
    if let Some(user) = user {
        request.extensions_mut().insert(SignedIn(user));
    }
    next.run(request).await
}

/// Lets a tenant that owes do what its access leaves, by the same definition as the gate's.
async fn paid(State(app): State<App>, Tenant(ctx): Tenant, request: Request, next: Next) -> Response {
    let access = app.entitlements.snapshot(ctx.tenant()).await.access();
    if access.allows(Intent::of_method(request.method().as_str())) {
        return next.run(request).await;
    }
    (StatusCode::PAYMENT_REQUIRED, "an invoice is not paid").into_response()
}

async fn projects(State(app): State<App>, Tenant(ctx): Tenant) -> Result<Json<Vec<String>>, Failure> {
    let mut tx = TenantTx::begin(&app.tenants, &ctx).await?;
    let names = sqlx::query_scalar("select name from project order by name").fetch_all(&mut *tx).await;
    names.map(Json).map_err(|error| saas_core::CoreError::from_database(error).into())
}

async fn export(State(app): State<App>, Tenant(ctx): Tenant) -> Result<Response, Failure> {
    if app.entitlements.is_feature_enabled(ctx.tenant(), &EXPORT).await {
        return Ok("name\nApollo\n".into_response());
    }
    let why = app.entitlements.explain(ctx.tenant(), &EXPORT).await?;
    Ok((StatusCode::PAYMENT_REQUIRED, why.to_string()).into_response())
}

async fn call(State(app): State<App>, Tenant(ctx): Tenant, headers: HeaderMap) -> Result<Response, Failure> {
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

failures!(saas_core::CoreError, EntitlementsError);

/// The code of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
