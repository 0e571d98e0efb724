//! The API of the simulated Stripe: one request in, one answer out. Two doors lead here, in the process and over HTTP.
//!
//! Owns routing, parameters, idempotency keys, injected faults, paging and the words of errors; the rules are the engine's.

mod billing;
mod buying;
mod catalog;
mod endpoints;
mod money;
mod params;
mod stream;
mod usage;

use std::{collections::BTreeMap, hash::Hasher};

use serde_json::{Value, json};

pub(super) use super::world::Metadata;
use super::{engine::Engine, fault::Fault, payload::PayloadShape};
use crate::object::ObjectKind;
use params::Params;

/// One request.
#[derive(Debug, Clone)]
pub(super) struct ApiRequest {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) body: Vec<u8>,
    pub(super) authorization: Option<String>,
    pub(super) idempotency_key: Option<String>,
    /// `Stripe-Version`.
    pub(super) version: Option<String>,
}

/// One answer.
#[derive(Debug, Clone)]
pub(super) struct ApiResponse {
    pub(super) status: u16,
    pub(super) replayed: bool,
    pub(super) retry_after: Option<u32>,
    pub(super) body: Vec<u8>,
}

/// How an answer gets to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    Whole,
    /// The connection is cut instead.
    Cut,
    /// Nothing comes.
    Silent,
    /// Half of it comes.
    Stuck,
}

/// An answer under its idempotency key.
#[derive(Debug, Clone)]
pub(super) struct Saved {
    fingerprint: u64,
    status: u16,
    body: Vec<u8>,
}

/// Why a call was refused, in Stripe's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: u16,
    pub(super) kind: &'static str,
    pub(super) code: &'static str,
    pub(super) param: Option<String>,
    pub(super) message: String,
    /// Refused before anything was begun: nothing is saved under the key.
    unbegun: bool,
}

impl ApiError {
    pub(super) fn new(status: u16, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code, param: None, message: message.into(), unbegun: false }
    }

    pub(super) fn invalid(code: &'static str, param: &str) -> Self {
        let message = format!("Invalid or unknown parameter: {param}");
        Self { param: Some(param.to_owned()), unbegun: true, ..Self::new(400, REFUSED, code, message) }
    }

    pub(super) fn missing(param: &str) -> Self {
        let message = format!("Missing required param: {param}.");
        Self { param: Some(param.to_owned()), unbegun: true, ..Self::new(400, REFUSED, "parameter_missing", message) }
    }

    /// An object in a parameter that is not there.
    pub(super) fn no_such(what: &str, id: &str, param: &str) -> Self {
        let message = format!("No such {what}: '{id}'");
        Self { param: Some(param.to_owned()), ..Self::new(400, REFUSED, "resource_missing", message) }
    }

    /// The object of the path is not there.
    pub(super) fn not_found(what: &str, id: &str) -> Self {
        Self { status: 404, ..Self::no_such(what, id, "id") }
    }

    pub(super) fn declined() -> Self {
        Self::new(402, "card_error", "card_declined", "Your card was declined.")
    }

    fn body(&self) -> Value {
        let decline = (self.kind == "card_error").then_some("generic_decline");
        let code = Some(self.code).filter(|code| !code.is_empty());
        json!({"error": {
            "type": self.kind, "code": code, "param": self.param, "message": self.message, "decline_code": decline
        }})
    }
}

const REFUSED: &str = "invalid_request_error";

/// One call in the hands of a handler.
struct Request<'a, 'w> {
    engine: &'a mut Engine<'w>,
    params: Params,
    shape: PayloadShape,
    /// The version of the API that is asked for; empty for the present one.
    version: String,
}

type Outcome = Result<Value, ApiError>;

/// Answers one request, or says how it fails to.
pub(super) fn handle(engine: &mut Engine<'_>, request: &ApiRequest) -> (ApiResponse, Manner) {
    engine.world.calls += 1;
    let fault = engine.world.faults.pop_front().flatten();
    let unbegun = |status: u16, kind, code, retry_after| {
        let error = ApiError::new(status, kind, code, "injected");
        (ApiResponse { retry_after, ..answer(status, &error.body()) }, Manner::Whole)
    };
    match fault {
        Some(Fault::RateLimited(seconds)) => return unbegun(429, REFUSED, "rate_limit", Some(seconds)),
        Some(Fault::KeyInUse) => return unbegun(409, "idempotency_error", "idempotency_key_in_use", None),
        Some(Fault::Unavailable) => return unbegun(503, "api_error", "", None),
        Some(Fault::Unauthorized) => return unbegun(401, REFUSED, "", None),
        Some(Fault::CutBefore) => return (answer(500, &Value::Null), Manner::Cut),
        Some(
            Fault::Broken | Fault::BrokenAfterwards | Fault::CutAfter | Fault::Silent | Fault::Stuck | Fault::Garbled,
        )
        | None => {}
    }
    let key = request.authorization.as_deref().and_then(|text| text.strip_prefix("Bearer "));
    let is_accepted = |key: &str| match &engine.world.accepted {
        Some(accepted) => key == accepted,
        None => key.starts_with("sk_test_"),
    };
    // The stream checks the token of its session itself.
    if request.path != stream::PATH && !key.is_some_and(is_accepted) {
        let error = ApiError::new(401, REFUSED, "", "Invalid API Key provided");
        return (answer(401, &error.body()), Manner::Whole);
    }
    let response = with_key(engine, request, fault);
    let manner = match fault {
        Some(Fault::CutAfter) => Manner::Cut,
        Some(Fault::Silent) => Manner::Silent,
        Some(Fault::Stuck) => Manner::Stuck,
        _ => Manner::Whole,
    };
    if fault == Some(Fault::Garbled) {
        return (ApiResponse { body: b"<html>busy</html>".to_vec(), ..response }, manner);
    }
    (response, manner)
}

/// <https://docs.stripe.com/api/idempotent_requests>: the first answer after work has begun is saved, failures too.
fn with_key(engine: &mut Engine<'_>, request: &ApiRequest, fault: Option<Fault>) -> ApiResponse {
    let Some(key) = request.idempotency_key.as_ref().filter(|_| request.method == "POST") else {
        return execute(engine, request, fault).0;
    };
    let fingerprint = fingerprint(request);
    if let Some(saved) = engine.world.saved.get(key) {
        if saved.fingerprint != fingerprint {
            let message =
                "Keys for idempotent requests can only be used with the same parameters they were first used with.";
            return answer(400, &ApiError::new(400, "idempotency_error", "", message).body());
        }
        return ApiResponse { status: saved.status, replayed: true, retry_after: None, body: saved.body.clone() };
    }
    engine.cause = Some(key.clone());
    let (response, begun) = execute(engine, request, fault);
    engine.cause = None;
    if begun {
        let saved = Saved { fingerprint, status: response.status, body: response.body.clone() };
        engine.world.saved.insert(key.clone(), saved);
    }
    response
}

/// Does it; says whether it was begun.
fn execute(engine: &mut Engine<'_>, request: &ApiRequest, fault: Option<Fault>) -> (ApiResponse, bool) {
    let broken = || answer(500, &ApiError::new(500, "api_error", "", "An unknown error occurred").body());
    if fault.is_some_and(|fault| !fault.executes()) {
        return (broken(), true);
    }
    let outcome = match request.path.strip_prefix("/v2/") {
        Some(path) => stream::route(engine, request, path),
        None => first_generation(engine, request),
    };
    if fault == Some(Fault::BrokenAfterwards) {
        return (broken(), true);
    }
    match outcome {
        Ok(object) => (answer(200, &object), true),
        Err(error) => (answer(error.status, &error.body()), !error.unbegun),
    }
}

fn first_generation(engine: &mut Engine<'_>, request: &ApiRequest) -> Outcome {
    params_of(request).and_then(|params| {
        let shape = shape_of(request.version.as_deref(), engine.shape);
        let version = request.version.clone().unwrap_or_default();
        route(Request { engine, params, shape, version }, &request.method, &request.path)
    })
}

/// The answer to a parameter that cannot be.
pub(super) fn refuse(param: &str) -> (ApiResponse, Manner) {
    let error = ApiError::invalid("parameter_invalid", param);
    (answer(error.status, &error.body()), Manner::Whole)
}

/// The instant that a test clock is to be moved to.
pub(super) fn advance_to(request: &ApiRequest) -> Option<chrono::DateTime<chrono::Utc>> {
    params_of(request).ok()?.instant("frozen_time").ok()?
}

fn params_of(request: &ApiRequest) -> Result<Params, ApiError> {
    let body = std::str::from_utf8(&request.body).map_err(|_| ApiError::invalid("parameter_invalid", "body"))?;
    Params::parse(if request.method == "POST" { body } else { &request.query })
}

fn shape_of(version: Option<&str>, default: PayloadShape) -> PayloadShape {
    match version {
        // Versions begin with their date.
        Some(version) if version < "2025-03-31" => PayloadShape::Legacy,
        Some(_) => PayloadShape::Current,
        None => default,
    }
}

fn fingerprint(request: &ApiRequest) -> u64 {
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    for part in [request.method.as_bytes(), request.path.as_bytes(), &request.body] {
        hasher.write(part);
        hasher.write_u8(0);
    }
    hasher.finish()
}

fn answer(status: u16, object: &Value) -> ApiResponse {
    let body = serde_json::to_vec_pretty(object).unwrap_or_default();
    ApiResponse { status, replayed: false, retry_after: None, body }
}

fn route(request: Request<'_, '_>, method: &str, path: &str) -> Outcome {
    let path = path.strip_prefix("/v1/").unwrap_or(path).trim_end_matches('/');
    let parts: Vec<String> = path.split('/').map(decode).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match (method, parts.as_slice()) {
        ("POST", ["customers"]) => request.create_customer(),
        ("GET", ["customers"]) => request.list_customers(),
        ("GET", ["customers", id]) => request.customer(id),
        ("POST", ["customers", id]) => request.update_customer(id),
        ("POST", ["payment_methods", id, "attach"]) => request.attach_card(id),
        ("DELETE", ["customers", id]) => request.delete_customer(id),
        ("POST", ["checkout", "sessions"]) => request.open_checkout(),
        ("GET", ["checkout", "sessions"]) => request.list_checkouts(),
        ("GET", ["checkout", "sessions", id]) => request.checkout(id),
        ("POST", ["checkout", "sessions", id, "expire"]) => request.expire_checkout(id),
        ("POST", ["billing_portal", "sessions"]) => request.open_portal(),
        ("POST", ["subscriptions"]) => request.create_subscription(),
        ("GET", ["subscriptions"]) => request.list_subscriptions(),
        ("GET", ["subscriptions", id]) => request.subscription(id),
        ("POST", ["subscriptions", id]) => request.change_subscription(id),
        ("DELETE", ["subscriptions", id]) => request.cancel_subscription(id),
        ("POST", ["subscriptions", id, "resume"]) => request.resume_subscription(id),
        ("POST", ["subscription_schedules"]) => request.attach_schedule(),
        ("GET", ["subscription_schedules"]) => request.list_schedules(),
        ("POST", ["subscription_schedules", id]) => request.plan_phases(id),
        ("POST", ["subscription_schedules", id, "release"]) => request.release_schedule(id),
        ("POST", ["invoices", "create_preview"]) => request.preview(),
        ("GET", ["invoices"]) => request.list_invoices(),
        ("GET", ["invoices", id]) => request.invoice(id),
        ("POST", ["invoices", id, "pay"]) => request.pay_invoice(id),
        ("POST", ["invoices", id, "void"]) => request.close_invoice(id, false),
        ("POST", ["invoices", id, "mark_uncollectible"]) => request.close_invoice(id, true),
        ("GET", ["charges"]) => request.list_charges(),
        ("GET", ["charges", id]) => request.one(ObjectKind::Charge, id),
        ("POST", ["refunds"]) => request.create_refund(),
        ("GET", ["refunds"]) => request.list_refunds(),
        ("GET", ["refunds", id]) => request.one(ObjectKind::Refund, id),
        ("GET", ["disputes"]) => request.list_disputes(),
        ("GET", ["disputes", id]) => request.one(ObjectKind::Dispute, id),
        ("POST", ["disputes", id]) => request.answer_dispute(id),
        ("POST", ["disputes", id, "close"]) => request.give_dispute_up(id),
        ("POST", ["credit_notes"]) => request.create_credit_note(),
        ("GET", ["credit_notes"]) => request.list_credit_notes(),
        ("GET", ["credit_notes", id]) => request.one(ObjectKind::CreditNote, id),
        ("POST", ["credit_notes", id, "void"]) => request.void_credit_note(id),
        ("POST", ["coupons"]) => request.create_coupon(),
        ("GET", ["coupons", id]) => request.coupon(id),
        ("POST", ["promotion_codes"]) => request.create_promotion_code(),
        ("GET", ["promotion_codes"]) => request.list_promotion_codes(),
        ("POST", ["products"]) => request.create_product(),
        ("GET", ["products"]) => request.list_products(),
        ("POST", ["products", id]) => request.change_product(id),
        ("POST", ["products", id, "features"]) => request.attach_feature(id),
        ("GET", ["products", id, "features"]) => request.list_product_features(id),
        ("DELETE", ["products", id, "features", attachment]) => request.detach_feature(id, attachment),
        ("POST", ["prices"]) => request.create_price(),
        ("GET", ["prices"]) => request.list_prices(),
        ("POST", ["prices", id]) => request.update_price(id),
        ("POST", ["entitlements", "features"]) => request.create_feature(),
        ("GET", ["entitlements", "features"]) => request.list_features(),
        ("POST", ["entitlements", "features", id]) => request.change_feature(id),
        ("POST", ["billing", "meters"]) => request.create_meter(),
        ("GET", ["billing", "meters"]) => request.list_meters(),
        ("POST", ["billing", "meters", id]) => request.rename_meter(id),
        ("POST", ["billing", "meters", id, "reactivate"]) => request.activate_meter(id, true),
        ("POST", ["billing", "meters", id, "deactivate"]) => request.activate_meter(id, false),
        ("POST", ["billing", "meter_event_adjustments"]) => request.cancel_reading(),
        ("GET", ["billing", "meters", id, "event_summaries"]) => request.meter_totals(id),
        ("POST", ["billing", "meter_events"]) => request.report_usage(),
        ("GET", ["webhook_endpoints"]) => request.list_endpoints(),
        ("GET", ["events"]) => request.list_events(),
        ("GET", ["events", id]) => request.event(id),
        ("POST", ["test_helpers", "test_clocks"]) => request.create_clock(),
        ("GET", ["test_helpers", "test_clocks", id]) => request.clock(id),
        ("DELETE", ["test_helpers", "test_clocks", id]) => request.delete_clock(id),
        _ => Err(ApiError::new(404, REFUSED, "", format!("Unrecognized request URL ({method}: /v1/{path})."))),
    }
}

/// A piece of a path; what cannot be decoded names nothing.
fn decode(piece: &str) -> String {
    let mut params = Params::parse(&format!("x={}", piece.replace('+', "%2B"))).unwrap_or_default();
    params.take("x").unwrap_or_default()
}

impl Request<'_, '_> {
    /// A page of objects in Stripe's order, which is newest first; `all` comes oldest first.
    fn page(self, url: &str, all: Vec<(String, Value)>) -> Outcome {
        let (ids, objects): (Vec<String>, Vec<Value>) = all.into_iter().unzip();
        let objects: BTreeMap<String, Value> = ids.iter().cloned().zip(objects).collect();
        Self::window(self.params, url, ids, |id| objects.get(id).cloned())
    }

    /// As [`page`](Self::page), of objects that are looked up once the page is known.
    fn window(mut params: Params, url: &str, ids: Vec<String>, show: impl Fn(&str) -> Option<Value>) -> Outcome {
        let limit: usize = params.number("limit")?.unwrap_or(10);
        if !(1..=100).contains(&limit) {
            return Err(ApiError::invalid("parameter_invalid_integer", "limit"));
        }
        let after = params.take("starting_after");
        params.finish()?;
        let end = match after {
            Some(after) => ids.iter().rposition(|id| *id == after),
            None => Some(ids.len()),
        };
        let end = end.ok_or_else(|| ApiError::no_such("object", "starting_after", "starting_after"))?;
        let data: Vec<Value> = ids[..end].iter().rev().take(limit).filter_map(|id| show(id)).collect();
        Ok(json!({"object": "list", "url": url, "has_more": end > limit, "data": data}))
    }

    /// All of a map that fit, oldest first.
    fn all<T>(map: &BTreeMap<String, T>, fits: impl Fn(&T) -> bool) -> Vec<String> {
        map.iter().filter(|(_, object)| fits(object)).map(|(id, _)| id.clone()).collect()
    }
}
