//! What OpenFeature's specification says about evaluation holds through its own client.
#![cfg(feature = "openfeature")]
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use open_feature::{EvaluationContext, EvaluationErrorCode, EvaluationReason, OpenFeature, Value};
use saas_core::{
    Actor, Clock, CoreError, FeatureKey, PlanCatalog, PlanKey, TenantId, TestClock, plan::StaticValue,
    subscription::PlanAssignment,
};
use saas_entitlements::{
    Entitlements, EntitlementsError, NewOverride, OpenFeatureProvider, OverrideGrant, SnapshotSource, TenantState,
    memory::MemorySource,
};

const PLANS: &str = r#"
    default_plan = "free"
    [features]
    export = { kind = "boolean", fail = "closed" }
    seats = { kind = "integer", fail = "closed" }
    support = { kind = "text", fail = "closed" }
    theme = { kind = "json", fail = "closed" }
    beta = { kind = "boolean", fail = "closed", rollout = { percent = 0 } }
    read = { kind = "boolean", fail = "open" }
    region = { kind = "one-of", options = ["eu", "us"], fail = "closed" }
    api = { kind = "metered", meter = "calls", fail = "closed" }
    banner = { kind = "json", fail = "closed" }
    [meters]
    calls = { aggregation = "sum" }
    [plans.free]
    rank = 0
    versions = [{ version = 1 }]
    [plans.pro]
    rank = 1
    versions = [{ version = 1, grants = { export = true, seats = 5, support = "mail", beta = true, region = "eu", theme = { dark = true, sizes = [1, 2.5] } }, limits = { calls = { max = 5, window = "day", overage = "block" } } }]
"#;

async fn client() -> (open_feature::Client, EvaluationContext, EvaluationContext) {
    let clock = TestClock::starting("2026-01-15T12:00:00Z");
    let source = MemorySource::new();
    let [pro, free] = ["pro", "free"].map(|plan| {
        let tenant = TenantId::mint(&clock);
        source.put_plan(tenant, PlanAssignment::active(plan.parse::<PlanKey>().unwrap()));
        EvaluationContext::default().with_targeting_key(tenant.to_string())
    });
    let gate = Entitlements::new(PlanCatalog::from_toml(PLANS).unwrap(), Arc::new(source), Arc::new(clock));
    let mut api = OpenFeature::default();
    api.set_provider(OpenFeatureProvider::new(gate)).await;
    (api.create_client(), pro, free)
}

#[tokio::test]
async fn each_kind_resolves_with_value_variant_reason_and_metadata() {
    let (client, pro, free) = client().await;
    let on = client.get_bool_details("export", Some(&pro), None).await.unwrap();
    assert_eq!((on.value, on.variant.as_deref()), (true, Some("on")));
    assert_eq!((on.flag_key.as_str(), on.reason), ("export", Some(EvaluationReason::TargetingMatch)));
    assert_eq!(on.flag_metadata.values["plan"], "pro@1".into());
    assert_eq!(on.flag_metadata.values["revision"], 1_i64.into());
    let off = client.get_bool_details("export", Some(&free), None).await.unwrap();
    assert_eq!((off.value, off.variant.as_deref()), (false, Some("off")));
    assert_eq!(client.get_int_value("seats", Some(&pro), None).await, Ok(5));
    assert_eq!(client.get_string_value("support", Some(&pro), None).await, Ok("mail".to_owned()));
    let split = client.get_bool_details("beta", Some(&pro), None).await.unwrap();
    assert_eq!((split.value, split.reason), (false, Some(EvaluationReason::Split)));
    let stranger = EvaluationContext::default().with_targeting_key("01900000-0000-7000-8000-000000000001");
    let unknown = client.get_bool_details("export", Some(&stranger), None).await.unwrap();
    assert_eq!((unknown.value, unknown.reason), (false, Some(EvaluationReason::Default)));
}

/// What an adopter makes of a structure.
#[derive(Debug, PartialEq)]
struct Theme {
    dark: bool,
    sizes: Vec<Value>,
}

impl TryFrom<open_feature::StructValue> for Theme {
    type Error = String;

    fn try_from(mut value: open_feature::StructValue) -> Result<Self, String> {
        match (value.fields.remove("dark"), value.fields.remove("sizes")) {
            (Some(Value::Bool(dark)), Some(Value::Array(sizes))) => Ok(Self { dark, sizes }),
            other => Err(format!("{other:?}")),
        }
    }
}

#[tokio::test]
async fn a_structure_keeps_its_types() {
    let (client, pro, _) = client().await;
    let theme: Theme = client.get_struct_value("theme", Some(&pro), None).await.unwrap();
    assert_eq!(theme, Theme { dark: true, sizes: vec![Value::Int(1), Value::Float(2.5)] });
}

#[tokio::test]
async fn abnormal_evaluation_is_an_error_with_the_codes_of_the_specification() {
    let (client, pro, free) = client().await;
    let code = |result: Result<bool, open_feature::EvaluationError>| result.unwrap_err().code;
    for unknown in ["nothing-such", "Not A Key", ""] {
        let found = client.get_bool_value(unknown, Some(&pro), None).await;
        assert_eq!(code(found), EvaluationErrorCode::FlagNotFound, "{unknown:?}");
    }
    assert_eq!(code(client.get_bool_value("seats", Some(&pro), None).await), EvaluationErrorCode::TypeMismatch);
    assert_eq!(code(client.get_bool_value("export", None, None).await), EvaluationErrorCode::TargetingKeyMissing);
    let nobody = EvaluationContext::default().with_targeting_key("acme");
    assert_eq!(code(client.get_bool_value("export", Some(&nobody), None).await), EvaluationErrorCode::InvalidContext);
    let float = client.get_float_value("seats", Some(&pro), None).await.unwrap_err();
    assert_eq!(float.code, EvaluationErrorCode::TypeMismatch);
    let off = client.get_int_value("seats", Some(&free), None).await.unwrap_err();
    assert_eq!(off.code, EvaluationErrorCode::General("FEATURE_OFF".to_owned()));
    assert!(off.message.unwrap().starts_with("`seats` is off"), "and says why");
}

#[tokio::test]
async fn the_clients_context_is_used_and_that_of_the_call_goes_first() {
    let (mut client, pro, free) = client().await;
    client.set_evaluation_context(pro);
    assert_eq!(client.get_bool_value("export", None, None).await, Ok(true));
    assert_eq!(client.get_bool_value("export", Some(&free), None).await, Ok(false));
}

/// Tenants in memory that cannot be read while they are down.
#[derive(Debug, Clone, Default)]
struct Frail {
    tenants: MemorySource,
    down: Arc<AtomicBool>,
}

#[async_trait]
impl SnapshotSource for Frail {
    async fn load(&self, tenant: TenantId, now: DateTime<Utc>) -> Result<Option<TenantState>, EntitlementsError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(CoreError::Unavailable { cause: "the test cut the source off".into() }.into());
        }
        self.tenants.load(tenant, now).await
    }
}

/// A gate on a source that a test can take down, its client, and a tenant on the larger plan.
struct Stage {
    clock: TestClock,
    source: Frail,
    gate: Entitlements,
    client: open_feature::Client,
    pro: TenantId,
}

impl Stage {
    async fn start() -> Self {
        let (clock, source) = (TestClock::starting("2026-01-15T12:00:00Z"), Frail::default());
        let pro = TenantId::mint(&clock);
        source.tenants.put_plan(pro, PlanAssignment::active(PlanKey::from_static("pro")));
        let catalog = PlanCatalog::from_toml(PLANS).unwrap();
        let gate = Entitlements::new(catalog, Arc::new(source.clone()), Arc::new(clock.clone()));
        let mut api = OpenFeature::default();
        api.set_provider(OpenFeatureProvider::new(gate.clone())).await;
        Self { clock, source, gate, client: api.create_client(), pro }
    }

    /// Gives the tenant a banner by an override.
    fn show(&self, banner: serde_json::Value) {
        let feature = FeatureKey::from_static("banner");
        let grant = OverrideGrant::Value { feature, value: StaticValue::Json(banner) };
        let new = NewOverride::new(grant, "a campaign", self.clock.now() + TimeDelta::days(1)).unwrap();
        let issued = new.issue(self.gate.catalog(), &Actor::system("test"), self.clock.now()).unwrap();
        let revision = self.source.tenants.put_override(self.pro, issued).unwrap();
        self.gate.hear(self.pro, revision);
    }
}

fn of(tenant: TenantId) -> EvaluationContext {
    EvaluationContext::default().with_targeting_key(tenant.to_string())
}

#[tokio::test]
async fn a_source_that_cannot_be_read_shows_in_the_reason() {
    let stage = Stage::start().await;
    let pro = of(stage.pro);
    let reason = |details: open_feature::EvaluationDetails<bool>| (details.value, details.reason);
    let fresh = stage.client.get_bool_details("export", Some(&pro), None).await.unwrap();
    assert_eq!(reason(fresh), (true, Some(EvaluationReason::TargetingMatch)));

    stage.source.down.store(true, Ordering::SeqCst);
    stage.gate.flush();
    let stale = || Some(EvaluationReason::Other("STALE".to_owned()));
    let last_known = stage.client.get_bool_details("export", Some(&pro), None).await.unwrap();
    assert_eq!(last_known.flag_metadata.values["plan"], "pro@1".into());
    assert_eq!(reason(last_known), (true, stale()));
    let seats = stage.client.get_int_details("seats", Some(&pro), None).await.unwrap();
    assert_eq!((seats.value, seats.reason), (5, stale()));

    // Of a tenant that was never read nothing is known: the fail policies answer.
    let never_read = TenantId::mint(&stage.clock);
    let unread = of(never_read);
    for (flag, policy) in [("export", false), ("read", true)] {
        let answer = stage.client.get_bool_details(flag, Some(&unread), None).await.unwrap();
        assert!(!answer.flag_metadata.values.contains_key("plan"));
        assert_eq!(reason(answer), (policy, Some(EvaluationReason::Default)), "{flag}");
    }
    let value = stage.client.get_int_value("seats", Some(&unread), None).await.unwrap_err();
    assert_eq!(value.code, EvaluationErrorCode::General("FEATURE_OFF".to_owned()), "the application's default holds");
}

#[tokio::test]
async fn one_of_several_is_a_string_and_a_metered_feature_a_bool() {
    let (client, pro, free) = client().await;
    let region = client.get_string_details("region", Some(&pro), None).await.unwrap();
    assert_eq!((region.value.as_str(), region.variant.as_deref()), ("eu", Some("eu")));
    let off = client.get_string_value("region", Some(&free), None).await.unwrap_err();
    assert_eq!(off.code, EvaluationErrorCode::General("FEATURE_OFF".to_owned()));
    for (context, included) in [(&pro, true), (&free, false)] {
        let api = client.get_bool_details("api", Some(context), None).await.unwrap();
        assert_eq!((api.value, api.reason), (included, Some(EvaluationReason::TargetingMatch)));
    }
    let units = client.get_int_value("api", Some(&pro), None).await.unwrap_err();
    assert_eq!(units.code, EvaluationErrorCode::TypeMismatch, "how much is left is no flag");
}

/// Fields as they came.
#[derive(Debug, PartialEq)]
struct Fields(Vec<(String, Value)>);

impl TryFrom<open_feature::StructValue> for Fields {
    type Error = String;

    fn try_from(value: open_feature::StructValue) -> Result<Self, String> {
        let mut fields: Vec<_> = value.fields.into_iter().collect();
        fields.sort_by(|(left, _), (right, _)| left.cmp(right));
        Ok(Self(fields))
    }
}

#[tokio::test]
async fn null_has_no_form_and_is_left_out_or_refused() {
    let stage = Stage::start().await;
    let pro = of(stage.pro);
    stage.show(serde_json::json!({ "text": null, "link": { "to": null }, "days": 3 }));
    let fields: Fields = stage.client.get_struct_value("banner", Some(&pro), None).await.unwrap();
    let link = Value::Struct(open_feature::StructValue::default());
    assert_eq!(fields, Fields(vec![("days".to_owned(), Value::Int(3)), ("link".to_owned(), link)]));
    stage.show(serde_json::json!({ "lines": ["one", null] }));
    let inside = stage.client.get_struct_value::<Fields>("banner", Some(&pro), None).await.unwrap_err();
    assert_eq!(inside.code, EvaluationErrorCode::ParseError);
    // As the whole value null is no JSON feature's; a list is, and no struct.
    stage.show(serde_json::json!([1]));
    let list = stage.client.get_struct_value::<Fields>("banner", Some(&pro), None).await.unwrap_err();
    assert_eq!(list.code, EvaluationErrorCode::TypeMismatch);
}
