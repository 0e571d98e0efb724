//! The four crates wired into actix-web: the routes of `axum-minimal`, answered the same way.
#![expect(clippy::future_not_send, reason = "actix-web keeps a request on one thread")]

use std::{fmt, sync::Arc};

use actix_web::{
    Error, HttpMessage, HttpRequest, HttpResponse, ResponseError,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::StatusCode,
    middleware::{Next, from_fn},
    web::{self, Data, Json, ServiceConfig},
};
use saas_billing::{WebhookProcessor, web::actix::endpoint};
use saas_core::{ErrorKind, FeatureKey, IdempotencyKey, MeterKey, TenantContext, TenantPool, TenantTx};
use saas_entitlements::{Consumption, Entitlements, EntitlementsError, Meter};
use saas_tenancy::{
    resolve::{Entrance, Resolver, SignedIn},
    web::actix::{Tenant, enter},
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

/// A resource of a tenant: what is wrapped last is met first.
macro_rules! of_tenant {
    ($resource:expr) => {
        $resource.wrap(from_fn(enter)).wrap(from_fn(sign_in))
    };
}

/// The application, for `App::new().configure(routes(app))`.
pub fn routes(app: App) -> impl FnOnce(&mut ServiceConfig) {
    move |config| {
        let projects =
            |path| of_tenant!(web::resource(path).route(web::get().to(projects)).route(web::head().to(projects)));
        let export = web::resource("/export").route(web::get().to(export)).route(web::head().to(export));
        let stripe = endpoint("/webhooks/stripe", Arc::clone(&app.webhooks));
        config
            .app_data(app.entrance.clone())
            .app_data(Data::new(app))
            .service(projects("/projects"))
            .service(projects("/t/{tenant}/projects"))
            .service(of_tenant!(export))
            .service(of_tenant!(web::resource("/calls").route(web::post().to(call))))
            .service(stripe);
    }
}

/// Says who is signed in. Your session says so, or the token that your identity provider signed; here, a header that your
/// proxy sets stands for it.
async fn sign_in(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let user = request.headers().get("x-user").and_then(|value| value.to_str().ok()?.parse().ok());
    if let Some(user) = user {
        request.extensions_mut().insert(SignedIn(user));
    }
    next.call(request).await
}

async fn projects(app: Data<App>, tenant: Tenant) -> Result<Json<Vec<String>>, Failure> {
    let mut tx = TenantTx::begin(&app.tenants, &*tenant).await?;
    let names = sqlx::query_scalar("select name from project order by name").fetch_all(&mut *tx).await;
    names.map(Json).map_err(|error| saas_core::CoreError::from_database(error).into())
}

async fn export(app: Data<App>, tenant: Tenant) -> Result<HttpResponse, Failure> {
    if app.entitlements.is_feature_enabled(tenant.tenant(), &EXPORT).await {
        return Ok(text(StatusCode::OK, "name\nApollo\n".to_owned()));
    }
    let why = app.entitlements.explain(tenant.tenant(), &EXPORT).await?;
    Ok(text(StatusCode::PAYMENT_REQUIRED, why.to_string()))
}

async fn call(app: Data<App>, tenant: Tenant, request: HttpRequest) -> Result<HttpResponse, Failure> {
    let key = request.headers().get("idempotency-key").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let key: IdempotencyKey =
        key.parse().map_err(|error: saas_core::InvalidInput| Failure(ErrorKind::Invalid, error.to_string()))?;
    let used = app.meter.consume(&*tenant, &CALLS, 1, &key).await?;
    let status = match used {
        Consumption::Granted { .. } | Consumption::AlreadyCounted => StatusCode::OK,
        Consumption::Exhausted { .. } => StatusCode::TOO_MANY_REQUESTS,
        Consumption::Denied { .. } => StatusCode::PAYMENT_REQUIRED,
    };
    Ok(text(status, used.to_string()))
}

fn text(status: StatusCode, text: String) -> HttpResponse {
    HttpResponse::build(status).content_type("text/plain; charset=utf-8").body(text)
}

/// An error of any of the crates, as HTTP sees it.
#[derive(Debug)]
struct Failure(ErrorKind, String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.1)
    }
}

impl ResponseError for Failure {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.0.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        match self.status_code() {
            // What went wrong inside is for the log, not for the client.
            status @ StatusCode::INTERNAL_SERVER_ERROR => HttpResponse::new(status),
            status => text(status, self.1.clone()),
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
