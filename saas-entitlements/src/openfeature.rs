//! The gate as an [OpenFeature](https://openfeature.dev/specification) provider, so that code written against that
//! interface asks it unchanged.
//!
//! The targeting key is the tenant's id. What decides is the tenant, never the rest of the context.

use std::collections::HashMap;

use open_feature::{
    EvaluationContext, EvaluationError, EvaluationErrorCode, EvaluationReason, EvaluationResult, FlagMetadata,
    StructValue, Value,
    provider::{FeatureProvider, ProviderMetadata, ResolutionDetails},
};
use saas_core::{
    FeatureKey, TenantId,
    plan::{FeatureKind, StaticValue},
};

use crate::{Entitlements, Explanation, Reason};

/// Resolves flags from [`Entitlements`].
///
/// | feature | asked as |
/// |---|---|
/// | boolean, metered | bool |
/// | integer | int |
/// | text, one of | string |
/// | JSON (an object) | struct |
///
/// Any other question is a `TYPE_MISMATCH`, a float included: no feature has fractions.
///
/// # Reasons
/// | reason | meaning |
/// |---|---|
/// | `TARGETING_MATCH` | the tenant's plan, add-ons, override or standing decided. Never `STATIC`: every answer depends on the tenant. Never `CACHED`: what is in memory is current within the gate's bound. |
/// | `SPLIT` | the feature's roll-out has not reached the tenant |
/// | `STALE` | the source cannot be read: the last known state |
/// | `DEFAULT` | nothing is known: the feature's fail policy, or "off" for a tenant that does not exist |
///
/// # Errors
/// `FLAG_NOT_FOUND`, `TYPE_MISMATCH`, `TARGETING_KEY_MISSING`; `INVALID_CONTEXT` when the targeting key is no tenant's id;
/// `FEATURE_OFF` for the value of a feature that the tenant does not have, so that the application's own default holds.
#[derive(Debug, Clone)]
pub struct OpenFeatureProvider {
    gate: Entitlements,
    metadata: ProviderMetadata,
}

impl OpenFeatureProvider {
    /// A provider on a gate.
    #[must_use]
    pub fn new(gate: Entitlements) -> Self {
        Self { gate, metadata: ProviderMetadata::new("saas-entitlements") }
    }

    /// Why the feature is what it is, if it is declared as one of the kinds that `fits` names.
    async fn explain(
        &self,
        flag: &str,
        context: &EvaluationContext,
        fits: fn(FeatureKind) -> bool,
    ) -> EvaluationResult<Explanation> {
        let unknown =
            || error(EvaluationErrorCode::FlagNotFound, format!("the plan catalogue has no feature `{flag}`"));
        let key: FeatureKey = flag.parse().map_err(|_| unknown())?;
        let kind = self.gate.catalog().feature(&key).ok_or_else(unknown)?.kind();
        if !fits(kind) {
            return Err(error(EvaluationErrorCode::TypeMismatch, format!("`{flag}` is declared as {kind:?}")));
        }
        let tenant = tenant_of(context)?;
        self.gate.explain(tenant, &key).await.map_err(|_| unknown())
    }

    /// The value of a static feature that the tenant has.
    async fn value(
        &self,
        flag: &str,
        context: &EvaluationContext,
        fits: fn(FeatureKind) -> bool,
    ) -> EvaluationResult<(StaticValue, Explanation)> {
        let explanation = self.explain(flag, context, fits).await?;
        match &explanation.value {
            Some(value) => Ok((value.clone(), explanation)),
            None => Err(error(EvaluationErrorCode::General("FEATURE_OFF".to_owned()), explanation.to_string())),
        }
    }
}

#[open_feature::async_trait]
impl FeatureProvider for OpenFeatureProvider {
    fn metadata(&self) -> &ProviderMetadata {
        &self.metadata
    }

    async fn resolve_bool_value(
        &self,
        flag: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<bool>> {
        let fits = |kind| matches!(kind, FeatureKind::Boolean | FeatureKind::Metered { .. });
        let explanation = self.explain(flag, context, fits).await?;
        let variant = if explanation.enabled { "on" } else { "off" };
        Ok(details(explanation.enabled, variant.to_owned(), &explanation))
    }

    async fn resolve_int_value(
        &self,
        flag: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<i64>> {
        match self.value(flag, context, |kind| matches!(kind, FeatureKind::Integer)).await? {
            (StaticValue::Integer(number), explanation) => Ok(details(number, number.to_string(), &explanation)),
            (StaticValue::Text(_) | StaticValue::Json(_), _) => Err(mismatch(flag)),
        }
    }

    async fn resolve_float_value(
        &self,
        flag: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<f64>> {
        self.explain(flag, context, |_| false).await.and(Err(mismatch(flag)))
    }

    async fn resolve_string_value(
        &self,
        flag: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<String>> {
        match self.value(flag, context, |kind| matches!(kind, FeatureKind::Text | FeatureKind::OneOf)).await? {
            (StaticValue::Text(text), explanation) => {
                Ok(details(String::from(text.clone()), String::from(text), &explanation))
            }
            (StaticValue::Integer(_) | StaticValue::Json(_), _) => Err(mismatch(flag)),
        }
    }

    async fn resolve_struct_value(
        &self,
        flag: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<StructValue>> {
        let (value, explanation) = self.value(flag, context, |kind| matches!(kind, FeatureKind::Json)).await?;
        match value {
            StaticValue::Json(serde_json::Value::Object(fields)) => {
                let variant = explanation.plan.as_ref().map_or_else(|| "override".to_owned(), ToString::to_string);
                Ok(details(StructValue { fields: convert_fields(fields)? }, variant, &explanation))
            }
            StaticValue::Json(_) | StaticValue::Integer(_) | StaticValue::Text(_) => Err(mismatch(flag)),
        }
    }
}

fn tenant_of(context: &EvaluationContext) -> EvaluationResult<TenantId> {
    let key = context.targeting_key.as_deref().filter(|key| !key.is_empty()).ok_or_else(|| {
        error(EvaluationErrorCode::TargetingKeyMissing, "the targeting key must be the tenant's id".to_owned())
    })?;
    let invalid = |_| error(EvaluationErrorCode::InvalidContext, "the targeting key is no tenant's id".to_owned());
    key.parse().map_err(invalid)
}

fn details<T>(value: T, variant: String, explanation: &Explanation) -> ResolutionDetails<T> {
    let reason = match (&explanation.reason, explanation.last_known_from) {
        (_, Some(_)) => EvaluationReason::Other("STALE".to_owned()),
        (Reason::UnknownTenant | Reason::FailPolicy, None) => EvaluationReason::Default,
        (Reason::Rollout { .. }, None) => EvaluationReason::Split,
        (
            Reason::Plan
            | Reason::Limit
            | Reason::AddOn { .. }
            | Reason::Override { .. }
            | Reason::Standing { .. }
            | Reason::OverLimit { .. },
            None,
        ) => EvaluationReason::TargetingMatch,
    };
    let revision = i64::try_from(explanation.revision.get()).unwrap_or(i64::MAX);
    let mut metadata =
        FlagMetadata::default().with_value("revision", revision).with_value("explanation", explanation.to_string());
    if let Some(plan) = &explanation.plan {
        metadata.add_value("plan", plan.to_string());
    }
    ResolutionDetails { value, variant: Some(variant), reason: Some(reason), flag_metadata: Some(metadata) }
}

/// OpenFeature has no null: a field that is null is left out, and an element that is null cannot be said.
fn convert_fields(fields: serde_json::Map<String, serde_json::Value>) -> EvaluationResult<HashMap<String, Value>> {
    let present = fields.into_iter().filter(|(_, value)| !value.is_null());
    present.map(|(name, value)| Ok((name, convert(value)?))).collect()
}

fn convert(value: serde_json::Value) -> EvaluationResult<Value> {
    use serde_json::Value as Json;
    let unsayable = |what: &str| error(EvaluationErrorCode::ParseError, format!("{what} has no form in OpenFeature"));
    match value {
        Json::Null => Err(unsayable("null in a list")),
        Json::Bool(value) => Ok(Value::Bool(value)),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Ok(Value::Int(whole)),
            (None, Some(fraction)) => Ok(Value::Float(fraction)),
            (None, None) => Err(unsayable("a number of this size")),
        },
        Json::String(text) => Ok(Value::String(text)),
        Json::Array(elements) => Ok(Value::Array(elements.into_iter().map(convert).collect::<Result<_, _>>()?)),
        Json::Object(fields) => Ok(Value::Struct(StructValue { fields: convert_fields(fields)? })),
    }
}

fn mismatch(flag: &str) -> EvaluationError {
    error(EvaluationErrorCode::TypeMismatch, format!("`{flag}` has a value of another type"))
}

fn error(code: EvaluationErrorCode, message: String) -> EvaluationError {
    EvaluationError { code, message: Some(message) }
}
